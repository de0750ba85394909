"""What a fit needs of more features than memory holds: sums that can be added, and a sample chosen by name.

An image's place is a number in [0, 1) that its name and the seed decide. Places below `held_out` belong to the
calibration and take no part in the fit; of both sides the lowest places are kept as a sample. So the result
does not depend on how the images were divided, nor on the order in which the parts were added: the samples are the same
to the last bit, the moments to the rounding of float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, check_share
from qa_hooks._base.hashing import fingerprint
from qa_hooks.features.moments import Moments

Size = tuple[int, int]


class FeatureSums:
    """Moments of all features, and samples of them, gathered part by part and mergeable.

    Args:
        dim: of the features.
        held_out: the share of the images that calibrate and take no part in the fit.
        sample: rows that are kept, at most, of the fitted images and of the held-out ones.
        seed: of the choice.

    Attributes:
        moments: of all rows that are not held out.
        sizes: (height, width) of the images, as far as `update` was told.

    Example:
        >>> rows = torch.arange(12.0).reshape(6, 2)
        >>> names = [f"{n}.png" for n in range(6)]
        >>> whole, part, other = (FeatureSums(2, held_out=0.3, sample=2) for _ in range(3))
        >>> whole.update(names, rows); part.update(names[4:], rows[4:]); other.update(names[:4], rows[:4])
        >>> part.merge(other)
        >>> torch.equal(part.fitted, whole.fitted), part.moments.count == whole.moments.count
        (True, True)
    """

    def __init__(self, dim: int, *, held_out: float = 0.2, sample: int = 10_000, seed: int = 0) -> None:
        self.dim, self.held_out, self.seed = dim, check_share("held_out", held_out, zero=True), int(seed)
        self.size_of_sample = check_count("sample", sample)
        self.moments = Moments(dim)
        self.sizes: set[Size] = set()
        self._samples = [_Lowest(dim, sample) for _ in range(2)]

    def update(self, names: Sequence[str], rows: Tensor, size: Size | None = None) -> None:
        """Add rows `(n, dim)` of the images with these names, which must differ over the whole data set.

        Raises:
            ValueError: another number of names, rows of another width, or that are not finite.
        """
        if len(names) != len(rows):
            raise ValueError(f"{len(rows)} rows need as many names, got {len(names)}")
        places = torch.tensor([self._place(name) for name in names], dtype=torch.float64, device="cpu")
        rows = rows.detach().float().cpu()
        held = places < self.held_out
        self.moments.update(rows[~held])
        if not bool(rows.isfinite().all()):
            raise ValueError("rows hold non-finite values")
        for kept, chosen in zip(self._samples, (~held, held), strict=True):
            kept.add(places[chosen], rows[chosen])
        self.sizes |= {size} if size is not None else set()

    def merge(self, other: FeatureSums) -> None:
        """Add what another one has gathered; `ValueError` when it was made with other options."""
        own, others = ((s.dim, s.held_out, s.size_of_sample, s.seed) for s in (self, other))
        if own != others:
            raise ValueError(f"sums with (dim, held_out, sample, seed) {others} cannot be added to {own}")
        if other.moments.count:
            self.moments.merge(other.moments.count, other.moments.mean(), other.moments.scatter())
        for kept, others_kept in zip(self._samples, other._samples, strict=True):
            kept.add(*others_kept.lowest())
        self.sizes |= other.sizes

    @property
    def fitted(self) -> Tensor:
        """`(m, dim)` float32: a sample of the rows that are fitted, in the order of their places."""
        return self._samples[0].lowest()[1]

    @property
    def held(self) -> Tensor:
        """`(m, dim)` float32: a sample of the rows that are held out, in the order of their places."""
        return self._samples[1].lowest()[1]

    def _place(self, name: str) -> float:
        return int(fingerprint(f"{self.seed} {name}"), 16) / 2**64


class _Lowest:
    """The rows with the lowest places, at most `size` of them; rows wait until there are enough to sort."""

    WAITING = 2048

    def __init__(self, dim: int, size: int) -> None:
        self.size = size
        self._places = [torch.zeros(0, dtype=torch.float64, device="cpu")]
        self._rows = [torch.zeros(0, dim, dtype=torch.float32, device="cpu")]

    def add(self, places: Tensor, rows: Tensor) -> None:
        if len(self._places[0]) == self.size:  # what lies above all that are kept will not come in
            near = places < self._places[0][-1]
            places, rows = places[near], rows[near]
        self._places.append(places)
        self._rows.append(rows)
        if sum(map(len, self._places[1:])) >= self.WAITING:
            self.lowest()

    def lowest(self) -> tuple[Tensor, Tensor]:
        """Places and rows, in the order of the places."""
        places = torch.cat(self._places)
        order = places.argsort(stable=True)[: self.size]
        self._places, self._rows = [places[order]], [torch.cat(self._rows)[order]]
        return self._places[0], self._rows[0]
