"""The base class of monitors that look at samples of the user's model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.callbacks.callback import Context, Monitor
from qa_hooks.images import Range, RangeGuard, check_range
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.samples import Sample, check_sample, sample_blocks


def check_reference(scorer: Scorer, reference: Any, what: str) -> None:
    """`ValueError` unless a reference is there if the scorer needs one, and only then; `what` says what it is."""
    if ("reference" in scorer.inputs) != (reference is not None):
        needed = f"{scorer.name} needs reference=, {what}"
        raise ValueError(needed if reference is None else f"{scorer.name} takes no reference")


class SamplingMonitor(Monitor):
    """A monitor of samples from fixed noise.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, which draws its noise from the (CPU) generator. The networks
            that it calls are in eval mode meanwhile, and put back.
        name: in the tags and in the state's key.
        n: how many samples, at least `least`.
        batch_size: how many at a time.
        seed: of the noise.
        value_range: what the numbers of the samples mean.
        every: steps between two runs.
        optional: whether it may be None, where the images come from the loop.
    """

    def __init__(
        self,
        sample: Sample | None,
        name: str,
        *,
        n: int,
        seed: int,
        value_range: Range,
        every: int,
        batch_size: int = 64,
        least: int = 1,
        optional: bool = False,
    ) -> None:
        if sample is not None:
            check_sample(sample)
        elif not optional:
            raise TypeError("sample must be callable as sample(n, generator), got None")
        super().__init__(every=every)
        self.sample, self.name, self.seed, self.value_range = sample, name, seed, check_range(value_range)
        self.n, self.batch_size = check_count("n", n, least=least), check_count("batch_size", batch_size)
        self._guard = RangeGuard(self.value_range)

    def blocks(self, ctx: Context, *, shared_out: bool = True, seed: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Samples, block by block, with the position of the first one of each.

        Args:
            ctx: whose process asks.
            shared_out: give this process its share; otherwise the first process gets all of them, and the others none.
            seed: another one than the monitor's.
        """
        if self.sample is None:
            raise ValueError(f"{self.state_key} has no sample=")
        rank, world_size = (ctx.rank, ctx.world_size) if shared_out else (0 if ctx.rank == 0 else -1, 1)
        return sample_blocks(
            self.sample, self.n, batch_size=self.batch_size, seed=self.seed if seed is None else seed,
            guard=self._guard, rank=rank, world_size=world_size,
        )  # fmt: skip
