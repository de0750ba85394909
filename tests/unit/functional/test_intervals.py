"""Intervals: coverage on closed-form Gaussians, verdicts, and the jackknife against its own formula in NumPy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qa_hooks.evaluation.set_metrics import compare_sets, metric_name, resampled_metrics, set_interval
from qa_hooks.functional.intervals import (
    Interval,
    bootstrap_interval,
    compare_interval,
    group_jackknife,
    jackknife_subsets,
    paired_difference,
    t_interval,
    wilson_interval,
)
from qa_hooks.functional.kid import kernel_distance
from qa_hooks.functional.precision_and_recall import precision_recall


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
    assert paired_difference(a, a) == (0.0, 0.0, 0.0, "cannot tell", 50)


def test_the_jackknife_interval_covers_the_frechet_distance_expected_at_this_n():
    """Known Gaussians; FD is biased in n, so what is covered is its mean over draws of this size."""
    dim, n, repeats = 4, 200, 200
    real = normal(4000, dim, seed=5)
    rows = [
        resampled_metrics(real, normal(n, dim, seed=100 + i) * 1.2 + 0.3, ["fd"], seed=i)["fd"] for i in range(repeats)
    ]
    expected = float(torch.stack(rows)[:, 0].mean())
    covered = sum(i.low <= expected <= i.high for i in (set_interval("fd", r, n=n) for r in rows)) / repeats
    assert 0.90 <= covered <= 0.99
    errors = torch.tensor([(set_interval("fd", row, n=n).high - float(row[0])) / 2.262157 for row in rows])
    assert float(errors.mean()) == pytest.approx(float(torch.stack(rows)[:, 0].std()), rel=0.2)


def test_a_frechet_verdict_needs_the_bias_out_of_the_way():
    """At n near the dimension the wider model seems worse than it is: the true order is the other one."""
    dim, n = 64, 100
    real = normal(5000, dim, seed=6)
    noise = normal(n, dim, seed=7)
    a = noise * torch.linspace(0.7, 1.3, dim).double() + 0.3
    b = (noise + 0.3) * 1.1
    rows = [resampled_metrics(real, part, ["fd"])["fd"] for part in (a, b)]
    plain = set_interval("fd", rows[1] - rows[0], n=n)
    assert plain.low > 0  # FD says that A is better, and is sure of it
    means, scales = (0.3, 0.33), (torch.linspace(0.7, 1.3, dim).double(), torch.full((dim,), 1.1).double())
    truth = [dim * m**2 + float(((s - 1) ** 2).sum()) for m, s in zip(means, scales, strict=True)]
    assert truth[1] < truth[0]
    assert compare_sets("fd", *rows, paired=True, n=n).verdict == "cannot tell"
    many = normal(4000, 4, seed=8)
    clear = [resampled_metrics(normal(4000, 4, seed=9), part, ["fd"])["fd"] for part in (many + 0.5, many)]
    assert compare_sets("fd", *clear, paired=True, n=4000).verdict == "B better"
    assert compare_sets("fd", *clear, paired=False, n=4000).verdict == "B better"


def test_group_jackknife_is_its_formula():
    x = normal(103, seed=10).numpy()
    value, error = group_jackknife(lambda rows: torch.from_numpy(x)[rows].exp().mean().log(), 103, groups=8, seed=4)
    assert value == pytest.approx(math.log(np.exp(x).mean()), rel=1e-12)
    without = [math.log(np.exp(x[rows.numpy()]).mean()) for rows in jackknife_subsets(103, groups=8, seed=4)]
    assert error == pytest.approx(math.sqrt(7 / 8 * sum((w - np.mean(without)) ** 2 for w in without)), rel=1e-6)
    left_out = [set(range(103)) - set(rows.tolist()) for rows in jackknife_subsets(103, groups=8, seed=4)]
    assert sorted(index for group in left_out for index in group) == list(range(103))


def test_set_metrics_are_those_of_the_pure_functions():
    real, fake = normal(90, 5, seed=11).float(), normal(60, 5, seed=12).float() * 1.3
    rows = resampled_metrics(real, fake, ["kid", "pr"], groups=5, seed=1)
    subsets = [torch.arange(60), *jackknife_subsets(60, groups=5, seed=1)]
    for position, subset in enumerate(subsets):
        assert float(rows["kid"][position]) == pytest.approx(kernel_distance(real, fake[subset]).value, abs=1e-5)
        found = precision_recall(real[:60], fake[subset], k=3)
        assert [float(rows[k][position]) for k in found._fields] == pytest.approx(list(found))
    big = resampled_metrics(real + 300, fake + 300, ["kid"], groups=5, seed=1)["kid"]
    assert float(big[0]) == pytest.approx(kernel_distance(real.double() + 300, fake.double() + 300).value, rel=1e-3)


def test_only_the_canonical_network_makes_a_fid():
    canonical = SimpleNamespace(name="inception", spec={"type": "inception"})
    own = SimpleNamespace(name="inception", spec=None)
    other = SimpleNamespace(name="random", spec={"type": "random"})
    assert [metric_name(key, canonical) for key in ("fd", "kid", "recall")] == ["fid", "kid", "recall_inception"]
    assert [metric_name(key, own) for key in ("fd", "kid")] == ["fd_own-inception", "kd_own-inception"]
    assert [metric_name(key, other) for key in ("fd", "kid")] == ["fd_random", "kd_random"]


@pytest.mark.parametrize("share", [0.98, 0.5])
def test_the_interval_of_precision_covers_the_share(share):
    """With exact binomial probabilities; the jackknife's has no width where all images count, or none."""
    n = 100
    rows = [torch.full((11,), count / n, dtype=torch.float64) for count in range(n + 1)]
    intervals = [set_interval("precision", row, n=n) for row in rows]
    chances = [math.comb(n, count) * share**count * (1 - share) ** (n - count) for count in range(n + 1)]
    covered = sum(p for p, i in zip(chances, intervals, strict=True) if i.low <= share <= i.high)
    assert 0.93 < covered < 0.99
    ends = pytest.importorskip("scipy.stats").binomtest(93, 100).proportion_ci(method="wilson")
    assert intervals[93][1:] == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert (intervals[0].low, intervals[100].high) == (0, 1)
    with pytest.raises(ValueError, match="share must be in"):
        wilson_interval(1.2, 10)


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
    with pytest.raises(ValueError, match="confidence must be between 0 and 1"):
        bootstrap_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="at least as many items, got 5"):
        group_jackknife(lambda rows: 0.0, 5)
    with pytest.raises(ValueError, match="unknown metric 'fad'"):
        resampled_metrics(normal(30, 2), normal(30, 2), ["fad"])
    assert bootstrap_interval([2.0, 2.0, 2.0]) == Interval(2.0, 2.0, 2.0)
    assert t_interval(0.0, 1.0, degrees=1).high == pytest.approx(12.7062, abs=1e-4)
    assert compare_interval(Interval(0.0, -1.0, 1.0), higher_is_better=True, n=3).verdict == "cannot tell"
