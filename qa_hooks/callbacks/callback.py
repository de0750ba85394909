"""The base classes of callbacks. A callback reads the run and never changes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import first_error, world_size
from qa_hooks._base.reach import Traces, modules_of
from qa_hooks.callbacks.capture import Handed
from qa_hooks.images import check_images
from qa_hooks.sources.reference_images import as_runs
from qa_hooks.sources.samples import OnePass, SampleSet
from qa_hooks.writers import BETTER, Meaning, Writer, describe, log_text, make_tag


class TrainingStopped(Exception):
    """A callback ends training. It comes out of `optimizer.step()` where Hooks is attached; else it sets `should_stop`.

    With `hooks.step()` in the loop nothing is raised: ask `hooks.should_stop` after it. Attached hooks have no such
    place, so the exception leaves the loop; `with hooks:` around it closes them, and lets the exception through:

        try:
            with Hooks([guard], log_dir="runs/a").attach(optimizer):
                train()
        except TrainingStopped as stop:
            print(stop)
    """


@dataclass(frozen=True)
class Context:
    """What a callback sees.

    Attributes:
        step: optimizer steps made so far.
        images: the tensors given to `hooks.step(...)` or captured, `(N, C, H, W)`, detached; a list of images where the
            loop hands over a list, since they differ in size.
        terms: the terms of what Hooks tracks that are new since the last step, `{track: {term: value}}`, and under
            "train" what was recorded.
        writer: takes scalars, images and histograms; on other ranks than 0 it does nothing.
        rank, world_size: of this process.
        late: the value of an earlier step is being handed over: `step` is that step, and the weights are by now of a
            later one.
        samples: for `qa_hooks.sources.samples.sample_blocks`, in which monitors that ask for the same images share one
            pass; None for callbacks that share nothing.
    """

    step: int
    images: Mapping[str, Handed]
    terms: Mapping[str, Mapping[str, Tensor | float]]
    writer: Writer
    rank: int
    world_size: int
    late: bool = False
    samples: OnePass | None = None

    def handed_over(
        self, name: str, beside: str | None = None, *, batch_size: int
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """The images of a name, block by block and each of one size, and those of another name that belong to them.

        Args:
            name, beside: of images that the loop hands over: a tensor, or a list of images of several sizes.
            batch_size: images at a time.

        Yields:
            The position of the first image, the images `(n, C, H, W)`, and those of `beside` in the same places.

        Raises:
            ValueError: no images of a name, other numbers of them, or images of several sizes beside images of one.
        """
        runs = self._runs(name)
        others: Handed | None = None
        if beside is not None:
            parts = self._runs(beside)
            others = parts[0] if len(parts) == 1 else [image for part in parts for image in part]
        count = sum(map(len, runs))
        if others is not None and len(others) != count:
            raise ValueError(f"each of {name!r} needs its {beside!r}, got {count} and {len(others)} images")
        start = 0
        for run in runs:
            for images in run.split(batch_size):
                found = None if others is None else others[start : start + len(images)]
                if isinstance(found, list):
                    if len({image.shape for image in found}) > 1:
                        sizes = ", ".join(str(tuple(image.shape)) for image in found)
                        raise ValueError(
                            f"images that are all {tuple(images.shape[1:])} have {beside!r} of several sizes, {sizes}: "
                            "hand both over in one order, and cut to one size each"
                        )
                    found = torch.stack(found)
                yield start, images, found
                start += len(images)

    def _runs(self, name: str) -> list[Tensor]:
        if name not in self.images:
            raise ValueError(f"no images named {name!r} were handed over by hooks.step(...); got {sorted(self.images)}")
        images = self.images[name]
        runs = [images] if isinstance(images, Tensor) else as_runs(images)
        return [check_images(name, run, floating=False) for run in runs]


class Callback:
    """Called by `Hooks` at the start, after each `every`-th optimizer step, and at the end.

    An exception in it never stops training: it is reported once and the callback is switched off. With several
    processes a plain callback must not communicate; a `Monitor` may.

    Attributes:
        every: how many steps apart it runs.
        name: tells it from others of its kind, in tags and in the state's key.
        state_key: its key in `Hooks.state_dict()`, with its name; unique among the callbacks of one Hooks.
        budgeted: whether its time counts against `Hooks(budget=...)`.
        acts: it may stop the run or change it, so the budget counts its time and never puts it off.
        skipped: the optimizer whose step this callback has just cancelled; that step does not count.
        claims: a folder that is this callback's own; two callbacks of one Hooks cannot have the same.
        reads: callbacks whose results this one uses; Hooks wants them before it.
        pending: its measurements that are computed elsewhere and not yet taken in.
    """

    every: int = 1
    budgeted: bool = False
    acts: bool = False
    skipped: torch.optim.Optimizer | None = None
    claims: Path | None = None
    reads: tuple[Callback, ...] = ()
    pending: Sequence[Any] = ()

    name: str = ""

    @property
    def state_key(self) -> str:
        return type(self).__name__ if not self.name else f"{type(self).__name__}({self.name})"

    def __repr__(self) -> str:
        every = f"every={(self.reads[0] if self.reads else self).every}"  # a reader runs when its monitor does
        key = self.state_key
        return f"{key[:-1]}, {every})" if key.endswith(")") else f"{key}({every})"

    def due(self, step: int) -> bool:
        """Whether it runs after this step."""
        return step % self.every == 0

    def postponed(self, step: int) -> bool:
        """Whether it is due after this step and has to wait for its next turn."""
        return False

    def asks(self, ctx: Context) -> Sequence[SampleSet]:
        """The samples that it asks for at this step, so that those that others ask for as well are made once."""
        return ()

    def awaits(self, step: int) -> bool:
        """Whether its value of this step is still being computed elsewhere."""
        return False

    def arrived(self, *, wait: bool = False) -> int | None:
        """The step of the next value that was computed elsewhere and has come; `wait`: until it comes, if there is one.

        `Hooks` then calls `take_in`, and `on_step_end` of the callbacks that read this one, with a context of that
        step, whose `late` is set.
        """
        return None

    def take_in(self, ctx: Context) -> None:
        """Take in the value of the step `ctx.step`."""

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Called by `Hooks.attach`, for callbacks that look at gradients."""

    def detach(self) -> None:
        """Called when Hooks ends; the inverse of `attach`."""

    def raise_alarm(self, ctx: Context, message: str) -> None:
        """Warn, and put the words into the log, as the text `qa_eval/{name}/alarm`."""
        warn(f"{self.state_key}, step {ctx.step}: {message}")
        log_text(ctx.writer, make_tag("eval", self.name or self.state_key, "alarm"), message, ctx.step)

    def on_train_start(self, ctx: Context) -> None:
        """Before the first step."""

    def on_step_end(self, ctx: Context) -> None:
        """After an optimizer step."""

    def on_train_end(self, ctx: Context) -> None:
        """When Hooks is closed after a run without error."""

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers; nothing by default."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class Monitor(Callback):
    """A callback that measures, correct on one process and on many.

    `local` may fail; `reduce` holds the collectives. Between the two all ranks exchange one flag, so that a failure
    on one rank switches the monitor off on all of them and none waits for a message that never comes.

    It also runs after the first step: a mistake shows at once and not after `every` steps, and curves have a beginning.

    Args:
        every: steps between two runs.

    Attributes:
        measures: the keys of its `.last` that a decision may rest on; () where that is not known before it ran.
    """

    budgeted = True
    measures: tuple[str, ...] = ()

    def __init__(self, *, every: int) -> None:
        self.every = check_count("every", every)
        self._failure: Exception | None = None
        self._traced = False
        self._described: set[str] = set()  # the tags whose meaning the log has

    def due(self, step: int) -> bool:
        return step == 1 or step % self.every == 0

    def higher_is_better(self, key: str) -> bool | None:
        """Which direction of `.last[key]` is the better one; None where that is not known."""
        return None

    def describe(self, ctx: Context, tag: str, meaning: Meaning, key: str) -> None:
        """Say in the log, once and before the tag's first number, what it is and which way `.last[key]` is better."""
        if tag not in self._described:
            self._described.add(tag)
            describe(ctx.writer, tag, meaning._replace(better=BETTER[self.higher_is_better(key)]))

    def local(self, ctx: Context) -> Any:
        """This rank's part, run in `isolated(*self.networks())`; no collectives."""

    def networks(self) -> list[nn.Module]:
        """The user's networks that `local` uses, as far as they are known; what it calls is protected anyway."""
        return [module for function in self.functions() for module in modules_of(function)]

    def functions(self) -> list[Callable[..., Any]]:
        """The user's functions that `local` calls."""
        sample = getattr(self, "sample", None)
        return [] if sample is None else [sample]

    def rehearse(self, images: Tensor | None) -> Iterator[str]:
        """For `Hooks.check()`: what the first measurement does with its other inputs, such as real images, on a few.

        Args:
            images: some samples as the sampler gives them, (n, C, H, W); None where there are none.

        Yields:
            A line for each thing that is in order. What the measurement would refuse raises the same error.
        """
        yield from ()

    def reduce(self, ctx: Context, part: Any) -> None:
        """Combine the parts of all ranks and write; the same collectives on every rank."""

    def on_step_end(self, ctx: Context) -> None:
        part, failure = None, self._failure
        if failure is None:
            traces = None if self._traced else Traces(*self.functions())
            try:
                with isolated(*self.networks()):
                    part = self.local(ctx)
                if traces is not None:
                    _say_moved(self.state_key, traces.moved())
            except Exception as error:
                failure = error
        self._traced = True
        message = first_error(failure)
        if message is not None:
            raise RuntimeError(message) from failure
        try:
            self.reduce(ctx, part)
        except Exception as error:
            if world_size() == 1:
                raise
            self._failure = error  # told to the others when it is next due; until then they must not wait for us


def _say_moved(key: str, moved: list[str]) -> None:
    if moved:
        warn(
            f"{key}: its first measurement moved what cannot be put back: {', '.join(moved)}. The run goes on from "
            "there (said once). Draw from the generator that sample(n, generator) is given, and give the sampler an "
            "object of its own where a counter matters"
        )
