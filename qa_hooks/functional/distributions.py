"""How far two sets of numbers are apart: the scores of generated images and of real ones.

KS(a, b)      = max_x |F_a(x) - F_b(x)|                 Kolmogorov 1933, Smirnov 1939; F: the share of values <= x
overlap(a, b) = sum over bins of min(share_a, share_b)  1: the same histogram, 0: nothing in common
"""

from __future__ import annotations

import torch
from torch import Tensor

from qa_hooks._base.checks import arrived, check_count


def ks_distance(a: Tensor, b: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of two sets of finite numbers, `(n,)` and `(m,)`: in [0, 1], 0 when they agree.

    Raises:
        ValueError: a set that is empty, of another shape or not finite.

    Example:
        >>> ks_distance(torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([3.0, 4.0, 5.0, 6.0]))
        0.5
    """
    a, b = _values("a", a).sort().values, _values("b", b).sort().values
    points = torch.cat([a, b])
    shares = [torch.searchsorted(part, points, right=True).double() / len(part) for part in (a, b)]
    return float((shares[0] - shares[1]).abs().max())


def score_histograms(a: Tensor, b: Tensor, *, bins: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Histograms of two sets over the same bins, which span the middle 99 % of the two together.

    Numbers outside are counted in the first or the last bin, so that one outlier does not squeeze all others into a
    single bin.

    Args:
        a, b: finite numbers `(n,)` and `(m,)`.
        bins: how many.

    Returns:
        The edges `(bins + 1,)` and the share of each set in each bin, `(bins,)`, all float64.

    Raises:
        ValueError: a set that is empty, of another shape or not finite.
    """
    a, b, bins = _values("a", a), _values("b", b), check_count("bins", bins)
    # Both sets count alike, whatever their sizes.
    low, high = (
        float(pick(torch.stack([torch.quantile(part, share) for part in (a, b)])))
        for pick, share in ((torch.min, 0.005), (torch.max, 0.995))
    )
    if not high > low:
        low, high = low - 0.5, high + 0.5
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64, device="cpu")
    shares = []
    for part in (a, b):
        places = torch.searchsorted(edges, part, right=True).sub(1).clamp(0, bins - 1)
        shares.append(torch.bincount(places, minlength=bins).double() / len(part))
    return edges, shares[0], shares[1]


def histogram_overlap(a: Tensor, b: Tensor, *, bins: int = 32) -> float:
    """The common area of the histograms of `score_histograms`, in [0, 1].

    The value depends on the number of bins. Two small samples of one distribution stay below 1: about 0.8 with 256
    numbers each and 32 bins.

    Example:
        >>> histogram_overlap(torch.arange(100.0), torch.arange(100.0))
        1.0
    """
    _, first, second = score_histograms(a, b, bins=bins)
    return min(1.0, float(torch.minimum(first, second).sum()))


def _values(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim != 1 or not values.numel():
        raise ValueError(f"{name} must be a tensor (n,) of at least one number, got {arrived(values)}")
    values = values.detach().cpu().double()
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{name} holds {int((~torch.isfinite(values)).sum())} values that are not finite")
    return values
