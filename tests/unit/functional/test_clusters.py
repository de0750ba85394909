"""The interval over clusters: by hand, and its coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qa_hooks.functional.clusters import share_interval


def test_the_mean_is_over_all_values():
    found = share_interval(torch.tensor([1.0, 0.0, 0.5, 1.0]), ["a", "a", "b", "c"])
    assert found.value == 0.625
    assert math.isnan(found.low)


def test_it_covers_the_truth_where_values_of_a_cluster_are_alike():
    rng, covered, runs, clusters = np.random.default_rng(0), 0, 200, 30
    for _ in range(runs):
        values = np.repeat(rng.random(clusters), 8)
        found = share_interval(values, np.repeat(np.arange(clusters), 8).tolist())
        covered += found.low <= 0.5 <= found.high
    assert 0.89 <= covered / runs <= 0.99


def test_bad_input():
    for values, labels, match in (
        ([], [], "n > 0"),
        ([1.0, float("nan")], [0, 1], r"in \[0, 1\]"),
        ([1.0, 0.0], [0], "1 labels for 2 values"),
    ):
        with pytest.raises(ValueError, match=match):
            share_interval(values, labels)
    with pytest.raises(ValueError, match="confidence must be a share"):
        share_interval([1.0], [0], confidence=1.0)
