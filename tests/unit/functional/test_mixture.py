from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture

from qa_hooks.functional import mixture, mixture_log_density


def fitted(dim: int, components: int, covariance: str, offset: float = 0.0, seed: int = 0):
    """A mixture fitted by scikit-learn on clustered, correlated data, and other points near to it and far from it."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(dim, dim)) / dim**0.5
    centers = 3 * random.normal(size=(components, dim))
    rows = np.concatenate([random.normal(size=(12 * dim, dim)) @ mix + center for center in centers]) + offset
    options = {"random_state": 0, "max_iter": 5, "init_params": "random_from_data"}
    model = GaussianMixture(components, covariance_type=covariance, **options).fit(rows)
    points = np.concatenate([rows[:20], rows[:5] * 3, rows[-5:] + random.normal(size=(5, dim))])
    return model, points


def arguments(model, dtype=torch.float64):
    parts = np.log(model.weights_), model.means_, model.precisions_cholesky_
    return tuple(torch.from_numpy(part).to(dtype) for part in parts)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
class TestAgainstScikitLearn:
    @pytest.mark.parametrize("covariance", ["full", "diag"])
    @pytest.mark.parametrize(("dim", "components"), [(1, 1), (3, 4), (64, 7)])
    def test_float64(self, dim, components, covariance):
        model, points = fitted(dim, components, covariance)
        ours = mixture_log_density(torch.from_numpy(points), *arguments(model))
        assert np.allclose(ours.numpy(), model.score_samples(points), rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("covariance", ["full", "diag"])
    @pytest.mark.parametrize("dim", [16, 64, 512])
    def test_float32(self, dim, covariance):
        """Of the same float32 inputs, so that only our arithmetic is measured."""
        model, points = fitted(dim, 2, covariance)
        points32, parameters = torch.from_numpy(points).float(), arguments(model, torch.float32)
        exact = mixture_log_density(points32.double(), *(part.double() for part in parameters))
        ours = mixture_log_density(points32, *parameters)
        assert ours.dtype == torch.float32
        assert ((ours - exact).abs() / exact.abs().clamp_min(dim)).max() < 1e-5

    def test_above_512_dimensions_float32_is_computed_in_float64(self):
        dim = 520
        random = torch.Generator().manual_seed(0)
        factors = torch.eye(dim)[None] + 0.01 * torch.randn(1, dim, dim, generator=random).triu()
        parts = torch.randn(9, dim, generator=random), torch.zeros(1), torch.randn(1, dim, generator=random), factors
        exact = mixture_log_density(*(part.double() for part in parts))
        assert torch.equal(mixture_log_density(*parts), exact.float())

    def test_chunks_give_the_same(self, monkeypatch):
        model, points = fitted(8, 5, "full")
        whole = mixture_log_density(torch.from_numpy(points), *arguments(model))
        for chunk in (64, 200, 700):  # one row and one component at a time, and some
            monkeypatch.setattr(mixture, "CHUNK", chunk)
            parts = mixture_log_density(torch.from_numpy(points), *arguments(model))
            assert torch.allclose(parts, whole, rtol=1e-13)

    def test_gradient(self):
        model, points = fitted(3, 2, "full")
        parts = arguments(model)
        assert torch.autograd.gradcheck(
            lambda x: mixture_log_density(x, *parts), torch.from_numpy(points[:6]).requires_grad_()
        )
        diagonal = arguments(fitted(3, 2, "diag")[0])
        assert torch.autograd.gradcheck(
            lambda x: mixture_log_density(x, *diagonal), torch.from_numpy(points[:6]).requires_grad_()
        )


def test_far_points_stay_finite():
    """exp of these underflows in any precision; the logarithm must not."""
    value = mixture_log_density(torch.full((1, 100), 1e4), torch.zeros(1), torch.zeros(1, 100), torch.ones(1, 100))
    assert value.item() == pytest.approx(-0.5e10, rel=1e-5)


def test_shapes_that_do_not_fit_are_named():
    good = torch.zeros(5, 3), torch.zeros(2), torch.zeros(2, 3), torch.ones(2, 3)
    assert mixture_log_density(*good).shape == (5,)
    for position, bad in ((0, torch.zeros(5, 4)), (2, torch.zeros(3)), (3, torch.ones(2, 3, 2)), (3, torch.ones(3, 3))):
        wrong = [bad if index == position else value for index, value in enumerate(good)]
        with pytest.raises(ValueError, match=r"expected values \(n, d\)"):
            mixture_log_density(*wrong)
    with pytest.raises(ValueError, match=r"log_weights must be \(2,\)"):
        mixture_log_density(good[0], torch.zeros(3), *good[2:])


def test_the_users_autocast_does_not_reach_it():
    values, means = torch.randn(50, 16), torch.randn(3, 16)
    model = torch.full((3,), 1 / 3).log(), means, torch.randn(3, 16, 16).tril() * 0.1 + torch.eye(16)
    expected = mixture_log_density(values, *model)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mixture_log_density(values, *model), expected)
