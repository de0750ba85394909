"""A value of a set of images with its interval, and the difference of two such values with a verdict.

The jackknife leaves groups of images out in turn (see `qa_hooks.functional.intervals`), which gives one row of values:
the value of the whole set, and the values without each group. Rows of two models that were made from the same seeds,
prompts or files can be subtracted: what both share cancels, and the difference has the interval of a paired comparison.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from qa_hooks.functional.clusters import NO_ERROR
from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    compare_interval,
    jackknife_error,
    t_interval,
    wilson_interval,
)

SHARES = ("precision", "recall", "coverage")


class Estimate(NamedTuple):
    """A value of a set of images, with the jackknife values that give its interval.

    Attributes:
        key: "fd", "kid", "precision", ...
        n: the generated images that it comes from.
        row: `(1 + groups,)` float64: the value of the whole set and the values without each group of images.
        limits: of the metric's range.
        higher_is_better: the better direction.
        real: the real images that they are compared with; 0 where there are none.
    """

    key: str
    n: int
    row: Tensor
    limits: tuple[float, float]
    higher_is_better: bool
    real: int = 0

    @property
    def value(self) -> float:
        return float(self.row[0])

    def interval(self, confidence: float = 0.95) -> Interval:
        """The value and its interval, which lies within the metric's range.

        It is the jackknife's, cut at the limits of the range: the true value lies inside them, so that what is cut off
        never held it. The jackknife has no width where each group gives 0 or 1, and too little near there. So a share
        (recall, coverage) has an interval of at least the width of Wilson's for n images, and precision, which is a
        share of n independent images, has Wilson's itself. Any other value that no group changes, such as a density of
        0, has no known interval (NaN): that no image is near a real one says nothing about how many real ones the next
        would be near.

        Measured on Gaussian sets of 60 points (equal, too wide, collapsed, moved; docs/intervals.md): 93 to 100 % of
        the intervals hold the mean over draws, of density 90 to 95 %. The recall of a set that is far away can be
        decided by a single image, and its interval is too narrow then.
        """
        error = jackknife_error(self.row[1:])
        if error < NO_ERROR and self.key not in SHARES:
            return Interval(self.value, math.nan, math.nan)
        found = cut(t_interval(self.value, error, degrees=len(self.row) - 2, confidence=confidence), *self.limits)
        if self.key not in SHARES:
            return found
        share = wilson_interval(self.value, self.n, confidence=confidence)
        if self.key == "precision":
            return share
        return Interval(found.value, min(found.low, share.low), max(found.high, share.high))

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
        if error < NO_ERROR and self.key in SHARES:
            return self._compare_shares(other, confidence)
        if max(own) < NO_ERROR:
            return Comparison(value, math.nan, math.nan, "cannot tell", self.n)
        degrees = groups - 1 if paired else 2 * (groups - 1)

        width = self.limits[1] - self.limits[0]

        def verdict_on(difference: float) -> Comparison:
            interval = cut(t_interval(difference, error, degrees=degrees, confidence=confidence), -width, width)
            return compare_interval(interval, higher_is_better=self.higher_is_better, n=self.n)

        plain = verdict_on(value)
        if self.key != "fd":
            return plain
        corrected = verdict_on(groups * value - (groups - 1) * float(rows[1:].mean()))
        return plain if corrected.verdict == plain.verdict else plain._replace(verdict="cannot tell")

    def _compare_shares(self, other: Estimate, confidence: float) -> Comparison:
        """Newcombe's interval of the difference (1998, method 10), for shares that no left-out group changes."""
        a, b = (wilson_interval(estimate.value, estimate.n, confidence=confidence) for estimate in (self, other))
        difference = b.value - a.value
        low = difference - math.hypot(b.value - b.low, a.high - a.value)
        high = difference + math.hypot(b.high - b.value, a.value - a.low)
        return compare_interval(Interval(difference, low, high), higher_is_better=self.higher_is_better, n=self.n)


def cut(interval: Interval, low: float, high: float) -> Interval:
    """Cut an interval to a range; it still contains its value.

    Example:
        >>> cut(Interval(0.95, 0.85, 1.05), 0.0, 1.0)
        Interval(value=0.95, low=0.85, high=1.0)
    """
    value = interval.value
    return Interval(value, min(max(interval.low, low), value), max(min(interval.high, high), value))
