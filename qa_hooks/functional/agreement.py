"""How often scores agree with people: pairwise accuracy, the protocol of LGIQA (Gu, Bao, Chen, Wen, ECCV 2020).

    accuracy = mean over pairs of [(S(a) - S(b)) y > 0], ties of S count 1/2,   y > 0: people find a better; y < 0: b

with the score interval of Wilson (1927), z the normal quantile:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_share
from qa_hooks.functional.intervals import wilson_interval
from qa_hooks.functional.numerics import as_doubles

Numbers = Tensor | Sequence[float]


class PairwiseAccuracy(NamedTuple):
    """A share of pairs with its interval; `float()` gives the share."""

    accuracy: float
    low: float
    high: float
    n: int

    def __float__(self) -> float:
        return self.accuracy


def pairwise_accuracy(
    scores_a: Numbers, scores_b: Numbers, labels: Numbers, *, confidence: float = 0.95
) -> PairwiseAccuracy:
    """The share of pairs in which the better image has the higher score.

    Args:
        scores_a, scores_b: `(n,)`, higher is better (a scorer's `goodness`).
        labels: `(n,)`, positive where people find `a` better, negative where they find `b` better. Zero is refused:
            it is an undecided pair, which the protocol leaves out, or a file that says b with 0 instead of -1.
        confidence: of the interval.

    Returns:
        accuracy, low and high in [0, 1], and n.

    Raises:
        ValueError: lengths that differ, no pairs, scores that are NaN, labels that are zero or NaN.

    Example:
        >>> result = pairwise_accuracy([0.9, 0.2, 0.5, 0.3], [0.1, 0.7, 0.5, 0.4], [1, -1, 1, 1])
        >>> result.accuracy, round(result.low, 3), round(result.high, 3)
        (0.625, 0.219, 0.908)
    """
    check_share("confidence", confidence)
    given = {"scores_a": scores_a, "scores_b": scores_b, "labels": labels}
    a, b, y = (as_doubles(values) for values in given.values())
    shapes = {name: tuple(values.shape) for name, values in zip(given, (a, b, y), strict=True)}
    if a.ndim != 1 or len(set(shapes.values())) > 1 or not len(a):
        raise ValueError(f"scores and labels must have one shape (n,) with n > 0, got {shapes}")
    for name, values in zip(given, (a, b, y), strict=True):
        if bool(values.isnan().any()):
            raise ValueError(f"{name} holds {int(values.isnan().sum())} NaN")
    if bool((y == 0).any()):
        raise ValueError(
            f"{int((y == 0).sum())} of {len(y)} labels are 0; leave undecided pairs out (labels != 0), and turn labels "
            "0 and 1 into 2 * labels - 1"
        )
    higher = torch.sign((a > b).double() - (b > a).double())  # a difference of infinities would be NaN
    accuracy = float((0.5 + 0.5 * higher * y.sign()).mean())
    return PairwiseAccuracy(*wilson_interval(accuracy, len(y), confidence=confidence), len(y))
