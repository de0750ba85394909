"""How well a metric agrees with people, with intervals that know what the ratings share.

The statistics are those of `qa_hooks.ratings.statistics`, the intervals those of `qa_hooks.ratings.jackknife`. Two
metrics are compared on the same rows with the same clusters left out, so what they share cancels; of many comparisons
the p-values are corrected after Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from qa_hooks.functional.clusters import NO_ERROR, Measured
from qa_hooks.functional.intervals import jackknife_error, t_interval, t_quantile
from qa_hooks.ratings.jackknife import Clusters, measure
from qa_hooks.ratings.statistics import STATISTICS, Rows, vector

Numbers = Tensor | Sequence[float] | Rows


class Agreement(NamedTuple):
    """A statistic with its interval, of `n` images in `clusters` contents; `float()` gives the value.

    `ties` is the share of the pairs in which the metric sees no difference; of "accuracy" only.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int
    ties: float = 0.0

    def __float__(self) -> float:
        return self.value


class MetricDifference(NamedTuple):
    """How much more metric `a` agrees with people than metric `b`; `p` is corrected for all comparisons made."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float


def agreement(
    scores: Numbers,
    goodness: Numbers,
    *,
    statistic: str = "srcc",
    clusters: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """How well scores agree with people's ratings.

    Args:
        scores: `(n,)` of a metric, higher is better (a scorer's `goodness`).
        goodness: `(n,)` of people, higher is better (`Ratings.goodness`).
        statistic: "srcc", "krcc", "plcc", "plcc_logistic" or "accuracy".
        clusters: the content of each image; without it every image counts as independent ("accuracy" needs it).
        groups: the type, level or content of each image: the statistic is computed within each and averaged.
        confidence: of the interval.
        seed: of the division into blocks, where there are more than 200 clusters.

    Raises:
        ValueError: lengths that differ, numbers that are not finite, a metric or ratings without any spread, fewer
            than five clusters, an unknown statistic.

    Example:
        >>> import torch
        >>> truth = torch.arange(60.0)
        >>> found = agreement(truth + torch.arange(60) % 7, truth, clusters=[i // 6 for i in range(60)])
        >>> bool(found.low < found.value <= found.high <= 1)
        True
    """
    (measured,), n = _measured({"": scores}, goodness, statistic, clusters, groups, seed)
    return Agreement(*measured.interval(confidence), n, measured.clusters, measured.ties)


def compare_metrics(
    scores: Mapping[str, Numbers],
    goodness: Numbers,
    *,
    statistic: str = "srcc",
    clusters: Sequence[Hashable] | None = None,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[MetricDifference]:
    """The best metric against every other.

    The metrics that cannot be told from the best are those whose p exceeds `1 - confidence`.

    Args:
        scores: `(n,)` of each metric by its name, higher is better.
        goodness, statistic, clusters, groups, confidence, seed: as in `agreement`.

    Returns:
        One difference for each metric but the best, the smallest difference first.

    Example:
        >>> import torch
        >>> truth, noise = torch.arange(60.0), torch.randn(60, generator=torch.Generator().manual_seed(0))
        >>> compare_metrics({"good": truth + noise, "noise": noise}, truth)[0].a
        'good'
    """
    if len(scores) < 2:
        raise ValueError(f"two metrics or more are compared, got {list(scores)}")
    measured, _ = _measured(scores, goodness, statistic, clusters, groups, seed)
    return differences(dict(zip(scores, measured, strict=True)), confidence)


def differences(measured: Mapping[str, Measured], confidence: float) -> list[MetricDifference]:
    """The best of several measured metrics against every other, as `compare_metrics`.

    Where no left-out content changes a difference, its error is not 0 but follows from the two metrics' own intervals,
    as if they were independent (Zou 2007).
    """
    from scipy.special import stdtr

    best = max(measured, key=lambda name: measured[name].value)
    found = []
    for name, other in measured.items():
        if name != best:
            value = measured[best].value - other.value
            error = jackknife_error((measured[best].without - other.without).tolist())
            degrees = len(other.without) - 1
            if error < NO_ERROR:
                better, worse = measured[best].interval(confidence), other.interval(confidence)
                reach = math.hypot(better.value - better.low, worse.high - worse.value)
                error = max(reach, NO_ERROR) / t_quantile(degrees, confidence)
            interval = t_interval(value, error, degrees=degrees, confidence=confidence)
            p = 2 * float(stdtr(degrees, -value / error))
            found.append(MetricDifference(best, name, *interval, p))
    corrected = _holm([row.p for row in found])
    found = [row._replace(p=p) for row, p in zip(found, corrected, strict=True)]
    return sorted(found, key=lambda row: row.difference)


def _holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m is multiplied by m - k + 1, and the order is kept."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def _measured(
    scores: Mapping[str, Numbers],
    goodness: Numbers,
    statistic: str,
    clusters: Sequence[Hashable] | None,
    groups: Sequence[Hashable] | None,
    seed: int,
) -> tuple[list[Measured], int]:
    if statistic not in STATISTICS:
        raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
    if statistic == "accuracy" and clusters is None:
        raise ValueError("accuracy compares images of one content: pass clusters=")
    truth = vector("goodness", goodness)
    metrics = {name: vector(name or "scores", values) for name, values in scores.items()}
    for name, values in {**metrics, "groups": truth if groups is None else groups}.items():
        if len(values) != len(truth):
            raise ValueError(f"{name or 'scores'} has {len(values)} values for {len(truth)} ratings")
    rows = Clusters(clusters, len(truth), seed=seed)
    return [measure(values, truth, statistic, rows, groups) for values in metrics.values()], len(truth)
