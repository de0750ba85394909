"""Sums over features: the same however the data set was cut, and what is fitted on them equals a fit on all rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks import GMMScorer, KNNScorer
from qa_hooks.features import FeatureSums

DIM = 448  # of the extractor "random"
NAMES = [f"{number:05d}.png" for number in range(1200)]


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(DIM, DIM, generator=generator) * torch.logspace(0, -2, DIM)
    return 40 + torch.randn(len(NAMES), DIM, generator=generator) @ mixing


def gathered(rows, cuts, *, backwards: bool = False, **options) -> FeatureSums:
    parts = []
    for start, stop in zip((0, *cuts), (*cuts, len(rows)), strict=True):
        parts.append(FeatureSums(rows.shape[1], **options))
        for begin in range(start, stop, 100):
            chosen = slice(begin, min(begin + 100, stop))
            parts[-1].update(NAMES[chosen], rows[chosen], (16, 16))
    total = FeatureSums(rows.shape[1], **options)
    for part in reversed(parts) if backwards else parts:
        total.merge(part)
    return total


CUTS = [(), (1, 2, 700), tuple(range(50, 1200, 50))]


def test_the_cut_and_the_order_do_not_matter(rows):
    first, *others = [gathered(rows, cuts, sample=100, backwards=bool(n)) for n, cuts in enumerate(CUTS)]
    assert len(first.fitted) == len(first.held) == 100
    for other in others:
        assert torch.equal(other.fitted, first.fitted)
        assert torch.equal(other.held, first.held)
        assert other.moments.count == first.moments.count
        assert torch.allclose(other.moments.mean(), first.moments.mean(), rtol=1e-13)
        assert torch.allclose(other.moments.scatter(), first.moments.scatter(), rtol=1e-10, atol=1e-7)


def test_moments_are_of_what_is_not_held_out(rows):
    sums = gathered(rows, (500,), sample=len(rows))
    assert sums.moments.count == len(sums.fitted) == len(rows) - len(sums.held)
    assert len(sums.held) == pytest.approx(0.2 * len(rows), rel=0.2)
    expected = np.cov(sums.fitted.double().numpy().T)
    assert sums.moments.covariance().numpy() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert len(gathered(rows, (), held_out=0).held) == 0
    assert not torch.equal(gathered(rows, (), sample=50, seed=1).fitted, gathered(rows, (), sample=50).fitted)


def log_density(rows, dims: int | None) -> np.ndarray:
    """Of a Gaussian in the first `dims` principal components, or in all features, by SciPy in float64."""
    from scipy.stats import multivariate_normal

    values = rows.double().numpy()
    centred = values - values.mean(0)
    covariance = centred.T @ centred / len(values)
    if dims is not None:
        vectors = np.linalg.eigh(covariance)[1][:, ::-1][:, :dims]
        centred, covariance = centred @ vectors, vectors.T @ covariance @ vectors
    return multivariate_normal.logpdf(centred, None, covariance + 1e-6 * np.eye(len(covariance)))


@pytest.mark.parametrize(
    ("options", "dims"),
    [({"pca": 8}, 8), ({"pca": None}, None), ({"pca": 8, "covariance": "diag"}, 8), ({"pca": 0.5}, None)],
)
def test_one_gaussian_of_sums_is_that_of_all_rows(rows, options, dims):
    found = [
        GMMScorer("random", components=1, **options).fit_sums(gathered(rows, cuts, held_out=0), calibration=None)
        for cuts in CUTS
    ]
    if options["pca"] == 0.5:  # as scikit-learn counts them
        whole = GMMScorer("random", components=1, **options).fit_features(rows, calibration=None)
        dims = whole.means.shape[1]
        assert whole.score_features(rows).numpy() == pytest.approx(log_density(rows, dims), rel=1e-4, abs=1e-2)
    expected = log_density(rows, dims)
    for scorer in found:
        assert scorer.means.shape[1] == (dims or DIM)
        assert scorer.score_features(rows).numpy() == pytest.approx(expected, rel=1e-4, abs=1e-2)
        assert torch.allclose(scorer.score_features(rows), found[0].score_features(rows), rtol=1e-5, atol=1e-4)
    assert found[0].fitted_size == (16, 16)


def test_mixtures_and_neighbours_are_fitted_on_the_sample(rows, tmp_path):
    for make in (lambda: GMMScorer("random", components=2, pca=4), lambda: KNNScorer("random", k=2)):
        scorers = [make().fit_sums(gathered(rows, cuts, sample=300)) for cuts in CUTS]
        assert len({scorer.fingerprint for scorer in scorers}) == 1
        assert scorers[0].calibration is not None
        scorers[0].save(tmp_path / "scorer.safetensors")
    sums = gathered(rows, (), sample=300)
    assert torch.equal(KNNScorer("random").fit_sums(sums).bank, sums.fitted)


def test_what_cannot_be_added_or_fitted_is_named(rows):
    sums = FeatureSums(DIM)
    with pytest.raises(ValueError, match="2 rows need as many names, got 1"):
        sums.update(["a"], rows[:2])
    with pytest.raises(ValueError, match="non-finite"):
        sums.update(["a"], torch.full((1, DIM), float("nan")))
    with pytest.raises(ValueError, match=r"shape \(n, 448\)"):
        sums.update(["a"], rows[:1, :3])
    with pytest.raises(ValueError, match="cannot be added"):
        sums.merge(FeatureSums(DIM, seed=1))
    with pytest.raises(ValueError, match="held_out must be a share"):
        FeatureSums(DIM, held_out=1)
    with pytest.raises(ValueError, match="at least 10 held-out images, got 0"):
        GMMScorer("random", components=1).fit_sums(FeatureSums(DIM))
    with pytest.raises(ValueError, match="at least 2 images, got 0"):
        GMMScorer("random", components=1).fit_sums(FeatureSums(DIM), calibration=None)
    with pytest.raises(ValueError, match="source of images was empty"):
        KNNScorer("random").fit_sums(FeatureSums(DIM), calibration=None)
    with pytest.raises(ValueError, match="sums are of 3 features"):
        KNNScorer("random").fit_sums(FeatureSums(3), calibration=None)
    same = gathered(torch.ones(1200, DIM), (), held_out=0)
    with pytest.raises(ValueError, match="are the same: there is nothing to fit"):
        GMMScorer("random", components=1).fit_sums(same, calibration=None)
