from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks._base.processes import first_error, gather_rows, global_sum
from qa_hooks.callbacks.means import Means
from qa_hooks.features.moments import Moments


def test_running_means_average_and_forget():
    means = Means()
    for value in (1.0, 2.0, torch.tensor(6.0)):
        means.add("a", value)
    means.add("b", torch.tensor([1.0, 3.0]))
    assert means.flush() == {"a": 3.0, "b": 2.0}
    assert means.flush() == {}


def test_running_means_survive_a_save():
    means, resumed = Means(), Means()
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


@pytest.mark.parametrize("batch", [1, 64, 700, 2000])
def test_moments_do_not_depend_on_batches(batch):
    """Rows wait until there are 512; dimensions go over blocks of 256."""
    rows = torch.randn(2000, 300, generator=torch.Generator().manual_seed(0)) * 3 + 40
    moments = Moments(300)
    for part in rows.split(batch):
        moments.update(part)
    assert moments.count == 2000
    assert np.allclose(moments.covariance(), np.cov(rows.double().numpy().T), rtol=1e-9, atol=1e-12)
    assert torch.equal(moments.covariance(), moments.covariance().T)


def test_moments_survive_a_save_bit_for_bit():
    rows = torch.randn(900, 5, generator=torch.Generator().manual_seed(0)) + 10
    whole, first, resumed = Moments(5), Moments(5), Moments(5)
    for part in rows.split(100):
        whole.update(part)
    for part in rows[:300].split(100):
        first.update(part)
    state = first.state_dict()
    first.covariance()  # looking must not change what is saved
    resumed.load_state_dict(state)
    for part in rows[300:].split(100):
        resumed.update(part)
    assert torch.equal(resumed.covariance(), whole.covariance())
    assert resumed.count == 900


def test_moments_keep_no_hold_on_the_rows():
    rows = torch.ones(4, 2, dtype=torch.float64)
    moments = Moments(2)
    moments.update(rows)
    rows += 5
    assert moments.mean().tolist() == [1, 1]
    assert float(moments.covariance().abs().max()) == 0
