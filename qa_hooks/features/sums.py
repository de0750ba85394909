"""What a fit needs of more features than memory holds: sums that can be added, and a sample chosen by name.

An image's place is a number in [0, 1) that its name and the seed decide. Places below `held_out` belong to the
calibration and take no part in the fit; of both sides those with the lowest places are kept as a sample. So the result
does not depend on how the images were divided, nor on the order in which the parts were added: the samples are the same
to the last bit, the moments to the rounding of float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.hashing import fingerprint
from qa_hooks.features.moments import Moments

Size = tuple[int, int]


class FeatureSums:
    """Moments of all features, and samples of them, gathered part by part and mergeable.

    Args:
        dim: of the features.
        held_out: the share of the images that calibrate and take no part in the fit.
        sample: rows that are kept, at most, of those that are fitted and of those that are held out.
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
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be a share in [0, 1), got {held_out!r}")
        self.dim, self.held_out, self.seed = dim, float(held_out), int(seed)
        self.size_of_sample = check_count("sample", sample)
        self.moments = Moments(dim)
        self.sizes: set[Size] = set()
        nothing = torch.zeros(0, dim, dtype=torch.float32, device="cpu")
        self._samples = [(torch.zeros(0, dtype=torch.float64, device="cpu"), nothing) for _ in range(2)]

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
        for number, chosen in enumerate((~held, held)):
            self._keep(number, places[chosen], rows[chosen])
        self.sizes |= {size} if size is not None else set()

    def merge(self, other: FeatureSums) -> None:
        """Add what another one has gathered; `ValueError` when it was made with other options."""
        own, others = ((s.dim, s.held_out, s.size_of_sample, s.seed) for s in (self, other))
        if own != others:
            raise ValueError(f"sums with (dim, held_out, sample, seed) {others} cannot be added to {own}")
        if other.moments.count:
            self.moments.merge(other.moments.count, other.moments.mean(), other.moments.scatter())
        for number, (places, rows) in enumerate(other._samples):
            self._keep(number, places, rows)
        self.sizes |= other.sizes

    @property
    def fitted(self) -> Tensor:
        """`(m, dim)` float32: a sample of the rows that are fitted, in the order of their places."""
        return self._samples[0][1]

    @property
    def held(self) -> Tensor:
        """`(m, dim)` float32: a sample of the rows that are held out, in the order of their places."""
        return self._samples[1][1]

    def _place(self, name: str) -> float:
        return int(fingerprint(f"{self.seed} {name}"), 16) / 2**64

    def _keep(self, number: int, places: Tensor, rows: Tensor) -> None:
        places, rows = (torch.cat(pair) for pair in zip(self._samples[number], (places, rows), strict=True))
        order = places.argsort(stable=True)[: self.size_of_sample]
        self._samples[number] = (places[order], rows[order])
