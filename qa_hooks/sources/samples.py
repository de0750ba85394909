"""Samples of the user's model: a function `sample(n, generator)`, called for numbered blocks of images.

Block number b of a seed has a generator of its own, so the images are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import channel_hint, check_call
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key, seed_everything
from qa_hooks._base.reach import modules_of
from qa_hooks._base.sharding import sharded_kind
from qa_hooks.images import Range, RangeGuard, as_tensor

Sample = Callable[[int, torch.Generator], Any]


def check_sample(sample: Sample) -> None:
    """`TypeError` unless it can be called as `sample(n, generator)`."""
    check_call("sample", sample, "sample(n, generator)", 1, torch.Generator("cpu"))


def as_runs(images: Any) -> list[Tensor]:
    """Images in any common form, of one size or of several -> runs `(k, C, H, W)` of neighbours of one size, in order.

    Example:
        >>> [len(run) for run in as_runs([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)])]
        [2, 1]
    """
    if not isinstance(images, (Sequence, Iterator)) or isinstance(images, (str, bytes, bytearray)):
        return [as_tensor(images)]
    parts = [as_tensor(image) for image in images]
    if not parts:
        raise ValueError("images is empty")
    return [torch.cat(list(run)) for _, run in groupby(parts, key=lambda part: (part.shape[1:], part.dtype))]


class GroundTruths:
    """The ground truths of a restored set, of one size or of several.

    Args:
        images: as `qa_hooks.images.as_tensor` takes them, or a list of images of several sizes.

    Raises:
        TypeError, ValueError: no images, or none of 1 or 3 channels.
    """

    def __init__(self, images: Any) -> None:
        try:
            self.images = [image for run in as_runs(images) for image in run]
        except (TypeError, ValueError) as error:
            raise type(error)(f"reference: {error}") from error
        for image in self.images:
            if image.shape[0] not in (1, 3):
                raise ValueError(f"reference: images have 1 or 3 channels, got {tuple(image.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def of(self, start: int, restored: Tensor) -> Tensor:
        """The ground truths of `restored` (N, C, H, W), which begins at this position; `ValueError`: another size."""
        truths = self.images[start : start + len(restored)]
        for index, truth in enumerate(truths, start):
            if truth.shape != restored.shape[1:]:
                raise ValueError(
                    f"image {index} is {tuple(restored.shape[1:])} and its ground truth {tuple(truth.shape)}: give "
                    "ground truths in the order of the restored images, and cut to what the network makes of them (a "
                    "multiple of the scale): truth[:, :height, :width]"
                )
        return torch.stack(truths).to(restored.device)


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
        runs = as_runs(sample(count, torch.Generator("cpu").manual_seed(key)))
    shapes = [tuple(run.shape) for run in runs]
    if sum(map(len, runs)) != count or any(shape[1] not in (1, 3) for shape in shapes):
        raise ValueError(
            f"sample({count}, generator) must give ({count}, 1 or 3, H, W), got {', '.join(map(str, shapes))}"
            + channel_hint(runs[0])
        )
    return runs


def sample_block(sample: Sample, count: int, seed: int, block: int) -> Tensor:
    """As `sample_runs`, `(count, C, H, W)`; `ValueError` for images of several sizes."""
    runs = sample_runs(sample, count, seed, block)
    if len(runs) > 1:
        sizes = ", ".join(str(size) for size in sorted({tuple(run.shape[1:]) for run in runs}))
        raise ValueError(f"these samples are compared image by image, so they need one size, got {sizes}")
    return runs[0]


def sample_blocks(
    sample: Sample,
    n: int,
    *,
    batch_size: int,
    seed: int,
    guard: RangeGuard | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """This process's share of `n` samples: the position of the first image, and the images, block by block.

    A block of images of several sizes comes in runs of one size, in order.

    Args:
        sample: the user's function.
        n: images of all processes together.
        batch_size: images of a block.
        seed: of the noise.
        guard: looks at the first blocks' range.
        rank, world_size: of the processes that share the work; by default this one does it all. Rank -1 gets no block.

    A network in shards works on all processes at once: there each process calls the function for all blocks, and keeps
    its own.
    """
    collective = any(sharded_kind(module) for module in modules_of(sample))
    for block, start, stop in numbered_blocks(n, batch_size):
        own = block % world_size == rank
        if not (own or collective):
            continue
        for images in sample_runs(sample, stop - start, seed, block):
            if guard is not None:
                guard(predictions={"samples": images})
            if own:
                yield start, images
            start += len(images)


def in_range(images: Tensor, value_range: Range) -> Tensor:
    """Images as a scorer takes them: uint8 as it is, anything else as float32 clamped to the declared range."""
    return images if images.dtype == torch.uint8 else images.detach().float().clamp(*value_range)
