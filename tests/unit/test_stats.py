from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks.processes import first_error, gather_rows, global_sum
from qa_hooks.stats import Moments, Stats


def test_running_means_average_and_forget():
    means = Stats()
    for value in (1.0, 2.0, torch.tensor(6.0)):
        means.add("a", value)
    means.add("b", torch.tensor([1.0, 3.0]))
    assert means.flush() == {"a": 3.0, "b": 2.0}
    assert means.flush() == {}


def test_running_means_survive_a_save():
    means, resumed = Stats(), Stats()
    means.add("a", torch.tensor(1.5))
    resumed.load_state_dict(means.state_dict())
    resumed.add("a", 2.5)
    assert resumed.flush() == {"a": 2.0}


def test_moments_are_exact_far_from_the_origin():
    rows = np.random.default_rng(0).normal(size=(1000, 8)) * 1e-2 + 4096
    moments = Moments(8)
    for batch in torch.from_numpy(rows).split(64):
        moments.update(batch)
    assert np.allclose(moments.mean(), rows.mean(0), rtol=1e-14)
    assert np.allclose(moments.covariance(), np.cov(rows.T), rtol=1e-7, atol=1e-14)


def test_merged_moments_equal_those_of_all_rows():
    rows = torch.randn(100, 5, dtype=torch.float64) + 10
    whole, first, second = Moments(5), Moments(5), Moments(5)
    whole.update(rows)
    first.update(rows[:13])
    second.update(rows[13:])
    first.merge(second.count, second.mean(), second.scatter())
    assert first.count == 100
    assert torch.allclose(first.covariance(), whole.covariance(), rtol=1e-12)
    empty = Moments(5)
    empty.merge(whole.count, whole.mean(), whole.scatter())
    assert torch.allclose(empty.covariance(), whole.covariance(), rtol=1e-12)


def test_moments_refuse_what_would_spoil_them():
    moments = Moments(2)
    with pytest.raises(ValueError, match="at least 2 rows, got 0"):
        moments.covariance()
    with pytest.raises(ValueError, match=r"\(n, 2\), got \(3, 4\)"):
        moments.update(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="non-finite"):
        moments.update(torch.tensor([[0.0, float("inf")]]))
    moments.update(torch.zeros(0, 2))
    assert moments.count == 0


def test_one_process_needs_no_collective():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows
    assert global_sum(rows) is rows
    assert first_error(None) is None
    assert first_error(ValueError("x")) == "ValueError: x"
