"""Which pair to ask about next: the one whose answer is expected to tell most.

    p(a better than b) = 1 / (1 + exp(-(s_a - s_b))),   s ~ N(0, 1)                  Bradley and Terry (1952)

The scores' posterior is a Gaussian around its mode (Laplace). A pair tells much when its answer is open and the
difference of its scores is little known: gain = log(1 + p (1 - p) var(s_a - s_b)) / 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]
STEPS = 12  # of Newton's method, which is there after five


class Answer(NamedTuple):
    """Positions of two images, and what was said: 1 where the first is better, -1 the second, 0 neither."""

    first: int
    second: int
    better: float


def posterior(count: int, answers: Sequence[Answer]) -> tuple[Rows, Rows]:
    """Mean `(count,)` and covariance `(count, count)` of the scores of so many images, after these answers.

    Example:
        >>> mean, covariance = posterior(2, [Answer(0, 1, 1.0)])
        >>> bool(mean[0] > 0 > mean[1]), bool(covariance[0, 0] < 1)
        (True, True)
    """
    mean, eye = np.zeros(count), np.eye(count)
    if not answers:
        return mean, eye
    a = np.array([answer.first for answer in answers])
    b = np.array([answer.second for answer in answers])
    share = np.array([(1 + answer.better) / 2 for answer in answers])
    precision = eye
    for _ in range(STEPS):
        probable = 1 / (1 + np.exp(mean[b] - mean[a]))
        slope, weight = np.zeros(count), probable * (1 - probable)
        np.add.at(slope, a, share - probable)
        np.add.at(slope, b, probable - share)
        precision = eye.copy()
        for row, column, sign in ((a, a, 1), (b, b, 1), (a, b, -1), (b, a, -1)):
            np.add.at(precision, (row, column), sign * weight)
        step = np.linalg.solve(precision, slope - mean)
        mean = mean + step
        if float(np.abs(step).max()) < 1e-9:
            break
    covariance: Rows = np.linalg.inv(precision).astype(np.float64)
    return mean, covariance


def gains(mean: Rows, covariance: Rows, first: Sequence[int], second: Sequence[int]) -> Rows:
    """How much the answer about each of these pairs is expected to tell, in nats.

    Example:
        >>> gains(np.zeros(3), np.eye(3), [0], [1]).round(3)
        array([0.203])
    """
    a, b = np.asarray(first), np.asarray(second)
    variance = covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
    damped = (mean[a] - mean[b]) / np.sqrt(1 + np.pi * variance / 8)  # over what the difference may be
    probable = 1 / (1 + np.exp(-damped))
    told: Rows = np.log1p(probable * (1 - probable) * variance) / 2
    return told
