"""Intervals and verdicts: how far a measured number can be trusted, and whether B is really better than A.

Mean of a sample: the bootstrap percentile interval, with its quantiles moved outwards so that it has the width of
Student's interval on normal data (the plain one is too short by sqrt((n - 1) / n) and ignores that the spread is
estimated):

    quantiles a = Phi(-sqrt(n / (n - 1)) t_{1 - alpha/2, n-1}) and 1 - a            (Hesterberg 2015, section 4)

Difference of two models on the same seeds, prompts or files: the same for the differences b_i - a_i, in which
everything that the pairs share cancels.

Statistic of a set (Frechet distance, KID, precision), theta_(j) without the j-th of g random groups:

    error^2 = (g - 1) / g * sum_j (theta_(j) - mean theta_(.))^2                              (Shao and Tu 1995)

and `value +- t_{g-1} error`. Such an interval is about chance: the spread of the number under other samples of the same
size. It says nothing of bias. A Frechet distance of n images is too large by about c / n, so its interval covers the
expected distance *at this n*; compare equal n only.

Sources: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993; Hesterberg, "What Teachers Should Know About
the Bootstrap", 2015; Shao and Tu, "The Jackknife and Bootstrap", 1995.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, check_share
from qa_hooks._base.random import permutation
from qa_hooks.functional.numerics import as_doubles

_CHUNK = 1 << 22  # numbers drawn at a time
_NORMAL = torch.distributions.Normal(0.0, 1.0)


class Interval(NamedTuple):
    """A measured value and the interval that is meant to hold the true one."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """B minus A, its interval, and what it comes to: "B better", "A better" or "cannot tell"; `n` pairs or images."""

    difference: float
    low: float
    high: float
    verdict: str
    n: int


def bootstrap_interval(
    values: Tensor | Sequence[float], *, confidence: float = 0.95, draws: int = 1000, seed: int = 0
) -> Interval:
    """The mean of independent values and its interval.

    Values that are all equal say nothing about how far others may lie: the ends of their interval are NaN.

    Args:
        values: `(n,)`, n at least 2.
        confidence: between 0 and 1.
        draws: bootstrap samples.
        seed: of them; the global random state is not touched.

    Raises:
        ValueError: fewer than two values, values that are not finite, a confidence outside (0, 1).

    Example:
        >>> interval = bootstrap_interval(torch.arange(101.0))
        >>> interval.value, 40 < interval.low < 45, 55 < interval.high < 60
        (50.0, True, True)
    """
    sample = _values("values", values)
    check_count("draws", draws)
    count = len(sample)
    value = float(sample.mean())
    if bool((sample == sample[0]).all()):
        return Interval(float(sample[0]), math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    centred, means = sample - value, []
    for rows in torch.arange(draws, device="cpu").split(max(1, _CHUNK // count)):
        chosen = torch.randint(count, (len(rows), count), generator=generator, device="cpu")
        means.append(centred[chosen].mean(1))
    tail = -math.sqrt(count / (count - 1)) * t_quantile(count - 1, confidence)
    share = float(_NORMAL.cdf(torch.tensor(tail, dtype=torch.float64, device="cpu")))
    low, high = torch.quantile(
        torch.cat(means), torch.tensor([share, 1 - share], dtype=torch.float64, device="cpu")
    ).tolist()
    return Interval(value, value + low, value + high)


def paired_difference(
    a: Tensor | Sequence[float],
    b: Tensor | Sequence[float],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Is B better than A, given values of both for the same seeds, prompts or files?

    Args:
        a, b: `(n,)` each, in the same order.
        higher_is_better: the direction of the values.
        confidence, draws, seed: as in `bootstrap_interval`.

    Returns:
        The mean of `b - a` with its interval; a verdict when the interval leaves out zero. Where all differences are
        equal there is no interval (NaN), and the sign test of n pairs gives the verdict.

    Raises:
        ValueError: lengths that differ, or as in `bootstrap_interval`.

    Example:
        >>> a = torch.rand(200, generator=torch.Generator().manual_seed(0))
        >>> paired_difference(a, a + 0.01).verdict, paired_difference(a, a.flip(0)).verdict
        ('B better', 'cannot tell')
    """
    first, second = _values("a", a), _values("b", b)
    if len(first) != len(second):
        raise ValueError(
            f"a and b must be values of the same items in the same order, got {len(first)} and {len(second)}"
        )
    interval = bootstrap_interval(second - first, confidence=confidence, draws=draws, seed=seed)
    if math.isnan(interval.low):
        chance = 2.0 ** (1 - len(first))  # that all pairs point the same way
        return _without_interval(interval.value, chance, higher_is_better, confidence, len(first))
    return compare_interval(interval, higher_is_better=higher_is_better, n=len(first))


def independent_difference(
    a: Tensor | Sequence[float],
    b: Tensor | Sequence[float],
    *,
    higher_is_better: bool = True,
    confidence: float = 0.95,
) -> Comparison:
    """Is B better than A, given values of both for different seeds, prompts or files?

    Args, raises: as `paired_difference`; the lengths may differ.

    Returns:
        The difference of the means with Student's interval, with the degrees of freedom of the shorter one (and so on
        the safe side); a verdict when the interval leaves out zero. Where all values of A are equal, and all of B,
        there is no interval (NaN), and the rank test gives the verdict.

    Example:
        >>> independent_difference([1.0, 2.0, 3.0], [11.0, 12.0, 13.0, 14.0]).verdict
        'B better'
    """
    first, second = _values("a", a), _values("b", b)
    n = min(len(first), len(second))
    if bool((first == first[0]).all()) and bool((second == second[0]).all()):
        chance = 2 / math.comb(len(first) + len(second), n)  # that one set lies wholly above the other
        return _without_interval(float(second[0] - first[0]), chance, higher_is_better, confidence, n)
    error = math.sqrt(float(first.var()) / len(first) + float(second.var()) / len(second))
    interval = t_interval(float(second.mean() - first.mean()), error, degrees=n - 1, confidence=confidence)
    return compare_interval(interval, higher_is_better=higher_is_better, n=n)


def compare_interval(difference: Interval, *, higher_is_better: bool, n: int) -> Comparison:
    """The verdict on an interval of B minus A.

    Example:
        >>> compare_interval(Interval(-2.0, -3.0, -1.0), higher_is_better=False, n=100).verdict
        'B better'
    """
    verdict = "cannot tell"
    if difference.low > 0 or difference.high < 0:
        verdict = "B better" if (difference.low > 0) == higher_is_better else "A better"
    return Comparison(*difference, verdict, n)


def _without_interval(
    difference: float, chance: float, higher_is_better: bool, confidence: float, n: int
) -> Comparison:
    """A verdict on equal differences, which chance alone gives so often where A and B are the same."""
    sure = difference != 0 and chance <= 1 - confidence
    better = "B better" if (difference > 0) == higher_is_better else "A better"
    return Comparison(difference, math.nan, math.nan, better if sure else "cannot tell", n)


def group_jackknife(
    statistic: Callable[[Tensor], float | Tensor], count: int, *, groups: int = 10, seed: int = 0
) -> tuple[float, float]:
    """A statistic of a set and its standard error, from `groups + 1` evaluations.

    Args:
        statistic: `statistic(indices)` of the items at these positions, `(m,)` int64, ascending; smooth in them, so no
            median and no extreme. For a paired difference: B's value minus A's value at the same indices.
        count: items in the set, at least `groups`.
        groups: how many; the error itself is known to about `1 / sqrt(2 (groups - 1))` of itself, 24 % for 10.
        seed: of the division into groups.

    Returns:
        The value for the whole set and its standard error; `t_interval(value, error, degrees=groups - 1)` is the
        interval.

    Raises:
        ValueError: fewer items than groups, fewer than two groups.

    Example:
        >>> x = torch.arange(100.0)
        >>> value, error = group_jackknife(lambda rows: x[rows].mean(), 100)
        >>> value, 2 < error < 4
        (49.5, True)
    """
    subsets = jackknife_subsets(count, groups=groups, seed=seed)
    value = float(statistic(torch.arange(count, device="cpu")))
    return value, jackknife_error([float(statistic(rows)) for rows in subsets])


def jackknife_subsets(count: int, *, groups: int = 10, seed: int = 0) -> list[Tensor]:
    """The positions without each of the groups, ascending; for `group_jackknife` of several statistics at once.

    Example:
        >>> [len(rows) for rows in jackknife_subsets(10, groups=3)]
        [6, 7, 7]
    """
    check_count("groups", groups, least=2)
    if count < groups:
        raise ValueError(f"a jackknife of {groups} groups needs at least as many items, got {count}")
    order = permutation(count, seed)
    subsets = []
    for group in order.tensor_split(groups):
        kept = torch.ones(count, dtype=torch.bool, device="cpu")
        kept[group] = False
        subsets.append(kept.nonzero().flatten())
    return subsets


def jackknife_error(values: Tensor | Sequence[float]) -> float:
    """The standard error of a statistic from its values without each of the groups."""
    without = _values("values", values)
    return math.sqrt((len(without) - 1) * float(without.var(unbiased=False)))


def t_interval(value: float, error: float, *, degrees: int = 9, confidence: float = 0.95) -> Interval:
    """`value +- t error`: Student's interval with so many degrees of freedom.

    Example:
        >>> t_interval(10.0, 1.0, degrees=9).high
        12.262157...
    """
    width = t_quantile(degrees, confidence) * error
    return Interval(value, value - width, value + width)


def wilson_interval(share: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share of n independent trials, which holds also near 0 and 1 (Wilson 1927).

    Example:
        >>> wilson_interval(1.0, 100).low
        0.963006...
    """
    check_count("n", n)
    check_share("share", share, zero=True, one=True)
    check_share("confidence", confidence)
    z = float(_NORMAL.icdf(torch.tensor((1 + confidence) / 2, dtype=torch.float64, device="cpu")))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return Interval(share, min(middle - width, share), max(middle + width, share))


def t_quantile(degrees: int, confidence: float) -> float:
    """How many standard errors reach to each side of the middle in Student's distribution."""
    from scipy.special import stdtrit  # scikit-learn brings it

    check_count("degrees", degrees)
    check_share("confidence", confidence)
    return float(stdtrit(degrees, (1 + confidence) / 2))


def _values(name: str, values: Tensor | Sequence[float]) -> Tensor:
    sample = as_doubles(values)
    if sample.ndim != 1 or len(sample) < 2:
        raise ValueError(f"{name} must be (n,) with n at least 2, got {tuple(sample.shape)}")
    if not bool(sample.isfinite().all()):
        bad = int((~sample.isfinite()).sum())
        raise ValueError(f"{bad} of {len(sample)} values in {name} are not finite: leave them out first, of pairs both")
    return sample
