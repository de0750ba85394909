"""Draw the samples of a data set in proportion to their quality: what a user with one dirty data set needs first.

    table = QualityTable.compute("train/HR", "niqe_bsd100", "niqe.csv")
    sampler = QualitySampler(table, temperature=0.5)                 # or per tile: compute(..., tiles=192)
    loader = DataLoader(dataset, batch_size=16, sampler=sampler)     # dataset[i] is what table.keys[i] names
    for epoch in range(epochs):
        sampler.set_epoch(epoch)

An epoch of M draws takes sample i floor or ceil of `M w_i / N` times and exactly that often on average: systematic
sampling (Madow, Annals of Mathematical Statistics 1949) of the samples in random order, which varies less than
independent draws. With equal weights every sample comes once, in the very order of PyTorch's `DistributedSampler`.

A data set that draws its crops by index and epoch, as `MultiGTDataset` does, gives a sample that comes twice the same
crop twice: take `repeat=R` there and pass `scores.repeat(R)` here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from qa_hooks._base import processes
from qa_hooks._base.checks import check_count
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.random import mixed_key
from qa_hooks.data.quality_table import QualityTable
from qa_hooks.data.weights import quality_weights
from qa_hooks.images import Range


class QualitySampler(Sampler[int]):
    """Positions in a data set, drawn by quality; each rank gets its share of one global sequence.

    The draws come from `seed` and the epoch alone: never from a global generator, the same with any number of workers.

    Args:
        scores: a `QualityTable` of one candidate, or `(N,)` raw scores, as in `quality_weights`.
        temperature, normalize, score_range, higher_is_better, floor, missing: as in `quality_weights`;
            `temperature=inf` is `DistributedSampler`.
        num_samples: draws per epoch over all ranks; None: as many as there are samples.
        replacement: True draws good samples several times an epoch. False draws each at most once, with probability
            `min(1, c w_i)`, c so that they sum to `num_samples`, which must then be smaller than the data set.
        seed: of the draws, the same on all ranks.
        rank, world_size: None takes those of the process group. Where somebody else shards the loader, as
            `accelerator.prepare` does, pass 0 and 1.
        drop_last: ranks get equally many: a remainder is dropped (True) or filled up from the beginning (False).

    Raises:
        TypeError, ValueError: as in `quality_weights`; a table of several candidates; options that do not fit.

    Example:
        >>> sampler = QualitySampler(torch.tensor([1.0, 2.0, 3.0]), temperature=0.5, floor=0.0, num_samples=1000)
        >>> sampler.expected_counts().round().tolist(), torch.tensor(list(sampler)).bincount().tolist()
        ([7.0, 79.0, 914.0], [7, 78, 915])
    """

    def __init__(
        self,
        scores: QualityTable | Tensor,
        *,
        temperature: float = 1.0,
        normalize: str = "zscore",
        score_range: Range | None = None,
        higher_is_better: bool | None = None,
        floor: float = 0.1,
        missing: str = "raise",
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        drop_last: bool = False,
    ) -> None:
        self.weights = quality_weights(
            scores,
            temperature=temperature,
            normalize=normalize,
            score_range=score_range,
            higher_is_better=higher_is_better,
            floor=floor,
            missing=missing,
        ).cpu()
        self.num_samples = len(self.weights) if num_samples is None else check_count("num_samples", num_samples)
        self.replacement, self.seed, self.drop_last = replacement, int(seed), drop_last
        if (rank is None) != (world_size is None):
            raise ValueError(f"give both rank and world_size or neither, got rank={rank}, world_size={world_size}")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, world_size), got {rank} of {world_size}")
        self._rank, self._world_size = rank, world_size
        self._expected = self.expected_counts()
        self._next = (0, 0)  # epoch, and position in its global sequence, at which the next iterator starts
        self._running = (0, 0)  # where the latest iterator is
        self._began = 0  # the position at which it began

    @property
    def epoch(self) -> int:
        """The epoch that the next iterator draws."""
        return self._next[0]

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has its own draws. Without this call a sampler that ran to its end goes on to the next epoch.

        The epoch that `load_state_dict` has put it into keeps its position.
        """
        epoch = check_count("epoch", epoch, least=0)
        if epoch != self._next[0]:
            self._next = self._running = (epoch, 0)
            self._began = 0

    def expected_counts(self) -> Tensor:
        """`(N,)` float64: how often each sample comes in an epoch, on average; the sum is `num_samples`."""
        weights = self.weights.double()
        if self.replacement:
            return weights * (self.num_samples / weights.sum())
        possible = int((weights > 0).sum())
        if self.num_samples > possible:
            raise ValueError(f"{self.num_samples} draws without replacement from {possible} samples: draw fewer")
        if self.num_samples == possible and len(weights[weights > 0].unique()) > 1:
            raise ValueError(
                f"all {possible} samples without replacement: each comes once and quality decides nothing; "
                "give a smaller num_samples, or replacement=True"
            )
        certain = torch.zeros(len(weights), dtype=torch.bool, device="cpu")
        while True:  # what would come more than once comes once, and leaves more for the others
            rest = weights[~certain].sum().clamp_min(torch.finfo(torch.float64).tiny)
            expected = torch.where(certain, 1.0, weights * ((self.num_samples - certain.sum()) / rest))
            over = (expected > 1) & ~certain
            if not over.any():
                return expected
            certain |= over

    def sequence(self, epoch: int) -> Tensor:
        """`(num_samples,)` int64: what all ranks together draw in an epoch, in order."""
        generator = torch.Generator().manual_seed(mixed_key(self.seed, epoch))
        items = (self._expected > 0).nonzero()[:, 0]
        items = items[torch.randperm(len(items), generator=generator, device="cpu")]
        # 24 random bits: then differences to whole numbers are exact, and equal weights give exactly one each.
        start = torch.rand(1, generator=generator, device="cpu", dtype=torch.float32).double()
        until = (self._expected[items].cumsum(0) - start).ceil().clamp(0, self.num_samples)
        until[-1] = self.num_samples
        counts = torch.zeros(len(self.weights), dtype=torch.int64, device="cpu")
        counts[items] = until.diff(prepend=until.new_zeros(1)).long()
        drawn = torch.arange(len(counts), device="cpu").repeat_interleave(counts)
        generator = torch.Generator().manual_seed(self.seed + epoch)
        order = torch.randperm(self.num_samples, generator=generator, device="cpu")
        return drawn[order]

    def __len__(self) -> int:
        """Draws of this rank in a whole epoch."""
        return self._share(self.num_samples)

    def __iter__(self) -> Iterator[int]:
        epoch, position = self._next
        self._began, self._running = position, self._next
        self._next = (epoch, 0)  # an iterator that is given up starts anew, as any sampler's does
        rank, world_size = self._place()
        rest = self.sequence(epoch)[position:]
        total = self._share(len(rest)) * world_size
        if len(rest):
            rest = rest.repeat(-(-total // len(rest)))[:total]
        for index in rest[rank::world_size].tolist():
            position += world_size
            self._running = (epoch, min(position, self.num_samples))
            yield index
        if self._next == (epoch, 0):
            self._next = (epoch + 1, 0)

    def state_dict(self, seen: int | None = None) -> dict[str, Any]:
        """Epoch and position, for a run that goes on in the middle of an epoch, on any number of ranks.

        Args:
            seen: how many samples this rank has trained on since the latest iterator began (batches times batch size):
                a loader with workers draws ahead of the training. None: all that were drawn.

        Example:
            >>> sampler, resumed = (QualitySampler(torch.arange(10.0)) for _ in range(2))
            >>> whole = list(sampler)
            >>> resumed.load_state_dict(sampler.state_dict(seen=4))
            >>> list(resumed) == whole[4:]
            True
        """
        epoch, position = self._running
        if seen is not None:
            position = min(self._began + check_count("seen", seen, least=0) * self._place()[1], self.num_samples)
        return {"epoch": epoch, "position": position, "draws": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; `ValueError` when the draws would be others (scores, options, seed)."""
        if set(state) != {"epoch", "position", "draws"}:
            raise ValueError(f"expected the state of a QualitySampler, got keys {sorted(state)}")
        if state["draws"] != self._fingerprint():
            raise ValueError(
                "the state is of other draws: scores, temperature, floor, num_samples, replacement or seed have "
                "changed; for a new start call set_epoch instead"
            )
        epoch, position = int(state["epoch"]), int(state["position"])
        # With drop_last a remainder that is too small for all ranks is no epoch.
        self._next = (epoch, position) if self._share(self.num_samples - position) > 0 else (epoch + 1, 0)
        self._running, self._began = self._next, self._next[1]

    def _place(self) -> tuple[int, int]:
        if self._rank is not None and self._world_size is not None:
            return self._rank, self._world_size
        return processes.rank(), processes.world_size()

    def _share(self, count: int) -> int:
        world_size = self._place()[1]
        return count // world_size if self.drop_last else -(-count // world_size)

    def _fingerprint(self) -> str:
        return fingerprint(self.weights, f"{self.num_samples} {self.replacement} {self.seed}")
