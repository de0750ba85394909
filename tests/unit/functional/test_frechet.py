from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_distance, frechet_factor, inception_score


def moments(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows.mean(0)), torch.from_numpy(np.cov(rows.T))


def oracle(rows_a: np.ndarray, rows_b: np.ndarray) -> float:
    """The textbook formula with SciPy's matrix square root."""
    linalg = pytest.importorskip("scipy.linalg")
    (mean_a, cov_a), (mean_b, cov_b) = ((r.mean(0), np.cov(r.T)) for r in (rows_a, rows_b))
    root = linalg.sqrtm(cov_a @ cov_b).real
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12)), rng.normal(size=(400, 12)) * 2 + 1
    assert float(frechet_distance(*moments(a), *moments(b))) == pytest.approx(oracle(a, b), rel=1e-8)


def test_closed_form_of_axis_aligned_gaussians():
    deviations_a, deviations_b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.5, 3.0])
    offset = torch.tensor([1.0, -2.0, 0.0])
    distance = frechet_distance(torch.zeros(3), deviations_a.square().diag(), offset, deviations_b.square().diag())
    assert float(distance) == pytest.approx(float(offset.square().sum() + (deviations_a - deviations_b).square().sum()))


def test_identical_sets_are_at_zero():
    rows = np.random.default_rng(1).normal(size=(300, 64)) * 50
    mean, covariance = moments(rows)
    assert float(frechet_distance(mean, covariance, mean, covariance)) < 1e-6 * float(covariance.trace())


@pytest.mark.parametrize("rows", [20, 2])
def test_fewer_images_than_dimensions_stay_finite_and_right(rows):
    rng = np.random.default_rng(2)
    small, large = rng.normal(size=(rows, 64)), rng.normal(size=(500, 64)) + 0.5
    distance = float(frechet_distance(*moments(small), *moments(large)))
    # tr sqrt(S_a S_b) from the eigenvalues of the factor that exists, X^T S_b X / (n - 1).
    centred = (small - small.mean(0)) / np.sqrt(rows - 1)
    eigenvalues = np.linalg.eigvalsh(centred @ np.cov(large.T) @ centred.T)
    root = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    expected = (
        ((small.mean(0) - large.mean(0)) ** 2).sum() + np.trace(np.cov(small.T)) + np.trace(np.cov(large.T)) - 2 * root
    )
    assert distance == pytest.approx(expected, rel=1e-6)


def test_collapsed_features_stay_finite():
    zero = torch.zeros(4, 4)
    assert float(frechet_distance(torch.zeros(4), zero, torch.ones(4), torch.eye(4))) == pytest.approx(8.0)
    assert float(frechet_distance(torch.zeros(4), zero, torch.ones(4), zero)) == pytest.approx(4.0)


def test_bad_moments_are_refused():
    with pytest.raises(ValueError, match="one d"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(4), torch.eye(4))
    with pytest.raises(ValueError, match="non-finite"):
        frechet_distance(torch.tensor([float("nan")]), torch.eye(1), torch.zeros(1), torch.eye(1))


def test_inception_score_of_known_cases():
    classes = torch.eye(7).repeat(20, 1) * 1000
    assert float(inception_score(classes, splits=2)[0]) == pytest.approx(7)
    assert float(inception_score(torch.zeros(40, 7), splits=4)[0]) == pytest.approx(1)
    with pytest.raises(ValueError, match="N >= splits"):
        inception_score(torch.zeros(3, 7), splits=4)


def test_inception_score_equals_the_definition():
    logits = np.random.default_rng(3).normal(size=(60, 5)) * 3
    scores = []
    for part in np.split(logits, 3):
        p = np.exp(part) / np.exp(part).sum(1, keepdims=True)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    mean, std = inception_score(torch.from_numpy(logits), splits=3)
    assert float(mean) == pytest.approx(np.mean(scores), rel=1e-12)
    assert float(std) == pytest.approx(np.std(scores), rel=1e-9)


def rectified(rows: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(dim, dim, generator=torch.Generator().manual_seed(9)) / dim**0.5
    return (torch.randn(rows, dim, generator=generator) * torch.logspace(0, -2, dim) @ basis + 0.2).relu()


@pytest.mark.parametrize("counts", [(900, 700), (900, 60), (60, 900)])
def test_equals_torch_fidelity_and_torchmetrics(counts):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    sets = [rectified(count, 128, seed) for seed, count in enumerate(counts)]
    statistics = [metric_fid.fid_features_to_statistics(rows) for rows in sets]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, False)[metric_fid.KEY_METRIC_FID]
    ours = []
    for rows in sets:
        gathered = Moments(128)
        for batch in rows.split(64):
            gathered.update(batch)
        ours += [gathered.mean(), gathered.covariance()]
    found = float(frechet_distance(*ours))
    assert found == pytest.approx(theirs, rel=1e-4)
    assert float(frechet_distance(*ours, factor_a=frechet_factor(ours[1]))) == pytest.approx(found, rel=1e-9)
    fid = pytest.importorskip("torchmetrics.image.fid")
    assert found == pytest.approx(float(fid._compute_fid(*ours)), rel=1e-4)


def test_a_factor_reaches_over_blocks():
    """More dimensions than a block, so that the products of a triangle are put together from several."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(900, 600)), rng.normal(size=(1000, 600)) * 1.3
    distance = float(frechet_distance(*moments(a), *moments(b)))
    assert distance == pytest.approx(oracle(a, b), rel=1e-8)
    singular = torch.zeros(600, 600, dtype=torch.float64)
    assert frechet_factor(singular).shape == (600, 0)
    assert float(frechet_distance(*moments(a), torch.zeros(600), singular)) == pytest.approx(
        float((moments(a)[0] ** 2).sum() + moments(a)[1].trace()), rel=1e-9
    )


def test_a_factor_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="factor_a must be"):
        frechet_distance(torch.zeros(3), torch.eye(3), torch.zeros(3), torch.eye(3), factor_a=torch.eye(4))


def test_inception_score_equals_torch_fidelity():
    metric_isc = pytest.importorskip("torch_fidelity.metric_isc")
    logits = torch.randn(203, 12, generator=torch.Generator().manual_seed(0)) * 2
    theirs = metric_isc.isc_features_to_metric(logits, splits=1, shuffle=False)
    assert float(inception_score(logits, splits=1)[0]) == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    theirs = metric_isc.isc_features_to_metric(logits[:200], splits=10, shuffle=False)
    mean, std = inception_score(logits[:200], splits=10)
    assert float(mean) == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert float(std) == pytest.approx(theirs["inception_score_std"], rel=1e-4)
