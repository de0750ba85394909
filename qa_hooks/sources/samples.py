"""Samples of the user's model: a function `sample(n, generator)`, called for numbered blocks of images.

Block number b of a seed has a generator of its own, so the images are the same for any number of processes, and for
whoever asks: monitors of one step that ask for the same images get them from one call (`OnePass`).
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import channel_hint, check_call, warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key, seed_everything
from qa_hooks._base.reach import modules_of
from qa_hooks._base.sharding import sharded_kind
from qa_hooks.images import Range, RangeGuard
from qa_hooks.sources.reference_images import as_runs

Sample = Callable[[int, torch.Generator], Any]

GENERATORS = ("gen", "rng", "rand", "seed")  # in the name of a parameter that may take one, or it is of 1 or 2 letters

HELD = 2**32  # bytes of images that a step keeps for monitors whose turn is still to come
_TOLD_COPIES: WeakValueDictionary[int, Any] = WeakValueDictionary()  # functions of which it has been said, by id


def check_sample(sample: Sample) -> None:
    """`TypeError` unless it can be called as `sample(n, generator)`."""
    check_call("sample", sample, "sample(n, generator)", 1, torch.Generator("cpu"))


def numbered_blocks(n: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int, int]]:
    """This process's share of `n` images: number, start and stop of each block of `batch_size`.

    Example:
        >>> list(numbered_blocks(10, 4)), list(numbered_blocks(10, 4, rank=1, world_size=2))
        ([(0, 0, 4), (1, 4, 8), (2, 8, 10)], [(1, 4, 8)])
    """
    for block in range(rank, -(-n // batch_size), world_size):
        yield block, block * batch_size, min((block + 1) * batch_size, n)


def sample_runs(sample: Sample, count: int, seed: int, block: int) -> list[Tensor]:
    """`count` images of one numbered block, in runs of one size: the same whatever process makes them.

    The function draws its noise from the generator that it is given. One that ignores it gives the same images each
    time, too: the global generators are seeded for the call, and put back.
    """
    key = mixed_key(seed, block)
    with isolated(*modules_of(sample)):  # each call starts in eval mode, whatever mode the one before left behind
        seed_everything(key)
        try:
            runs = as_runs(sample(count, torch.Generator("cpu").manual_seed(key)))
        except Exception as error:
            if not (hint := _generator_hint(sample)):
                raise
            raise ValueError(f"{type(error).__name__}: {error}{hint}") from error
    shapes = [tuple(run.shape) for run in runs]
    if sum(map(len, runs)) != count or any(shape[1] not in (1, 3) for shape in shapes):
        raise ValueError(
            f"sample({count}, generator) must give ({count}, 1 or 3, H, W), got {', '.join(map(str, shapes))}"
            + (_generator_hint(sample) or channel_hint(runs[0]))
        )
    return runs


def _generator_hint(sample: Sample) -> str:
    """Which parameter of a function that failed was given the generator, where its name says that it is another thing.

    Example:
        >>> _generator_hint(lambda batch_size, return_all_timesteps=False: None)[:67]
        "; the generator went to its parameter 'return_all_timesteps': write"
        >>> _generator_hint(lambda n, generator: None)
        ''
    """
    try:
        parameters = inspect.signature(sample.forward if isinstance(sample, nn.Module) else sample).parameters.values()
    except (TypeError, ValueError):
        return ""
    second = [part for part in parameters if part.kind in (part.POSITIONAL_ONLY, part.POSITIONAL_OR_KEYWORD)][1:2]
    if not second:
        return ""
    name, kind = second[0].name, str(second[0].annotation)
    if len(name) <= 2 or any(word in name.lower() for word in GENERATORS) or "Generator" in kind:
        return ""
    return (
        f"; the generator went to its parameter {name!r}: write sample=lambda n, generator: f(n), with your function "
        "as f (the global generators are seeded for the call)"
    )


def sample_block(sample: Sample, count: int, seed: int, block: int) -> Tensor:
    """As `sample_runs`, `(count, C, H, W)`; `ValueError` for images of several sizes."""
    runs = sample_runs(sample, count, seed, block)
    if len(runs) > 1:
        sizes = ", ".join(str(size) for size in sorted({tuple(run.shape[1:]) for run in runs}))
        raise ValueError(f"these samples are compared image by image, so they need one size, got {sizes}")
    return runs[0]


class SampleSet(NamedTuple):
    """What a monitor asks a function for: a set of samples, or a process's share of it.

    Attributes:
        sample: the user's function.
        n: images of all processes together.
        per_call: images of a call, which are a block.
        seed: of the noise.
        rank, world_size: of the processes that share the work; by default this one does it all. Rank -1 gets no block.
    """

    sample: Sample
    n: int
    per_call: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def calls(self) -> Iterator[tuple[int, int, int, bool]]:
        """The calls that this process makes: number, start and stop of the block, and whether it is its share.

        A network in shards works on all processes at once: there each process calls the function for all blocks.
        """
        alone = (self.rank, self.world_size) == (0, 1)
        collective = not alone and any(sharded_kind(module) for module in modules_of(self.sample))
        for block, start, stop in numbered_blocks(self.n, self.per_call):
            own = block % self.world_size == self.rank
            if own or collective:
                yield block, start, stop, own


class OnePass:
    """The samples of one step: a function is called once for images that several monitors of the step ask for.

    Monitors share the images of a call that has the same function (one object, or one method of one object), the same
    number of images, the same seed and the same number of the block: it would make the same images again, from a
    generator in the same state and inside the same `isolated()`. So a grid of 64 images shares the first block of a
    monitor of 256. Anything else is another call: other noise, other weights (`with_weights` gives a function of its
    own), other numbers of images. A function that counts its calls, or draws from a generator of its own, would answer
    otherwise each time; here all see one answer.

    Kept are copies, so that nobody sees what somebody else makes of them: in the CPU's memory, of those images alone
    that a monitor of this step still has to ask for, and at most `HELD` bytes; what does not fit is made again. They
    are gone when the last monitor has them, at the latest when the step ends, for the next one has other weights. An
    error is not kept: the next monitor calls the function, too.

    Args:
        asked: for by all monitors of the step.

    Example:
        >>> calls = []
        >>> sample = lambda n, generator: calls.append(n) or torch.rand(n, 1, 2, 2, generator=generator)
        >>> eight = SampleSet(sample, n=8, per_call=4, seed=0)
        >>> one_pass = OnePass([eight, eight])
        >>> first, second = (torch.cat([i for _, i in sample_blocks(eight, one_pass=one_pass)]) for _ in range(2))
        >>> calls, torch.equal(first, second)
        ([4, 4], True)
    """

    def __init__(self, asked: Iterable[SampleSet] = ()) -> None:
        self._waiting = Counter(
            call_key(part.sample, stop - start, part.seed, block)
            for part in asked
            for block, start, stop, _ in part.calls()
        )
        self._held: dict[tuple[int, ...], tuple[Sample, list[tuple[Tensor, torch.device]]]] = {}

    def runs(self, sample: Sample, count: int, seed: int, block: int) -> list[Tensor]:
        """As `sample_runs`."""
        call = call_key(sample, count, seed, block)
        self._waiting[call] -= 1
        wanted = self._waiting[call] > 0
        if call in self._held:
            _, kept = self._held[call] if wanted else self._held.pop(call)
            return [run.to(device, copy=wanted) for run, device in kept]
        runs = sample_runs(sample, count, seed, block)
        held = (run for _, kept in self._held.values() for run, _ in kept)
        if wanted and sum(run.nbytes for run in [*held, *runs]) <= HELD:
            self._held[call] = sample, [(run.to("cpu", copy=True), run.device) for run in runs]
        return runs

    def forget(self) -> None:
        """The networks may be others from here on: what comes is made anew."""
        self._held.clear()

    def close(self) -> None:
        """The step is over: nothing is kept any more, whoever still holds this object."""
        self._waiting.clear()
        self._held.clear()


def call_key(sample: Sample, count: int, seed: int, block: int) -> tuple[int, ...]:
    """What tells one call from another. `net.sample` is a new object each time that it is written."""
    function = (id(sample.__self__), id(sample.__func__)) if isinstance(sample, MethodType) else (id(sample), 0)
    return (*function, count, seed, block)


def sample_blocks(
    asked: SampleSet, *, guard: RangeGuard | None = None, one_pass: OnePass | None = None
) -> Iterator[tuple[int, Tensor]]:
    """This process's share of a set: the position of the first image, and the images, block by block.

    A block of images of several sizes comes in runs of one size, in order. It is said once that a function gives the
    same images whatever its noise. `guard` looks at the first blocks' range; without `one_pass` of the step the
    function is called for each block.
    """
    one_pass, before = one_pass or OnePass(), list[Tensor]()
    for call, (block, start, stop, own) in enumerate(asked.calls()):
        runs = one_pass.runs(asked.sample, stop - start, asked.seed, block)
        if call < 2:  # two images that differ, and come again for other noise
            first = [image for run in runs for image in run[:2]][:2]
            if call and before and all(map(torch.equal, before, first)) and not torch.equal(*before):
                _tell_copies(asked)
            before = [image.clone() for image in first] if len(first) == 2 and not call else []
        for images in runs:
            if guard is not None:
                guard(predictions={"samples": images})
            if own:
                yield start, images
            start += len(images)


def _tell_copies(asked: SampleSet) -> None:
    owner: Any = getattr(asked.sample, "__self__", asked.sample)  # net.sample is a new object each time
    if id(owner) not in _TOLD_COPIES:
        with contextlib.suppress(TypeError):  # what nobody can refer to weakly is told again
            _TOLD_COPIES[id(owner)] = owner
        warn(
            f"sample(n, generator) gives the same images for other noise: of n={asked.n} all after the first "
            f"{asked.per_call} are copies, and intervals are too narrow. Draw from the generator, or ask for a fixed "
            "set in one call (batch_size=); a generator that ignores its noise shows so, too (said once)"
        )


def in_range(images: Tensor, value_range: Range) -> Tensor:
    """Images as a scorer takes them: uint8 as it is, anything else as float32 clamped to the declared range."""
    return images if images.dtype == torch.uint8 else images.detach().float().clamp(*value_range)
