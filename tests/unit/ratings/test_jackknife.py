"""Whole clusters left out in turn, against a naive loop; means over groups; intervals at the ends of the range."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from qa_hooks.functional.clusters import share_interval
from qa_hooks.ratings.agreeing import agreement
from qa_hooks.ratings.jackknife import BLOCKS, Clusters, Measured, measure


def rows(contents: int = 8, each: int = 6, seed: int = 0):
    g = np.random.default_rng(seed)
    truth = g.normal(size=contents * each)
    return truth + g.normal(size=truth.shape), truth, np.repeat(np.arange(contents), each)


def naive_interval(values, truth, content, statistic, to, back):
    labels = np.unique(content)
    without = [to(statistic(values[content != label], truth[content != label])) for label in labels]
    n = len(labels)
    error = math.sqrt((n - 1) / n * sum((one - np.mean(without)) ** 2 for one in without))
    middle, reach = to(statistic(values, truth)), stats.t.ppf(0.975, n - 1) * error
    return back(middle - reach), back(middle + reach)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("srcc", lambda x, y: stats.spearmanr(x, y).statistic),
        ("plcc", lambda x, y: stats.pearsonr(x, y).statistic),
        ("krcc", lambda x, y: stats.kendalltau(x, y).statistic),
    ],
)
def test_the_interval_is_a_jackknife_of_contents_on_fishers_scale(name, statistic):
    values, truth, content = rows()
    order = np.random.default_rng(1).permutation(len(truth))  # rows of a content need not stand together
    values, truth, content = values[order], truth[order], content[order]
    found = measure(values, truth, name, Clusters(content.tolist(), len(truth))).interval(0.95)
    assert (found.low, found.high) == pytest.approx(
        naive_interval(values, truth, content, statistic, math.atanh, math.tanh)
    )


def test_more_clusters_than_blocks_are_left_out_several_at_a_time():
    clusters = Clusters(None, 3 * BLOCKS + 1)
    assert len(clusters.kept) == BLOCKS
    left_out = [set(range(clusters.count)) - set(kept.tolist()) for kept in clusters.kept]
    assert sorted(place for block in left_out for place in block) == list(range(clusters.count))


def test_the_mean_over_contents_is_computed_once_for_each_and_with_its_multiplicity():
    values, truth, content = rows()
    each = [stats.spearmanr(values[content == c], truth[content == c]).statistic for c in range(8)]
    found = measure(values, truth, "srcc", Clusters(content.tolist(), 48), content.tolist())
    assert found.value == pytest.approx(np.mean(each))
    assert sorted(found.without) == pytest.approx(sorted((sum(each) - one) / 7 for one in each))


def test_the_mean_over_types_that_cross_contents():
    values, truth, content = rows()
    kind = np.tile([0, 0, 0, 1, 1, 1], 8)
    found = measure(values, truth, "plcc", Clusters(content.tolist(), 48), kind.tolist())

    def mean(keep):
        return np.mean(
            [stats.pearsonr(values[keep & (kind == k)], truth[keep & (kind == k)]).statistic for k in (0, 1)]
        )

    assert found.value == pytest.approx(mean(content >= 0))
    assert sorted(found.without) == pytest.approx(sorted(mean(content != c) for c in range(8)))


def test_the_accuracy_of_types_is_averaged():
    values, truth, content = rows()
    kind = np.tile([0, 0, 0, 1, 1, 1], 8)
    shares = []
    for k in (0, 1):
        right = [
            (values[i] - values[j]) * (truth[i] - truth[j]) > 0
            for i in range(48)
            for j in range(i)
            if content[i] == content[j] and kind[i] == kind[j] == k
        ]
        shares.append(np.mean(right))
    found = measure(values, truth, "accuracy", Clusters(content.tolist(), 48), kind.tolist())
    assert found.value == pytest.approx(np.mean(shares))


def test_a_metric_that_is_constant_within_a_content_counts_as_zero_there():
    values, truth, content = rows()
    values[content == 0] = 3.0
    others = [stats.spearmanr(values[content == c], truth[content == c]).statistic for c in range(1, 8)]
    found = measure(values, truth, "srcc", Clusters(content.tolist(), 48), content.tolist())
    assert found.value == pytest.approx(sum(others) / 8)


def test_a_share_of_one_is_not_certain():
    """Wilson's interval of as many trials as clusters: 20 contents without a fault do not make a perfect metric."""
    sure = Measured(1.0, np.ones(20), 20, pairs=900.0).interval(0.95)
    assert sure.high == 1
    assert 0.8 < sure.low < 0.9
    nearly = np.full(20, 0.999)
    nearly[0] = 1.0  # one content has all the faults
    found = Measured(0.999, nearly, 20, pairs=900.0).interval(0.95)
    assert 0.98 < found.low < 0.999 < found.high < 1


def test_too_few_clusters_are_refused():
    with pytest.raises(ValueError, match="at least 5 contents, got 2"):
        Clusters(["a", "b", "a"], 3)
    with pytest.raises(ValueError, match="clusters has 2 values for 3 images"):
        Clusters(["a", "b"], 3)


def test_groups_without_two_different_ratings_are_refused():
    with pytest.raises(ValueError, match="no group holds two different ratings"):
        measure(np.arange(6.0), np.arange(6.0), "srcc", Clusters(None, 6), list(range(6)))


def test_labels_that_are_tensors_mean_their_values():
    truth = np.arange(60.0)
    scores = truth + 9 * np.sin(truth)
    labels = [row // 6 for row in range(60)]
    kinds = [row % 3 for row in range(60)]
    expected = agreement(scores, truth, clusters=labels, groups=kinds)
    assert expected.clusters == 10
    for turn in (torch.tensor, np.array, lambda values: [torch.tensor(value) for value in values]):
        assert agreement(scores, truth, clusters=turn(labels), groups=turn(kinds)) == expected
        assert share_interval([1.0, 0.0] * 30, turn(labels)) == share_interval([1.0, 0.0] * 30, labels)
    with pytest.raises(ValueError, match=r"shape \(n,\)"):
        agreement(scores, truth, clusters=torch.zeros(60, 1))
