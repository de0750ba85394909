"""Intervals: coverage on closed-form Gaussians, verdicts, and the jackknife against its own formula in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from qa_hooks.functional.intervals import (
    Interval,
    bootstrap_interval,
    compare_interval,
    group_jackknife,
    independent_difference,
    jackknife_subsets,
    paired_difference,
    t_interval,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("n", "repeats"), [(12, 400), (100, 400)])
def test_the_bootstrap_interval_of_a_mean_covers_it(n, repeats):
    rows = normal(repeats, n, seed=n) + 3.0
    covered = sum(i.low <= 3.0 <= i.high for i in (bootstrap_interval(row, draws=400, seed=3) for row in rows))
    # Three standard errors of 400 draws of probability 0.95; the plain percentile interval has 0.90 at n = 12.
    assert abs(covered / repeats - 0.95) < 3 * math.sqrt(0.95 * 0.05 / repeats)


def test_a_paired_difference_covers_the_known_one_and_rarely_errs():
    shared, own = normal(400, 60, seed=1), normal(400, 60, seed=2)
    found = [paired_difference(a, a + 0.2 + 0.5 * e, draws=400) for a, e in zip(shared, own, strict=True)]
    assert abs(sum(c.low <= 0.2 <= c.high for c in found) / 400 - 0.95) < 0.035
    assert sum(c.verdict == "B better" for c in found) > 300  # 0.2 is three standard errors of 0.5 / sqrt(60)
    same = [paired_difference(a, a + 0.5 * e, draws=400) for a, e in zip(shared, own, strict=True)]
    assert sum(c.verdict != "cannot tell" for c in same) / 400 < 0.085


def test_pairing_decides_what_independent_samples_cannot():
    a = normal(50, seed=3)
    b = a + 0.1 + 0.01 * normal(50, seed=4)
    assert paired_difference(a, b).verdict == "B better"
    assert paired_difference(a, b, higher_is_better=False).verdict == "A better"
    assert paired_difference(a, b.flip(0)).verdict == "cannot tell"
    assert paired_difference(a, a)[0::3] == (0.0, "cannot tell")


def test_group_jackknife_is_its_formula():
    x = normal(103, seed=10).numpy()
    value, error = group_jackknife(lambda rows: torch.from_numpy(x)[rows].exp().mean().log(), 103, groups=8, seed=4)
    assert value == pytest.approx(math.log(np.exp(x).mean()), rel=1e-12)
    without = [math.log(np.exp(x[rows.numpy()]).mean()) for rows in jackknife_subsets(103, groups=8, seed=4)]
    assert error == pytest.approx(math.sqrt(7 / 8 * sum((w - np.mean(without)) ** 2 for w in without)), rel=1e-6)
    left_out = [set(range(103)) - set(rows.tolist()) for rows in jackknife_subsets(103, groups=8, seed=4)]
    assert sorted(index for group in left_out for index in group) == list(range(103))


def test_nothing_random_is_touched_and_seeds_repeat():
    before = torch.get_rng_state()
    values = normal(40)
    assert (
        bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)
    )
    assert group_jackknife(lambda r: values[r].mean(), 40)[0] == pytest.approx(float(values.mean()))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="n at least 2"):
        bootstrap_interval([1.0])
    with pytest.raises(ValueError, match="1 of 3 values in a are not finite"):
        paired_difference([1.0, float("nan"), 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="got 2 and 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="confidence must be a share"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="at least as many items, got 5"):
        group_jackknife(lambda rows: 0.0, 5)
    assert bootstrap_interval([2.0, 2.0, 2.0]).value == 2.0
    assert t_interval(0.0, 1.0, degrees=1).high == pytest.approx(12.7062, abs=1e-4)
    assert compare_interval(Interval(0.0, -1.0, 1.0), higher_is_better=True, n=3).verdict == "cannot tell"


class TestValuesThatAreAllEqual:
    """n equal values are no proof that the true mean is that value: an interval without a width would say so."""

    def test_have_no_interval(self):
        found = bootstrap_interval([2.0] * 12)
        assert found.value == 2.0
        assert math.isnan(found.low)
        assert math.isnan(found.high)

    @pytest.mark.parametrize(("n", "verdict"), [(5, "cannot tell"), (6, "B better"), (12, "B better")])
    def test_pairs_are_judged_by_the_sign_test(self, n, verdict):
        assert (binomtest(n, n).pvalue < 0.05) == (verdict == "B better")
        found = paired_difference([1.0] * n, [3.0] * n)
        assert (found.difference, found.verdict) == (2.0, verdict)
        assert math.isnan(found.low)
        assert paired_difference([1.0] * n, [1.0] * n).verdict == "cannot tell"
        if verdict != "cannot tell":
            assert paired_difference([1.0] * n, [3.0] * n, higher_is_better=False).verdict == "A better"
            assert paired_difference([1.0] * n, [3.0] * n, confidence=1 - 1e-9).verdict == "cannot tell"

    @pytest.mark.parametrize(("n", "verdict"), [(3, "cannot tell"), (4, "B better"), (12, "B better")])
    def test_independent_sets_by_the_rank_test(self, n, verdict):
        exact = 2 / math.comb(2 * n, n)
        assert (exact <= 0.05) == (verdict == "B better")
        found = independent_difference([0.0] * n, [1.0] * n)
        assert (found.difference, found.verdict) == (1.0, verdict)
        assert math.isnan(found.low)
        assert independent_difference([0.0] * n, [0.0] * n).verdict == "cannot tell"

    def test_one_constant_set_has_the_others_error(self):
        found = independent_difference([0.0] * 12, [float(value) for value in range(12)])
        assert found.low < found.difference < found.high


def test_a_group_may_be_a_single_item():
    assert sorted(rows.tolist() for rows in jackknife_subsets(3, groups=3)) == [[0, 1], [0, 2], [1, 2]]
    with pytest.raises(ValueError, match="3"):
        jackknife_subsets(3, groups=4)


def test_a_jackknife_needs_two_groups():
    with pytest.raises(ValueError, match="groups must be"):
        jackknife_subsets(100, groups=1)
