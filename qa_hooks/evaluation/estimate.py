"""A value of a set of images with its interval, and the difference of two such values with a verdict.

The jackknife leaves groups of images out in turn (see `qa_hooks.functional.intervals`), which gives one row of values:
the whole set's, and those without each group. Rows of two models that were made from the same seeds, prompts or files
can be subtracted: then what both share cancels, and the interval of the difference is that of a paired comparison.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    compare_interval,
    jackknife_error,
    t_interval,
    wilson_interval,
)


class Estimate(NamedTuple):
    """A value of a set of images, and what tells how far chance moves it.

    Attributes:
        key: "fd", "kid", "precision", ...
        n: the images that it comes from.
        row: `(1 + groups,)` float64: the value of the whole set and the values without each group of images.
        limits: of the metric's range.
        higher_is_better: the better direction.
    """

    key: str
    n: int
    row: Tensor
    limits: tuple[float, float]
    higher_is_better: bool

    @property
    def value(self) -> float:
        return float(self.row[0])

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value and its interval, which lies within the metric's range.

        Precision is a share of n independent images and has Wilson's interval. The others' is the jackknife's; for
        recall and coverage, which are no means over the generated images, it is conservative (about 99 % coverage for
        95 %).
        """
        if self.key == "precision":
            return wilson_interval(self.value, self.n, confidence=confidence)
        error, (low, high) = jackknife_error(self.row[1:]), self.limits
        found = t_interval(self.value, error, degrees=len(self.row) - 2, confidence=confidence)
        return Interval(found.value, max(found.low, low), min(found.high, high))

    def compare(self, other: Estimate, *, paired: bool, confidence: float = 0.95) -> Comparison:
        """Is the other set (B) better than this one (A)?

        A Frechet distance is too large by about c / n, where c grows with a model's variance, and with n below ten
        times the features' dimension that can decide the sign: the plain interval then is narrow around a wrong
        difference. So "fd" needs two agreeing verdicts, on the difference and on the difference after the jackknife's
        correction of the bias.

        Args:
            other: of an equally large set, with the same groups and seed.
            paired: the i-th images of both sets belong together (not with "ds", whose rows are real images); otherwise
                the sets are independent.
            confidence: of the interval.

        Example:
            >>> import torch
            >>> row, limits = torch.tensor([5.0, 5.1, 4.9, 5.0]), (0.0, float("inf"))
            >>> a, b = (Estimate("kid", 100, own, limits, higher_is_better=False) for own in (row, row - 1))
            >>> a.compare(b, paired=True).verdict
            'B better'
        """
        rows, paired = other.row - self.row, paired and self.key != "ds"
        groups, value = len(rows) - 1, float(rows[0])
        own = [jackknife_error(estimate.row[1:]) for estimate in (self, other)]
        error = jackknife_error(rows[1:]) if paired else math.hypot(*own)
        degrees = groups - 1 if paired else 2 * (groups - 1)

        def verdict_on(difference: float) -> Comparison:
            interval = t_interval(difference, error, degrees=degrees, confidence=confidence)
            return compare_interval(interval, higher_is_better=self.higher_is_better, n=self.n)

        plain = verdict_on(value)
        if self.key != "fd":
            return plain
        corrected = verdict_on(groups * value - (groups - 1) * float(rows[1:].mean()))
        return plain if corrected.verdict == plain.verdict else plain._replace(verdict="cannot tell")
