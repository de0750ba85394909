"""The mean of values that come in clusters, with an interval that knows it.

Pairs of one picture are not independent: a metric that fails on one picture fails on all its pairs. So whole clusters
are drawn, with replacement. The quantiles are moved outwards so that few clusters do not make a short interval
(Hesterberg 2015, section 4).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.intervals import Interval, t_quantile
from qa_hooks.functional.numerics import as_doubles

FEWEST = 5


def cluster_interval(
    values: Tensor | Sequence[float],
    clusters: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """The mean over all values, and its interval.

    Args:
        values: `(n,)`, finite; for an accuracy 1, 0, and 1/2 for a tie.
        clusters: n labels; values with one label belong together. Below five clusters the interval is NaN.
        confidence: between 0 and 1.
        draws: bootstrap samples.
        seed: of them; the global random state is not touched.

    Raises:
        ValueError: no values, values that are not finite, another number of labels.

    Example:
        >>> found = cluster_interval([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0], list("aabbcde"))
        >>> round(found.value, 3), found.low < found.value < found.high
        (0.714, True)
    """
    from scipy.stats import norm

    numbers = as_doubles(values).numpy()
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"values must be finite numbers (n,) with n > 0, got the shape {numbers.shape}")
    if len(clusters) != len(numbers):
        raise ValueError(f"clusters has {len(clusters)} labels for {len(numbers)} values")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    places = {label: place for place, label in enumerate(dict.fromkeys(clusters))}
    members = np.array([places[label] for label in clusters])
    sums, counts = np.bincount(members, numbers), np.bincount(members)
    value, g = float(numbers.mean()), len(places)
    if g < FEWEST:
        return Interval(value, float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(0, g, (check_count("draws", draws), g))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    share = float(norm.cdf(-np.sqrt(g / (g - 1)) * t_quantile(g - 1, confidence)))
    low, high = np.quantile(means, [share, 1 - share])
    return Interval(value, min(float(low), value), max(float(high), value))
