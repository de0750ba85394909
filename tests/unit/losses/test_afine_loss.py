"""A-FINE as a loss: the right sign for every naturalness, and what it shows of itself."""

from __future__ import annotations

import math

import pytest
import torch

from qa_hooks import Hooks, MemoryWriter
from qa_hooks.losses import AFINELoss
from qa_hooks.scorers import AFINE, PSNR
from qa_hooks.scorers.afine.checkpoint import random_checkpoint
from qa_hooks.scorers.afine.heads import Terms


@pytest.fixture(scope="module")
def scorer():
    return AFINE(random_checkpoint())


def pair(seed=0):
    return torch.rand(2, 2, 3, 32, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("natural", [-1.0, 0.0, 0.5, 1.5])
@pytest.mark.parametrize("other", [-1.5, 0.0, 1.5])
def test_less_natural_is_always_worse(natural, other):
    """The published D is not so: dD/dN = lambda (1 - k N) is below 0 for N > 1/k."""
    k, own, fidelity = 5.0, torch.tensor([natural], requires_grad=True), torch.tensor([0.3], requires_grad=True)
    reference = torch.tensor([other])
    terms = Terms(fidelity, own, reference, k * (reference - own), reference - 2)
    slopes = torch.autograd.grad(terms.loss(10.0).sum(), [own, fidelity], retain_graph=True)
    assert float(slopes[0]) == pytest.approx(min(math.exp(k * (other - natural)), 10.0), rel=1e-5)
    assert float(slopes[1]) == 1
    (plain,) = torch.autograd.grad(terms.distance.sum(), own)
    assert float(plain) == pytest.approx(math.exp(k * (other - natural)) * (1 - k * natural), rel=1e-4)
    assert (float(plain) < 0) == (natural > 1 / k)


def test_the_value_the_terms_and_no_gradient_to_the_target(scorer):
    pred, target = pair()
    target.requires_grad_()
    loss = AFINELoss(scorer, weight=2.0)
    value = loss(pred.requires_grad_(), target)
    value.backward()
    assert target.grad is None
    assert bool(pred.grad.isfinite().all() & (pred.grad.abs().amax((1, 2, 3)) > 0).all())
    terms = scorer.terms(pred.detach(), target.detach())
    expected = terms.fidelity + terms.log_lambda.exp().clamp(max=10) * terms.naturalness
    assert value.item() == pytest.approx(2 * float(expected.mean()), rel=1e-4)
    for name in ("fidelity", "naturalness", "log_lambda", "distance", "better_than_reference"):
        assert float(loss.terms[name]) == pytest.approx(float(getattr(terms, name).mean()), rel=1e-3, abs=1e-4)


def test_descending_it_brings_the_image_to_the_target(scorer):
    noise, target = pair(1)
    pred = noise[:1].clone().requires_grad_()
    loss, optimizer = AFINELoss(scorer), torch.optim.Adam([pred], lr=0.02)
    before = float(scorer.terms(pred.detach(), target[:1]).fidelity)
    for _ in range(20):
        value = loss(pred, target[:1])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert float(scorer.terms(pred.detach(), target[:1]).fidelity) < before


def test_a_run_logs_its_terms(scorer):
    pred, target = pair()
    loss, writer = AFINELoss(scorer), MemoryWriter()
    with Hooks([], writer=writer, track={"afine": loss}, log_every=1) as hooks:
        loss(pred.requires_grad_(), target)
        hooks.step(1)
    assert any("better_than_reference" in tag for tag in writer.scalars)


def test_what_cannot_be_used_is_refused(scorer):
    with pytest.raises(TypeError, match="scorer must be an AFINE or a FittedAFINE, got PSNR"):
        AFINELoss(PSNR())
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="max_lambda must be a positive number"):
            AFINELoss(scorer, max_lambda=value)
    with pytest.raises(ValueError, match="AFINELoss needs a target"):
        AFINELoss(scorer)(pair()[0])
    assert AFINELoss(scorer, weight=0)(*pair()).item() == 0
