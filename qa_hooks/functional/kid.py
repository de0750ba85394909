"""The kernel distance (KID): the squared maximum mean discrepancy of two sets of features, without bias at any size.

    k(a, b) = (a.b / d + 1)^3
    MMD^2   = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

It may be negative: its mean over draws is zero for sets of one distribution. Papers print it times 1000.

The standard error is the jackknife's: each row is left out once, which the sums of the kernel's rows give for free,

    error^2 = sum over both sets of  (n - 1) / n * sum_i (MMD^2_(i) - mean MMD^2_(.))^2

The deviation over subsets that others print is none: subsets of one sample share their rows, and its size depends on
theirs. With subsets, the jackknife's square is averaged over them and scaled from the subset's size to the set's, and
the noise of the choice of subsets, their variance over their number, is added. Where the distributions are equal the
jackknife is known to be too large, by about sqrt(2): it errs on the safe side.

Features far from the origin, as rectified ones are, have large products with small differences, which float32 loses. So
rows are centred by a common c, x = c + u, and x.y = u.v + u.c + v.c + c.c, where only u.v is multiplied in float32.

Sources: Gretton et al., "A Kernel Two-Sample Test", 2012 (the estimator); Binkowski, Sutherland, Arbel, Gretton,
"Demystifying MMD GANs", 2018 (the kernel); Arvesen, "Jackknifing U-Statistics", 1969 (the error).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.numerics import product_dtype, to_float64

BLOCK = 384  # rows of the kernel matrix at a time


class KernelDistance(NamedTuple):
    """The squared distance, in the kernel's units (not times 1000), and its standard error."""

    value: float
    error: float


def kernel_distance(
    real: Tensor,
    fake: Tensor,
    *,
    subsets: int | None = None,
    subset_size: int = 1000,
    generator: torch.Generator | None = None,
    degree: int = 3,
    fixed_real: bool = False,
) -> KernelDistance:
    """The unbiased squared MMD with the kernel of KID.

    Args:
        real: `(n, d)`.
        fake: `(m, d)`.
        subsets: None, the default, uses all rows, at once and without noise of a choice. A number gives what others
            report: the mean over so many subsets of `min(subset_size, n, m)` rows of each set.
        subset_size: of each subset, drawn without replacement.
        generator: draws the subsets, of `real` and of `fake` in turn; by default one with seed 0.
        degree: of the kernel.
        fixed_real: the real rows are the yardstick of many comparisons, so the error leaves out their share.

    Raises:
        ValueError: shapes that do not fit, fewer than 3 rows, features that are not finite.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> round(kernel_distance(x, x + 1).value, 3)
        111.667
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or not real.shape[1]:
        raise ValueError(f"features must be (n, d) and (m, d), got {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) < 3:
        raise ValueError(f"a kernel distance needs at least 3 rows of each, got {len(real)} and {len(fake)}")
    check_count("degree", degree)
    if real.device.type == "mps":  # which has no float64
        real = real.cpu()
    real, fake = real.detach(), fake.detach().to(real.device)
    for name, rows in (("real", real), ("fake", fake)):
        if not bool(torch.isfinite(rows).all()):
            raise ValueError(f"{name} holds non-finite features")
    if subsets is None:
        everything = [torch.ones(1, len(rows), dtype=torch.float64, device=rows.device) for rows in (real, fake)]
        value, *without = squared_mmd(real, fake, everything[0], everything[1], degree)
        of_real, of_fake = (float(_variances(w, e)) for w, e in zip(without, everything, strict=True))
        return KernelDistance(float(value), math.sqrt(of_fake + (0.0 if fixed_real else of_real)))
    check_count("subsets", subsets)
    size = min(check_count("subset_size", subset_size, least=3), len(real), len(fake))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    drawn = [
        [torch.randperm(len(rows), generator=generator, device="cpu")[:size].to(rows.device) for rows in (real, fake)]
        for _ in range(subsets)
    ]
    values, of_reals, of_fakes = _over_subsets(real, fake, drawn, degree)
    variance = float(of_fakes.mean()) * size / len(fake)
    variance += 0.0 if fixed_real else float(of_reals.mean()) * size / len(real)
    if subsets > 1:
        variance += float(values.var()) / subsets
    return KernelDistance(float(values.mean()), math.sqrt(variance))


def _over_subsets(real: Tensor, fake: Tensor, drawn: list[list[Tensor]], degree: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distance of each subset and its two variances: one by one, or out of the kernel of all rows (less work)."""
    size = len(drawn[0][0])
    if (len(real) + len(fake)) ** 2 > len(drawn) * (2 * size) ** 2:
        ones = torch.ones(1, size, dtype=torch.float64, device=real.device)
        parts = [squared_mmd(real[rows], fake[others], ones, ones, degree) for rows, others in drawn]
        values, of_real, of_fake = (torch.cat(part) for part in zip(*parts, strict=True))
        return values, _variances(of_real, ones), _variances(of_fake, ones)
    chosen = [torch.zeros(len(drawn), len(rows), dtype=torch.float64, device=real.device) for rows in (real, fake)]
    for subset, pair in enumerate(drawn):
        for weights, rows in zip(chosen, pair, strict=True):
            weights[subset, rows] = 1
    values, of_real, of_fake = squared_mmd(real, fake, chosen[0], chosen[1], degree)
    return values, _variances(of_real, chosen[0]), _variances(of_fake, chosen[1])


def _variances(without: Tensor, chosen: Tensor) -> Tensor:
    """`(subsets,)`: the jackknife's, from the values without each of the chosen rows."""
    chosen = chosen.to(without)
    count = chosen.sum(1, keepdim=True)
    mean = (without * chosen).sum(1, keepdim=True) / count
    squares = ((without - mean).square() * chosen).sum(1, keepdim=True)
    return (squares * (count - 1) / count)[:, 0]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows minus the common origin c, and what turns their products into those of the features (float64, by 1 / d)."""

    centred: Tensor
    offsets: Tensor  # u.c, and half of c.c

    def __getitem__(self, rows: slice) -> _Rows:
        return _Rows(self.centred[rows], self.offsets[rows])


def kernel_sums(rows: Tensor, degree: int = 3) -> Tensor:
    """For each row the sum of its kernel with all others, `(n,)` float64: what many comparisons with one set share.

    Example:
        >>> kernel_sums(torch.tensor([[1.0], [2.0], [3.0]]))
        tensor([ 91., 370., 407.], dtype=torch.float64)
    """
    centred = _centred(rows, rows)[0]
    return _sums_within(centred, torch.ones_like(centred.offsets)[None], degree)[0]


def squared_mmd(
    x: Tensor, y: Tensor, chosen_x: Tensor, chosen_y: Tensor, degree: int = 3, *, sums_x: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The unbiased estimates of several subsets at once, out of one pass over the kernel.

    Args:
        x, y: `(n, d)` and `(m, d)`, finite.
        chosen_x, chosen_y: `(subsets, n)` and `(subsets, m)` float64, one where a row belongs to a subset and zero
            elsewhere; one row of either serves all subsets of the other.
        degree: of the kernel.
        sums_x: `kernel_sums(x, degree)` where they are known already and all of x is chosen.

    Returns:
        `(subsets,)`, the estimates; and `(subsets, n)` and `(subsets, m)`, the estimates without each row of x and of
        y (without meaning where a row does not belong to the subset).

    Example:
        >>> rows, ones = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.ones(1, 4).double()
        >>> round(float(squared_mmd(rows, rows + 1, ones, ones)[0]), 3)
        111.667
    """
    rows_x, rows_y = _centred(x, y)
    chosen_x, chosen_y = chosen_x.to(rows_x.offsets), chosen_y.to(rows_x.offsets)
    within_x = _sums_within(rows_x, chosen_x, degree) if sums_x is None else sums_x.to(chosen_x)[None]
    within_y = _sums_within(rows_y, chosen_y, degree)
    across_x, across_y = _sums_across(rows_x, rows_y, chosen_x, chosen_y, degree)
    n, m, across = (part.sum(1, keepdim=True) for part in (chosen_x, chosen_y, across_x))
    total_x, total_y = (within.sum(1, keepdim=True) for within in (within_x, within_y))
    own_x, own_y = total_x / (n * (n - 1)), total_y / (m * (m - 1))
    without = [
        (total - 2 * within) / ((own - 1) * (own - 2)) + of_other - 2 * (across - sums) / ((own - 1) * other)
        for within, total, sums, own, of_other, other in (
            (within_x, total_x, across_x, n, own_y, m),
            (within_y, total_y, across_y, m, own_x, n),
        )
    ]
    return (own_x + own_y - 2 * across / (n * m))[:, 0], without[0], without[1]


def _centred(x: Tensor, y: Tensor) -> tuple[_Rows, _Rows]:
    if x.device.type == "mps":
        x = x.cpu()
    y, dtype = y.to(x.device), product_dtype(x, y)
    origin = (_mean(x) + _mean(y)) / 2
    sides = []
    for rows in (x, y):
        centred = torch.cat([(to_float64(part) - origin).to(dtype) for part in rows.split(BLOCK)])
        offsets = torch.cat([to_float64(part) @ origin for part in centred.split(BLOCK)]) + origin @ origin / 2
        sides.append(_Rows(centred, offsets / len(origin)))
    return sides[0], sides[1]


def _mean(rows: Tensor) -> Tensor:
    """`(d,)` float64, in blocks that stay in the cache."""
    return torch.stack([to_float64(part).sum(0) for part in rows.split(BLOCK)]).sum(0) / len(rows)


def _kernel(x: _Rows, y: _Rows, degree: int) -> Tensor:
    """`(n, m)` float64."""
    products = to_float64(x.centred @ y.centred.T).div_(x.centred.shape[1])
    return products.add_(x.offsets[:, None]).add_(y.offsets + 1).pow_(degree)


def _sums_within(x: _Rows, chosen: Tensor, degree: int) -> Tensor:
    """`(subsets, n)`: for each row the sum over all others of its subset; each pair is computed once."""
    sums, count = torch.zeros_like(chosen), len(x.centred)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        kernel = _kernel(x[start:stop], x[start:], degree).fill_diagonal_(0)
        sums[:, start:stop] += chosen[:, start:] @ kernel.T
        sums[:, stop:] += chosen[:, start:stop] @ kernel[:, stop - start :]
    return sums * chosen


def _sums_across(x: _Rows, y: _Rows, chosen_x: Tensor, chosen_y: Tensor, degree: int) -> tuple[Tensor, Tensor]:
    """`(subsets, n)` and `(subsets, m)`: the sums over the rows of the other set."""
    rows, columns = [], torch.zeros_like(chosen_y)
    for start in range(0, len(x.centred), BLOCK):
        part = slice(start, start + BLOCK)
        kernel = _kernel(x[part], y, degree)
        rows.append(chosen_y @ kernel.T)
        columns = columns + chosen_x[:, part] @ kernel
    return torch.cat(rows, 1) * chosen_x, columns * chosen_y
