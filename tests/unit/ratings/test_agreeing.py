"""Agreement against SciPy and a naive loop; cluster intervals; Holm."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qa_hooks.ratings.agreeing import _holm, agreement, compare_metrics
from qa_hooks.ratings.statistics import CORRELATIONS, STATISTICS, credits


def rated(contents: int, each: int, seed: int, *, between: float = 1.0):
    """Ratings and scores whose errors share a part within each content."""
    g = np.random.default_rng(seed)
    content = np.repeat(np.arange(contents), each)
    truth = g.normal(size=contents * each)
    scores = truth + 0.5 * g.normal(size=truth.shape) + between * g.normal(size=contents)[content]
    return scores, truth, content


def test_values_are_scipys():
    scores, truth, content = rated(12, 9, 0)
    scores[:20] = scores[0]  # ties
    assert agreement(scores, truth, statistic="srcc").value == pytest.approx(stats.spearmanr(scores, truth).statistic)
    assert agreement(scores, truth, statistic="krcc").value == pytest.approx(stats.kendalltau(scores, truth).statistic)
    assert agreement(scores, truth, statistic="plcc").value == pytest.approx(stats.pearsonr(scores, truth).statistic)
    right = pairs = 0.0
    for i in range(len(truth)):
        for j in range(i):
            if content[i] == content[j] and truth[i] != truth[j]:
                pairs += 1
                product = (truth[i] - truth[j]) * (scores[i] - scores[j])
                right += 0.5 if product == 0 else float(product > 0)
    assert agreement(scores, truth, statistic="accuracy", clusters=content).value == pytest.approx(right / pairs)


def test_the_logistic_fit_undoes_a_saturation():
    _, truth, _ = rated(12, 9, 0)
    scores = np.exp(3 * truth)
    plain, fitted = (agreement(scores, truth, statistic=s).value for s in ("plcc", "plcc_logistic"))
    logits = agreement(1 / (1 + np.exp(-truth)), 1 / (1 + np.exp(-3 * truth)), statistic="plcc_logistic").value
    assert fitted > plain + 0.1
    assert logits > 0.999


def test_a_metric_of_the_wrong_direction_stays_negative_after_the_fit():
    """A falling curve would make it look good."""
    _, truth, _ = rated(12, 9, 0)
    assert agreement(-truth, truth, statistic="plcc_logistic").value == pytest.approx(-1, abs=0.01)


def test_images_of_one_content_widen_the_interval():
    scores, truth, content = rated(20, 25, 0)
    free, clustered = agreement(scores, truth), agreement(scores, truth, clusters=content)
    assert clustered.value == free.value
    assert clustered.high - clustered.low > 1.8 * (free.high - free.low)
    assert (clustered.n, clustered.clusters) == (500, 20)


def truth_of(statistic: str) -> float:
    """The statistic of very many contents."""
    scores, truth, _ = rated(20_000, 10, 10**6)
    if statistic == "accuracy":
        correct, decided, _ = credits(scores, truth, np.split(np.arange(len(truth)), 20_000))
        return float(correct.sum() / decided.sum())
    return CORRELATIONS[statistic](scores, truth)


@pytest.mark.slow
@pytest.mark.parametrize("contents", [20, 60, 200])
@pytest.mark.parametrize("statistic", ["srcc", "plcc", "accuracy"])
def test_intervals_cover(contents, statistic):
    """93 to 97 % at nominal 95 %, with the error of 1000 simulations, 0.7 %, to each side."""
    true, covered = truth_of(statistic), 0
    for seed in range(1000):
        scores, truth, content = rated(contents, 10, seed)
        found = agreement(scores, truth, statistic=statistic, clusters=content)
        covered += found.low <= true <= found.high
    print(f"{statistic}, {contents} contents: {covered / 10:.1f} %")
    assert 0.923 <= covered / 1000 <= 0.977, covered / 1000


def test_metrics_are_compared_on_the_same_draws():
    scores, truth, content = rated(30, 10, 0, between=0.2)
    g = np.random.default_rng(1)
    metrics = {"good": scores, "almost": scores + 0.02 * g.normal(size=300), "noise": g.normal(size=300)}
    near, far = compare_metrics(metrics, truth, clusters=content)  # by the size of the difference
    assert {near.a, near.b} == {"good", "almost"}
    assert far.b == "noise"
    assert far.p < 0.01 < 0.05 < near.p
    assert near.high - near.low < 0.2 * (far.high - far.low)


def test_holm():
    """By hand: 3 x .01, then 2 x .02, then .5; and a later one is never below an earlier one."""
    assert _holm([0.02, 0.5, 0.01]) == pytest.approx([0.04, 0.5, 0.03])
    assert _holm([0.04, 0.03, 0.041]) == pytest.approx([0.09, 0.09, 0.09])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1.0, 2.0, 3.0], [1.0, 2.0]), {}, "3 values for 2"),
        (([1.0] * 9, list(range(9))), {}, "1 everywhere"),
        ((list(range(9)), [2.0] * 9), {}, "goodness is 2 everywhere"),
        (([float("nan")] * 9, list(range(9))), {}, "not finite"),
        ((list(range(9)), list(range(9))), {"clusters": [0, 1, 2, 3] * 2 + [0]}, "at least 5 contents, got 4"),
        ((list(range(9)), list(range(9))), {"statistic": "accuracy"}, "pass clusters="),
        ((list(range(9)), list(range(9))), {"statistic": "rmse"}, f"one of {', '.join(STATISTICS)}"),
        ((list(range(9)), list(range(9))), {"clusters": [0] * 3}, "3 values for 9"),
    ],
)
def test_what_cannot_agree_is_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        agreement(*arguments, **options)


@pytest.mark.parametrize("statistic", CORRELATIONS)
@pytest.mark.parametrize("contents", [5, 20])
def test_perfect_agreement_is_not_certain(statistic, contents):
    truth = np.arange(4.0 * contents)
    content = [row // 4 for row in range(len(truth))]
    for scores, sign in ((truth, 1), (-truth, -1)):
        found = agreement(scores, truth, statistic=statistic, clusters=content)
        assert found.value == pytest.approx(sign, abs=1e-6)
        assert max(abs(found.low), abs(found.high)) <= 1
        assert found.high - found.low > (0.5 if contents == 5 else 0.02)
    few, many = (agreement(np.arange(n), np.arange(n)) for n in (5, 50))
    assert few.low < many.low < 1 == many.high


def test_a_difference_that_no_content_changes_is_not_certain():
    truth = np.arange(40.0)
    content = [row // 4 for row in range(40)]
    metrics = {"right": truth, "also right": truth**3, "wrong": -truth}
    same, other = compare_metrics(metrics, truth, clusters=content)
    assert (same.difference, same.p) == (0, 1)
    assert same.low < 0 < same.high
    assert other.difference == 2
    assert 0 < other.p < 0.05
    assert 0 < other.low < 2 < other.high


def test_a_share_that_is_the_same_in_every_content_is_not_certain():
    goodness = np.tile([0.0, 1.0, 2.0], 6)
    found = agreement(np.tile([0.0, 2.0, 1.0], 6), goodness, statistic="accuracy", clusters=[r // 3 for r in range(18)])
    assert found.value == pytest.approx(2 / 3)
    assert found.low < 0.5 < 0.8 < found.high
