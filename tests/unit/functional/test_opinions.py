"""The losses of opinions against closed forms and integrals."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, stats

from qa_hooks.functional.opinions import fidelity_loss, log_preference, normal_divergence


@pytest.mark.parametrize("link", ["thurstone", "bradley-terry"])
def test_probabilities_are_the_models(link):
    gaps = torch.linspace(-3, 3, 13, dtype=torch.float64)
    better, worse = (part.exp() for part in log_preference(gaps, link=link))
    wanted = stats.norm.cdf(gaps.numpy() / math.sqrt(2)) if link == "thurstone" else stats.logistic.cdf(gaps.numpy())
    torch.testing.assert_close(better, torch.from_numpy(wanted))
    torch.testing.assert_close(better + worse, torch.ones_like(gaps))


def test_thurstone_is_the_chance_that_one_opinion_exceeds_another():
    """Each opinion of a is N(s_a, 1): simulated."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    share = float((a + 0.8 > b).double().mean())
    assert abs(float(log_preference(torch.tensor(0.8))[0].exp()) - share) < 3e-3


@pytest.mark.parametrize("link", ["thurstone", "bradley-terry"])
def test_the_fidelity_loss(link):
    gaps, target = torch.tensor([0.3, -1.2, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.5, 0.2]).double()
    p = log_preference(gaps, link=link)[0].exp()
    wanted = 1 - (p * target).sqrt() - ((1 - p) * (1 - target)).sqrt()
    torch.testing.assert_close(fidelity_loss(gaps, target, link=link), wanted)
    assert float(fidelity_loss(torch.zeros(1), torch.tensor([0.5]), link=link)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("link", ["thurstone", "bradley-terry"])
def test_its_gradient_is_finite_however_far_apart(link):
    gaps = torch.tensor([-40.0, -8.0, 0.0, 8.0, 40.0], requires_grad=True)
    fidelity_loss(gaps, torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]), link=link).sum().backward()
    assert bool(gaps.grad.isfinite().all())
    assert float(gaps.grad[1]) < 0 < float(gaps.grad[3])  # also where a probability is 1 in float32


def test_the_divergence_is_the_integral():
    mean, deviation, target, spread = 0.4, 1.3, -0.2, 0.7
    p, q = stats.norm(target, spread), stats.norm(mean, deviation)
    wanted, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -8, 8)
    found = normal_divergence(*(torch.tensor([x], dtype=torch.float64) for x in (mean, deviation, target, spread)))
    assert float(found) == pytest.approx(wanted, abs=1e-8)


def test_an_unknown_link_is_refused():
    with pytest.raises(ValueError, match="thurstone"):
        log_preference(torch.zeros(1), link="elo")
