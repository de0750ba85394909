"""How well a metric agrees with people, with intervals that know what the ratings share.

    srcc            Spearman's rank correlation
    krcc            Kendall's tau-b
    plcc            Pearson's correlation of the scores as they are
    plcc_logistic   Pearson's correlation after a logistic curve of four parameters (VQEG 2000), fitted once on all rows
    accuracy        the share of pairs within a content that the metric orders as people do; a tie of the metric counts
                    one half, ties of people are left out

Images of one content (one reference, one prompt) are not independent: a metric that fails on one content fails on all
its images. So whole contents are drawn, with replacement, and the statistic is computed anew for each draw. The
quantiles are moved outwards so that few clusters do not make a short interval (Hesterberg 2015, section 4). Two metrics
are compared on the same draws, and of many comparisons the p-values are corrected after Holm (1979).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.intervals import t_quantile

Rows = NDArray[np.float64]
FEWEST_CLUSTERS = 5
STATISTICS = ("srcc", "krcc", "plcc", "plcc_logistic", "accuracy")


class Agreement(NamedTuple):
    """A statistic with its interval, of `n` images in `clusters` contents; `float()` gives the value."""

    value: float
    low: float
    high: float
    n: int
    clusters: int

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
    scores: Tensor | Sequence[float],
    goodness: Tensor | Sequence[float],
    *,
    statistic: str = "srcc",
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Agreement:
    """How well scores agree with people's ratings.

    Args:
        scores: `(n,)` of a metric, higher is better (a scorer's `goodness`).
        goodness: `(n,)` of people, higher is better (`Ratings.goodness`).
        statistic: "srcc", "krcc", "plcc", "plcc_logistic" or "accuracy".
        clusters: the content of each image; without it every image counts as independent ("accuracy" needs it).
        confidence: of the interval.
        draws: of the bootstrap.
        seed: of its draws.

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
    resampled = _Resampled({"": scores}, goodness, statistic, clusters, draws, seed)
    value, found = resampled.values[""], resampled.drawn[""]
    low, high = resampled.interval(found, confidence)
    return Agreement(value, min(low, value), max(high, value), resampled.n, resampled.clusters)


def compare_metrics(
    scores: Mapping[str, Tensor | Sequence[float]],
    goodness: Tensor | Sequence[float],
    *,
    statistic: str = "srcc",
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> list[MetricDifference]:
    """The best metric against every other, on the same draws.

    The metrics that cannot be told from the best are those whose p exceeds `1 - confidence`.

    Args:
        scores: `(n,)` of each metric by its name, higher is better.
        goodness, statistic, clusters, confidence, draws, seed: as in `agreement`.

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
    resampled = _Resampled(scores, goodness, statistic, clusters, draws, seed)
    best = max(resampled.values, key=lambda name: resampled.values[name])
    found = []
    for name, value in resampled.values.items():
        if name != best:
            differences = resampled.drawn[best] - resampled.drawn[name]
            low, high = resampled.interval(differences, confidence)
            tail = (np.sum(differences <= 0) + 1) / (len(differences) + 1)
            found.append(MetricDifference(best, name, resampled.values[best] - value, low, high, min(1.0, 2 * tail)))
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


class _Resampled:
    """A statistic of each metric on all rows, and on the same draws of whole clusters."""

    def __init__(
        self,
        scores: Mapping[str, Tensor | Sequence[float]],
        goodness: Tensor | Sequence[float],
        statistic: str,
        clusters: Sequence[Hashable] | None,
        draws: int,
        seed: int,
    ) -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, got {statistic!r}")
        truth = _vector("goodness", goodness)
        metrics = {name: _vector(name or "scores", values) for name, values in scores.items()}
        for name, values in metrics.items():
            if len(values) != len(truth):
                raise ValueError(f"{name or 'scores'} has {len(values)} values for {len(truth)} ratings")
        self.n = len(truth)
        members = _members(clusters, self.n, needed=statistic == "accuracy")
        self.clusters = len(members)
        generator = np.random.default_rng(seed)
        drawn = generator.integers(0, self.clusters, (check_count("draws", draws), self.clusters))
        self.values: dict[str, float] = {}
        self.drawn: dict[str, Rows] = {}
        for name, values in metrics.items():
            if statistic == "accuracy":
                correct, pairs = _pairs_by_cluster(values, truth, members)
                self.values[name] = float(correct.sum() / pairs.sum())
                self.drawn[name] = correct[drawn].sum(1) / np.maximum(pairs[drawn].sum(1), 1)
                continue
            if statistic == "plcc_logistic":
                values = _logistic(values, truth)
            correlate = CORRELATIONS[statistic]
            self.values[name] = correlate(values, truth)
            rows = [np.concatenate([members[cluster] for cluster in draw]) for draw in drawn]
            self.drawn[name] = np.array([correlate(values[row], truth[row]) for row in rows])

    def interval(self, drawn: Rows, confidence: float) -> tuple[float, float]:
        return interval_of_draws(drawn, self.clusters, confidence)


def interval_of_draws(drawn: Rows, clusters: int, confidence: float) -> tuple[float, float]:
    """Quantiles of a statistic's draws of so many clusters, moved outwards where these are few."""
    from scipy.stats import norm

    share = float(norm.cdf(-np.sqrt(clusters / (clusters - 1)) * t_quantile(clusters - 1, confidence)))
    low, high = np.nanquantile(drawn, [share, 1 - share])
    return float(low), float(high)


def _vector(name: str, values: Tensor | Sequence[float]) -> Rows:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} must have the shape (n,) with n > 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite: leave them out")
    if (array == array[0]).all():
        raise ValueError(f"{name} is {array[0]:g} everywhere: a constant agrees with nothing")
    return array


def _members(clusters: Sequence[Hashable] | None, n: int, *, needed: bool) -> list[NDArray[np.int64]]:
    if clusters is None and needed:
        raise ValueError("accuracy compares images of one content: pass clusters=")
    labels = list(range(n)) if clusters is None else list(clusters)
    if len(labels) != n:
        raise ValueError(f"clusters has {len(labels)} values for {n} images")
    groups: dict[Hashable, list[int]] = {}
    for row, label in enumerate(labels):
        groups.setdefault(label, []).append(row)
    if len(groups) < FEWEST_CLUSTERS:
        raise ValueError(f"an interval needs at least {FEWEST_CLUSTERS} contents, got {len(groups)}")
    return [np.array(rows) for rows in groups.values()]


def _pairs_by_cluster(values: Rows, truth: Rows, members: list[NDArray[np.int64]]) -> tuple[Rows, Rows]:
    """Of each cluster: how many decided pairs the metric orders rightly (a tie is half), and how many there are."""
    correct, pairs = [], []
    for rows in members:
        a, b = np.triu_indices(len(rows), 1)
        people = np.sign(truth[rows][a] - truth[rows][b])
        metric = np.sign(values[rows][a] - values[rows][b])
        decided = people != 0
        correct.append(float((0.5 + 0.5 * people * metric)[decided].sum()))
        pairs.append(float(decided.sum()))
    if not sum(pairs):
        raise ValueError("no two images of one content have different ratings")
    return np.array(correct), np.array(pairs)


def _spearman(x: Rows, y: Rows) -> float:
    from scipy.stats import rankdata

    return _pearson(rankdata(x), rankdata(y))


def _kendall(x: Rows, y: Rows) -> float:
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def _pearson(x: Rows, y: Rows) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


CORRELATIONS: dict[str, Callable[[Rows, Rows], float]] = {
    "srcc": _spearman, "krcc": _kendall, "plcc": _pearson, "plcc_logistic": _pearson
}  # fmt: skip


def _logistic(x: Rows, y: Rows) -> Rows:
    """`(b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2`, fitted by least squares."""
    from scipy.optimize import curve_fit
    from scipy.special import expit

    def curve(v: Any, top: float, bottom: float, middle: float, width: float) -> Any:
        return (top - bottom) * expit((v - middle) / (abs(width) + 1e-12)) + bottom

    start = (y.max(), y.min(), float(np.median(x)), float(x.std()))
    try:
        fitted, _ = curve_fit(curve, x, y, start, maxfev=20_000)
    except RuntimeError as error:
        raise ValueError(f"no logistic curve could be fitted ({error}); use plcc") from error
    return np.asarray(curve(x, *fitted), dtype=np.float64)
