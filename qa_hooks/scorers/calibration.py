"""Maps goodness to [0, 1], fitted once on held-out real images and then frozen.

Refitting for each checkpoint would destroy comparability, and fitting on the images that a scorer was fitted on would
be optimistic; neither the GIQA paper (2020) nor its code states a rule, so these are ours and are saved with the
scorer.
"""

from __future__ import annotations

import torch
from torch import Tensor

METHODS = ("ecdf", "minmax", "sigmoid")
ECDF_POINTS = 1001
QUANTILES = (0.001, 0.25, 0.5, 0.75, 0.999)  # of "minmax" and "sigmoid"


def check_method(method: str | None) -> None:
    """`ValueError` unless it is the name of a calibration, or None for none."""
    if method is not None and method not in METHODS:
        raise ValueError(f"calibration must be one of {METHODS} or None, got {method!r}")


class Calibration:
    """Goodness `(N,)` -> `(N,)` in [0, 1], higher better.

    - "ecdf": the share of held-out real images that are worse, interpolated linearly between their quantiles, so that a
      real image scores 0.5 on average.
    - "minmax": (g - lo) / (hi - lo), clamped, with the 0.1 % and 99.9 % quantiles.
    - "sigmoid": sigmoid((g - median) / interquartile range); the one with a gradient everywhere.

    Example:
        >>> calibration = Calibration.fit(torch.arange(101.0))
        >>> calibration(torch.tensor([-5.0, 50.0, 200.0]))
        tensor([0.0000, 0.5000, 1.0000])
    """

    def __init__(self, method: str, points: Tensor) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {method!r}")
        count = points.numel()
        if points.ndim != 1 or not (2 <= count <= ECDF_POINTS if method == "ecdf" else count == len(QUANTILES)):
            raise ValueError(f"the points of an {method} calibration cannot have the shape {tuple(points.shape)}")
        if not points.is_floating_point() or not bool(points.isfinite().all() and (points.diff() >= 0).all()):
            raise ValueError("the points of a calibration must be finite and ascend")
        self.method = method
        self.points = points

    @classmethod
    def fit(cls, goodness: Tensor, *, method: str = "ecdf") -> Calibration:
        """Fit on `(n,)` values; `ValueError` when there are fewer than 10, or any is not finite, or all are equal."""
        values = goodness.detach().flatten().double().cpu()
        if values.numel() < 10:
            raise ValueError(f"a calibration needs at least 10 held-out values, got {values.numel()}")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("goodness holds non-finite values")
        if method == "ecdf":
            shares = torch.linspace(0, 1, min(ECDF_POINTS, values.numel()), dtype=torch.float64, device="cpu")
        else:
            shares = torch.tensor(QUANTILES, dtype=torch.float64, device="cpu")
        points = (
            torch.quantile(values, shares)
            if values.numel() < 1_000_000
            else values.sort().values[(shares * (values.numel() - 1)).round().long()]
        )
        if not float(points[-1] - points[0]) > 0:
            raise ValueError("goodness has no spread: all values are equal")
        return cls(method, points)

    def __call__(self, goodness: Tensor) -> Tensor:
        """`(N,)` -> `(N,)` float32 in [0, 1]."""
        values, points = goodness.double(), self.points.to(goodness.device)
        if self.method == "minmax":
            return ((values - points[0]) / (points[-1] - points[0])).clamp(0, 1).float()
        if self.method == "sigmoid":
            spread = torch.maximum(points[3] - points[1], (points[-1] - points[0]) * 1e-6)
            return torch.sigmoid((values - points[2]) / spread).float()
        # The middle of the run of equal points, so that ties count half.
        left = torch.searchsorted(points, values.detach(), right=False)
        right = torch.searchsorted(points, values.detach(), right=True)
        last = points.numel() - 1
        low = (right - 1).clamp(0, last - 1)
        width = (points[low + 1] - points[low]).clamp_min(1e-300)
        between = (low + ((values - points[low]) / width).clamp(0, 1)) / last
        tied = (left + right - 1).clamp(0, 2 * last).double() / (2 * last)
        return torch.where(right > left + 1, tied, between).float()
