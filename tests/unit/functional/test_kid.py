"""The kernel distance against its definition, other libraries, and its error against repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qa_hooks.functional.kid import kernel_distance, kernel_sums, squared_mmd


def naive(x: torch.Tensor, y: torch.Tensor, degree: int = 3) -> float:
    """The definition, in NumPy and float64, with the whole kernel matrices."""
    x, y = (rows.double().numpy() for rows in (x, y))
    k_xx, k_yy, k_xy = ((a @ b.T / a.shape[1] + 1) ** degree for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    within = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1)) + (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())


def features(count: int, seed: int, *, dim: int = 192, shift: float = 0.0) -> torch.Tensor:
    """Like a network's: rectified, correlated, far from the origin."""
    basis = torch.randn(24, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 24, generator=generator) @ basis / 5 + 0.3 + shift).relu()


@pytest.mark.parametrize(("n", "m"), [(300, 300), (517, 301), (3, 700)])
def test_equals_the_definition(n, m):
    x, y = features(n, 1), features(m, 2, shift=0.05)
    assert kernel_distance(x, y).value == pytest.approx(naive(x, y), rel=1e-4)
    assert kernel_distance(x.double(), y.double()).value == pytest.approx(naive(x, y), rel=1e-9)
    assert kernel_distance(x, y, degree=2).value == pytest.approx(naive(x, y, 2), rel=1e-4)


def test_the_sums_of_one_set_can_be_known_before():
    x, y = features(500, 1), features(90, 2, shift=0.2)
    rows = x.double().numpy()
    kernel = (rows @ rows.T / rows.shape[1] + 1) ** 3
    sums = kernel_sums(x)
    np.testing.assert_allclose(sums.numpy(), kernel.sum(1) - np.diag(kernel), rtol=1e-5)
    ones = [torch.ones(1, len(part), dtype=torch.float64) for part in (x, y)]
    for one, other in zip(squared_mmd(x, y, *ones), squared_mmd(x, y, *ones, sums_x=sums), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_a_small_distance_keeps_its_digits():
    x, y = features(600, 1), features(600, 2)
    assert abs(naive(x, y)) < 0.02
    assert kernel_distance(x, y).value == pytest.approx(naive(x, y), rel=1e-4)


@pytest.mark.parametrize("mean", [100.0, 1000.0])
def test_features_far_from_the_origin_keep_their_digits(mean):
    """Products of such features in float32 are off by 5e-4 and by 2 %."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 500, 64, generator=generator) + mean
    y += 0.1
    assert kernel_distance(x, y).value == pytest.approx(naive(x, y), rel=1e-5)
    assert kernel_distance(x, y, subsets=2, subset_size=500).value == pytest.approx(naive(x, y), rel=1e-5)


def test_many_subsets_share_one_real_set():
    x, y = features(60, 1), features(50, 2, shift=0.1)
    ones, members = torch.ones(1, 60).double(), (torch.arange(50) % 7 != torch.arange(3)[:, None]).double()
    values = squared_mmd(x, y, ones, members)[0]
    assert values.tolist() == pytest.approx([naive(x, y[member > 0]) for member in members], rel=1e-6)


@pytest.mark.parametrize("subsets", [4, 40])  # one by one, and out of the kernel of all rows
def test_the_subsets_of_torchmetrics_give_its_numbers(subsets):
    kid = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(400, 1), features(350, 2, shift=0.03)
    generator, values = torch.Generator().manual_seed(5), []
    for _ in range(subsets):
        rows = [torch.randperm(len(part), generator=generator)[:100] for part in (x, y)]
        values.append(float(kid.poly_mmd(x[rows[0]].double(), y[rows[1]].double())))
    found = kernel_distance(x, y, subsets=subsets, subset_size=100, generator=torch.Generator().manual_seed(5))
    assert found.value == pytest.approx(np.mean(values), rel=1e-4)


def test_equals_torch_fidelity_on_all_rows():
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = features(300, 1), features(300, 2, shift=0.03)
    options = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    options |= {"kid_subsets": 2, "kid_subset_size": 300, "kid_kernel_poly_coef0": 1.0, "rng_seed": 0}
    theirs = metric_kid.kid_features_to_metric(x.double(), y.double(), verbose=False, **options)
    found = kernel_distance(x, y).value
    assert found == pytest.approx(theirs[metric_kid.KEY_METRIC_KID_MEAN], rel=1e-4)
    assert kernel_distance(x, y, subsets=3).value == pytest.approx(found, rel=1e-6)  # min(1000, n) is all of them


def gaussian(count: int, generator: torch.Generator, shift: float) -> torch.Tensor:
    return torch.randn(count, 4, generator=generator) + shift


@pytest.mark.parametrize("options", [{}, {"subsets": 5, "subset_size": 60}, {"fixed_real": True}])
def test_the_error_is_the_spread_over_draws(options):
    """A deviation over subsets would fail: with 5 subsets of 60 it is several times the spread of the mean."""
    generator = torch.Generator().manual_seed(0)
    real = gaussian(120, generator, 0.5)
    found = []
    for _ in range(300):
        own = real if options.get("fixed_real") else gaussian(120, generator, 0.5)
        found.append(kernel_distance(own, gaussian(150, generator, 0.0), generator=generator, **options))
    spread = float(torch.tensor([value for value, _ in found]).std())
    error = math.sqrt(sum(error**2 for _, error in found) / len(found))
    assert 0.85 * spread < error < 1.25 * spread


def test_equal_distributions_are_at_zero_within_the_error():
    generator = torch.Generator().manual_seed(1)
    inside = 0
    for _ in range(100):
        value, error = kernel_distance(gaussian(80, generator, 0.0), gaussian(80, generator, 0.0))
        inside += abs(value) < 2 * error
    assert inside >= 90


def test_identical_and_collapsed_sets_are_finite():
    x = features(50, 1)
    value, error = kernel_distance(x, x)
    assert math.isfinite(value)
    assert math.isfinite(error)
    assert value < 0  # the pairs (i, i) count across the sets and not within
    constant = torch.ones(20, 192)
    value, error = kernel_distance(constant, constant)
    assert value == pytest.approx(0, abs=1e-5)
    assert error == pytest.approx(0, abs=1e-5)


def test_the_users_matmul_precision_does_not_matter():
    x, y = features(200, 1), features(200, 2)
    torch.set_float32_matmul_precision("medium")
    try:
        value = kernel_distance(x, y).value
    finally:
        torch.set_float32_matmul_precision("highest")
    assert value == pytest.approx(naive(x, y), rel=1e-6)


def test_bad_input_is_refused():
    x = torch.rand(10, 4)
    with pytest.raises(ValueError, match=r"\(n, d\) and \(m, d\), got \(10, 4\) and \(10, 5\)"):
        kernel_distance(x, torch.rand(10, 5))
    with pytest.raises(ValueError, match="at least 3 rows of each, got 10 and 2"):
        kernel_distance(x, x[:2])
    with pytest.raises(ValueError, match="fake holds non-finite"):
        kernel_distance(x, x / 0)
    with pytest.raises(ValueError, match="subsets"):
        kernel_distance(x, x, subsets=0)


def test_the_error_of_one_subset_is_finite_and_that_of_its_rows():
    x, y = features(200, 0), features(200, 1, shift=0.1)
    everything = kernel_distance(x, y, subsets=1, subset_size=200)
    assert everything.error == pytest.approx(kernel_distance(x, y).error, rel=1e-6)
    assert 0 < kernel_distance(x, y, subsets=1, subset_size=100).error < math.inf
