"""The statistics of agreement, as pure functions of scores and ratings.

srcc            Spearman's rank correlation
krcc            Kendall's tau-b
plcc            Pearson's correlation of the scores as they are
plcc_logistic   Pearson's correlation after a logistic curve of four parameters (VQEG 2000), fitted once on all rows
accuracy        the share of pairs within a content that the metric orders as people do; a tie of the metric counts
                one half, ties of people are left out
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Rows = NDArray[np.float64]
STATISTICS = ("srcc", "krcc", "plcc", "plcc_logistic", "accuracy")


def vector(name: str, values: Tensor | Sequence[float] | Rows) -> Rows:
    """`(n,)` float64 with some spread; `ValueError` for anything else, with the name of what it is."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} must have the shape (n,) with n > 1, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} values that are not finite: leave them out")
    if (array == array[0]).all():
        raise ValueError(f"{name} is {array[0]:g} everywhere: a constant agrees with nothing")
    return array


def pearson(x: Rows, y: Rows) -> float:
    """NaN where either is constant."""
    x, y = x - x.mean(), y - y.mean()
    size = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / size) if size > 0 else float("nan")


def spearman(x: Rows, y: Rows) -> float:
    """Pearson's correlation of the ranks; equal values share their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))


def kendall(x: Rows, y: Rows) -> float:
    """Tau-b, which corrects for ties of both."""
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


CORRELATIONS: dict[str, Callable[[Rows, Rows], float]] = {
    "srcc": spearman, "krcc": kendall, "plcc": pearson, "plcc_logistic": pearson
}  # fmt: skip


def credits(values: Rows, truth: Rows, members: Sequence[NDArray[np.int64]]) -> tuple[Rows, Rows, float]:
    """The pairs of each cluster: how many the metric orders rightly, how many people decided; and the metric's ties.

    Returns:
        `(clusters,)` of pairs in the right order, a tie of the metric being half of one; `(clusters,)` of pairs that
        people decided; and the share of the decided pairs in which the metric has a tie.

    Raises:
        ValueError: people decided no pair.
    """
    correct, decided, ties = [], [], 0.0
    for rows in members:
        a, b = np.triu_indices(len(rows), 1)
        people = np.sign(truth[rows][a] - truth[rows][b])
        metric = np.sign(values[rows][a] - values[rows][b])
        known = people != 0
        correct.append(float((0.5 + 0.5 * people * metric)[known].sum()))
        decided.append(float(known.sum()))
        ties += float((metric[known] == 0).sum())
    if not sum(decided):
        raise ValueError("no two images of one content have different ratings")
    return np.array(correct), np.array(decided), ties / sum(decided)


def logistic(x: Rows, y: Rows) -> Rows:
    """`(b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2`, fitted by least squares, at `x`.

    A curve that falls is returned upside down: a metric that orders images the wrong way has a negative correlation.
    """
    from scipy.optimize import OptimizeWarning, curve_fit
    from scipy.special import expit

    def curve(v: Any, top: float, bottom: float, middle: float, width: float) -> Any:
        return (top - bottom) * expit((v - middle) / (abs(width) + 1e-12)) + bottom

    middle, scale = float(np.median(x)), float(x.std())
    scaled = (x - middle) / scale  # so that a metric in thousands, or in millionths, starts where the others do
    start = (y.max(), y.min(), 0.0, 1.0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # of the parameters' covariance, which nobody asks for
            fitted, _ = curve_fit(curve, scaled, y, start, maxfev=20_000)
    except (RuntimeError, TypeError) as error:  # TypeError: fewer rows than parameters
        raise ValueError(f"no logistic curve could be fitted ({error}); use plcc") from error
    values = np.asarray(curve(scaled, *fitted), dtype=np.float64)
    return values if fitted[0] >= fitted[1] else -values
