"""The base class of monitors that look at samples of the user's model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context, Monitor
from qa_hooks.functional.intervals import bootstrap_interval
from qa_hooks.images import Range, RangeGuard, check_range
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.reference_images import ReferenceImages
from qa_hooks.sources.samples import (
    Sample,
    SampleSet,
    check_sample,
    in_range,
    sample_blocks,
)
from qa_hooks.writers import Meaning, make_tag


def check_reference(scorer: Scorer, reference: Any, what: str) -> None:
    """`ValueError` unless a reference is there if the scorer needs one, and only then; `what` says what it is."""
    if ("reference" in scorer.inputs) != (reference is not None):
        needed = f"{scorer.name} needs reference=, {what}"
        raise ValueError(needed if reference is None else f"{scorer.name} takes no reference")


class SamplingMonitor(Monitor):
    """A monitor of samples from fixed noise, or of a restored set.

    Monitors of one `Hooks` that ask one function for the same images at the same step share its pass
    (`qa_hooks.sources.samples.OnePass`).

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, or a list of n images of several sizes, which draws its noise
            from the (CPU) generator. The networks that it calls are in eval mode meanwhile, and put back.
        name: in the tags and in the state's key.
        n: how many samples, at least `least`, which is the default; with `truths` as many as there are.
        batch_size: how many at a time.
        seed: of the noise.
        value_range: what the numbers of the samples mean.
        every: steps between two runs.
        optional: whether it may be None, where the images come from the loop.
        truths: the ground truths, images of one size or of several, of a function that restores. It is asked for all
            of them in one call: it could not know which of them another call would mean.

    Attributes:
        per_call: how many images the function is asked for at a time.
        truths: `ReferenceImages`, or None.
        images, reference: the names under which the loop hands images and their ground truths over, if it does.
        shared_out: each process makes its share of the samples; otherwise the first process makes all of them.
    """

    images: str | None = None
    reference: str | None = None
    shared_out: bool = True

    def __init__(
        self,
        sample: Sample | None,
        name: str,
        *,
        n: int | None,
        seed: int,
        value_range: Range,
        every: int,
        batch_size: int = 64,
        least: int = 1,
        optional: bool = False,
        truths: Any = None,
    ) -> None:
        if sample is not None:
            check_sample(sample)
        elif not optional:
            raise TypeError("sample must be callable as sample(n, generator), got None")
        super().__init__(every=every)
        self.sample, self.name, self.seed, self.value_range = sample, name, seed, check_range(value_range)
        self.truths = ReferenceImages(truths) if truths is not None else None
        if self.truths is not None and n not in (None, len(self.truths)):
            raise ValueError(f"n is the number of the ground truths, {len(self.truths)}, got {n}")
        n = len(self.truths) if self.truths is not None else least if n is None else n
        self.n = check_count("n", n, least=least)
        self.batch_size = check_count("batch_size", batch_size)
        self.per_call = self.n if self.truths is not None else min(self.n, self.batch_size)
        self._guard = RangeGuard(self.value_range)
        self._told_refusals: set[str] = set()  # of which images
        for truth in self.truths.images if self.truths is not None else ():
            self._guard.check_data("reference", truth)

    @property
    def known_truths(self) -> str:
        """The fingerprint of the ground truths; "" without them, and where the loop hands them over."""
        return "" if self.truths is None else self.truths.fingerprint

    def asks(self, ctx: Context) -> list[SampleSet]:
        if self.sample is None:
            return []
        rank, world_size = (ctx.rank, ctx.world_size) if self.shared_out else (0 if ctx.rank == 0 else -1, 1)
        return [SampleSet(self.sample, self.n, self.per_call, self.noise(ctx), rank, world_size)]

    def noise(self, ctx: Context) -> int:
        """The seed of this step's samples: always the same."""
        return self.seed

    def blocks(self, ctx: Context) -> Iterator[tuple[int, Tensor]]:
        """This process's samples, block by block and each of one size, with the position of the first one of each."""
        if self.sample is None:
            raise ValueError(f"{self.state_key} has no sample=")
        for asked in self.asks(ctx):
            for start, images in sample_blocks(asked, guard=self._guard, one_pass=ctx.samples):
                for part in images.split(self.batch_size):
                    yield start, part
                    start += len(part)

    def finite(self, rows: Tensor, refusal: str, what: str, *, of: str = "image") -> Tensor:
        """The rows (n, ...) whose scores are all finite; the rest is left out, and said once if a scorer refused it.

        Raises:
            ValueError: none is left.
        """
        kept = rows[torch.isfinite(rows).reshape(len(rows), -1).all(1)]
        if not len(kept):
            raise ValueError(refusal or f"no finite {what} among {plural(len(rows), of)}")
        if refusal and of not in self._told_refusals:
            self._told_refusals.add(of)
            warn(
                f"{self.state_key}: {len(rows) - len(kept)} of {plural(len(rows), of)} cannot be scored and are "
                f"left out of its numbers (said once): {refusal}"
            )
        return kept

    def write_mean(self, ctx: Context, name: str, key: str, values: Tensor, meaning: Meaning) -> dict[str, float]:
        """Write the mean of `values` (n,) under `qa_eval/{name}/mean`, with its 95 % interval under `/low` and `/high`.

        Args:
            ctx: of this step.
            name: in the tags.
            key: of the value in `last`, for its direction.
            values: finite ones, at least one; the interval wants two, not all equal.
            meaning: of the mean, for the log.

        Returns:
            The mean and the ends of its interval, as `{key}`, `{key}_low` and `{key}_high`.
        """
        written = {key: float(values.mean())}
        self.describe(ctx, make_tag("eval", name, "mean"), meaning, key)
        ctx.writer.scalar(make_tag("eval", name, "mean"), written[key], ctx.step)
        if values.numel() > 1:
            interval = bootstrap_interval(values)
            for part, value in (("low", interval.low), ("high", interval.high)):
                written[f"{key}_{part}"] = value
                if math.isfinite(value):  # values that are all equal have no interval
                    ctx.writer.scalar(make_tag("eval", name, part), value, ctx.step)
        return written

    def pairs(self, ctx: Context) -> Iterator[tuple[int, Tensor, dict[str, Tensor]]]:
        """As `blocks`, or as the loop hands them over: images as a scorer takes them, and what it takes beside them."""
        if self.sample is not None:
            for start, images in self.blocks(ctx):
                beside = {} if self.truths is None else {"reference": self.truths.of(start, images)}
                yield start, in_range(images, self.value_range), beside
            return
        for start, images, truth in ctx.handed_over(str(self.images), self.reference, batch_size=self.batch_size):
            beside = {} if truth is None else {"reference": truth}
            self._guard(data=beside, predictions={"images": images})
            yield start, in_range(images, self.value_range), {n: part.to(images.device) for n, part in beside.items()}
