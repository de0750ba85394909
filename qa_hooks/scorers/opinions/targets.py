"""What people said of rows of features, and how far a scorer's outputs are from it.

Ratings want one output a row, the rating; where people's spread is known a second one, the logarithm of the spread.
Pairs want one output, whose differences say how probable it is that one image is found better than the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qa_hooks.functional.opinions import fidelity_loss, log_preference, normal_divergence

LEAST_SPREAD = 0.05  # of the ratings' own deviation: two people who agree do not make an opinion certain


@dataclass(frozen=True)
class RatingTargets:
    """Ratings of n rows, and people's spread where it is known.

    Attributes:
        rating: `(n,)` float64.
        spread: `(n,)` standard deviations in the units of `rating`, or None.
        unit: the deviation of all ratings, in which errors are counted; found where it is not given.
    """

    rating: Tensor
    spread: Tensor | None = None
    unit: float = 0.0

    def __post_init__(self) -> None:
        if not self.unit:
            object.__setattr__(self, "unit", max(float(self.rating.std(correction=0)), 1e-12))

    @property
    def outputs(self) -> int:
        """How many numbers a row of features gives."""
        return 1 if self.spread is None else 2

    def __len__(self) -> int:
        return len(self.rating)

    def start(self) -> Tensor:
        """`(outputs,)` that say of every row what is true of all rows together."""
        return torch.stack([self.rating.mean(), self.rating.new_tensor(self.unit).log()])[: self.outputs]

    def units(self) -> Tensor:
        """`(outputs,)`: by how much outputs differ from row to row."""
        return self.rating.new_tensor([self.unit, 1.0])[: self.outputs]

    def within(self, keep: Tensor) -> RatingTargets:
        """The rows where a mask `(n,)` is true."""
        spread = None if self.spread is None else self.spread[keep]
        return replace(self, rating=self.rating[keep], spread=spread)

    def losses(self, outputs: Tensor) -> Tensor:
        """`(n, outputs)` -> `(n,)`: squared errors in units of the ratings' variance, or divergences."""
        if self.spread is None:
            return ((outputs[:, 0] - self.rating) / self.unit).square()
        spread = self.spread.clamp_min(LEAST_SPREAD * self.unit)
        deviation = outputs[:, 1].exp()
        return normal_divergence(outputs[:, 0], deviation, self.rating, spread)

    def surprises(self, outputs: Tensor) -> Tensor:
        """The losses, which are least where what is expected is right."""
        return self.losses(outputs)


@dataclass(frozen=True)
class PairTargets:
    """Pairs of n rows.

    Attributes:
        rows: n.
        first, second: `(p,)` positions of the two images of a pair.
        better: `(p,)` float64: 1 where the first is better, 0 where the second is, 0.5 for a tie.
        link: "thurstone" or "bradley-terry".
    """

    rows: int
    first: Tensor
    second: Tensor
    better: Tensor
    link: str = "thurstone"
    outputs: int = 1

    def __len__(self) -> int:
        return len(self.better)

    def start(self) -> Tensor:
        """`(1,)` zero: pairs say nothing of the level."""
        return self.better.new_zeros(1)

    def units(self) -> Tensor:
        """`(1,)` one: the links set the unit."""
        return self.better.new_ones(1)

    def within(self, keep: Tensor) -> PairTargets:
        """The rows where a mask `(n,)` is true, and the pairs that lie within them."""
        both = keep[self.first] & keep[self.second]
        number = keep.cumsum(0) - 1
        return replace(
            self,
            rows=int(keep.sum()),
            first=number[self.first[both]],
            second=number[self.second[both]],
            better=self.better[both],
        )

    def losses(self, outputs: Tensor) -> Tensor:
        """`(n, 1)` -> `(p,)` fidelity losses."""
        return fidelity_loss(outputs[self.first, 0] - outputs[self.second, 0], self.better, link=self.link)

    def surprises(self, outputs: Tensor) -> Tensor:
        """`(n, 1)` -> `(p,)` cross-entropies, least where probabilities are right.

        The fidelity loss of opinions that are 0 or 1 is least at the square of the right odds: heads promise too much.
        """
        better, worse = log_preference(outputs[self.first, 0] - outputs[self.second, 0], link=self.link)
        return -(self.better * better + (1 - self.better) * worse)


Targets = RatingTargets | PairTargets
