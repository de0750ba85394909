"""Pairwise accuracy against a loop and SciPy's Wilson interval."""

from __future__ import annotations

import pytest
import torch

from qa_hooks.functional.agreement import pairwise_accuracy
from qa_hooks.functional.intervals import wilson_interval


def test_pairwise_accuracy_is_the_loop():
    a, b = torch.randint(0, 4, (2, 200)).float()
    labels = torch.randint(0, 2, (200,)) * 2 - 1
    expected = 0.0
    for x, y, label in zip(a.tolist(), b.tolist(), labels.tolist(), strict=True):
        expected += 0.5 if x == y else float((x > y) == (label > 0))
    result = pairwise_accuracy(a, b, labels)
    assert result.accuracy == pytest.approx(expected / 200, abs=1e-12)
    assert (float(result), result.n) == (result.accuracy, 200)
    swapped = pairwise_accuracy(b, a, -labels)
    assert swapped == result


def test_infinite_scores_are_compared():
    inf = torch.inf
    assert pairwise_accuracy([inf, -inf, inf], [0.0, 1.0, inf], [1, -1, 1]).accuracy == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (745, 974), (500, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right, n, confidence):
    stats = pytest.importorskip("scipy.stats")
    interval = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right / n, n, confidence=confidence)[1:] == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    )
    ones = [1.0] * right + [0.0] * (n - right)
    result = pairwise_accuracy(ones, [0.5] * n, [1] * n, confidence=confidence)
    assert result[1:3] == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [1]), "one shape"),
        (([], [], []), "n > 0"),
        (([1.0, torch.nan], [0.0, 0.0], [1, 1]), "scores_a holds 1 NaN"),
        (([1.0, 2.0], [0.0, 0.0], [1, torch.nan]), "labels holds 1 NaN"),
        (([1.0, 2.0], [0.0, 0.0], [1, 0]), r"1 of 2 labels are 0; .* 2 \* labels - 1"),
    ],
)
def test_bad_pairs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pairwise_accuracy(*arguments)
    with pytest.raises(ValueError, match="confidence"):
        pairwise_accuracy([1.0], [0.0], [1], confidence=95)
