from __future__ import annotations

import pytest
import torch
from torch import nn

from qa_hooks.functional.structural_similarity import ssim, ssim_distance
from qa_hooks.losses import MSSSIMLoss, QALoss, ScoreLoss, SSIMDistanceLoss, SSIMLoss
from qa_hooks.scorers import PSNR, FunctionScorer, create_scorer


@pytest.fixture
def pair(photographs):
    torch.manual_seed(0)
    target = photographs[:3, :, :64, :64]
    return (target + 0.1 * torch.randn_like(target)).requires_grad_(), target


class Absolute(QALoss):
    name = "l1"

    def per_image(self, pred, target, **inputs):
        return (pred - target).abs().mean((1, 2, 3))


def test_the_formula(pair):
    pred, target = pair
    each = (pred - target).abs().mean((1, 2, 3))
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert torch.allclose(Absolute(weight=2.0)(pred, target), 2 * each.mean())
    assert torch.allclose(Absolute(weight=2.0, reduction="none")(pred, target), 2 * each)
    assert torch.allclose(Absolute()(pred, target, sample_weight=weights), (weights * each).sum() / 3)


def test_terms_are_unweighted_and_detached(pair):
    loss = SSIMLoss(weight=3.0)
    value = loss(*pair)
    assert loss.terms["ssim_loss"].item() == pytest.approx(value.item() / 3)
    assert not loss.terms["ssim_loss"].requires_grad


@pytest.mark.filterwarnings("ignore:images of 64x64 have room for 3")
def test_losses_are_what_they_say(pair):
    pred, target = pair
    assert torch.allclose(SSIMLoss(reduction="none")(pred, target), 1 - ssim(pred, target))
    assert torch.allclose(SSIMDistanceLoss(reduction="none")(pred, target), ssim_distance(pred, target))
    assert MSSSIMLoss()(pred, target) > 0


def test_descending_each_loss_brings_the_images_together(photographs):
    torch.manual_seed(0)
    target = photographs[:1, :, :64, :64]
    for loss in (SSIMLoss(), MSSSIMLoss(), SSIMDistanceLoss()):
        pred = (target + 0.1 * torch.randn_like(target)).clamp(0, 1).requires_grad_()
        optimizer = torch.optim.Adam([pred], lr=0.01)
        start, before = None, (pred.detach() - target).square().mean()
        for _ in range(30):
            value = loss(pred, target)
            start = start or value.item()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert value.item() < 0.3 * start
        assert (pred - target).square().mean() < 0.9 * before


def test_terms_do_not_depend_on_the_weights(pair):
    loss = SSIMLoss()
    loss(*pair, sample_weight=torch.zeros(3))
    assert loss.terms["ssim_loss"] > 0.1


def test_weight_zero_is_a_constant(pair):
    class Never(QALoss):
        def per_image(self, pred, target, **inputs):
            raise AssertionError("computed")

    assert not Never(weight=0)(*pair).requires_grad
    assert Never(weight=0, reduction="none")(*pair).tolist() == [0, 0, 0]


@pytest.mark.parametrize("high", [1.0, 255.0])
@pytest.mark.parametrize(("score", "plain"), [("ssim", SSIMLoss), ("ms_ssim", MSSSIMLoss)])
def test_a_balanced_score_pulls_as_the_plain_loss_does_at_a_share_of_another_term(score, plain, high):
    draw = torch.Generator().manual_seed(0)
    target = high * (0.3 + 0.4 * torch.rand(2, 3, 176, 176, generator=draw))
    pred = (target + 0.05 * high * torch.randn(target.shape, generator=draw)).clamp(0, high).requires_grad_()
    l1 = (pred - target).abs().mean()
    (of_l1,) = torch.autograd.grad(l1, pred, retain_graph=True)
    balanced = ScoreLoss(create_scorer(score, (0, high)), balance=0.3)(pred, target, fidelity=l1)
    (of_balanced,) = torch.autograd.grad(balanced, pred)
    (of_plain,) = torch.autograd.grad(plain(value_range=(0, high))(pred, target), pred)
    assert torch.cosine_similarity(of_balanced.flatten(), of_plain.flatten(), dim=0) > 0.9999
    assert float(of_balanced.norm() / of_l1.norm()) == pytest.approx(0.3, rel=1e-3)


def test_bad_input(pair):
    pred, target = pair
    with pytest.raises(TypeError, match=r"pred must be floating point .*float\(\) / 255"):
        SSIMLoss()(target.mul(255).byte(), target)
    with pytest.raises(ValueError, match="SSIMLoss needs a target"):
        SSIMLoss()(pred)
    with pytest.raises(ValueError, match="pred and target must have the same shape"):
        SSIMLoss()(pred, target[:, :, :32])
    with pytest.raises(ValueError, match="target: values lie in"):
        SSIMLoss(value_range=(0, 0.1))(pred, target)
    with pytest.raises(ValueError, match="pred: some values are not finite"):
        SSIMLoss()(pred * float("nan"), target)
    with pytest.raises(ValueError, match=r"sample_weight must be \(3,\)"):
        SSIMLoss()(pred, target, sample_weight=torch.ones(2))
    with pytest.raises(TypeError, match="sample_weight must be a tensor"):
        SSIMLoss()(pred, target, sample_weight=[1, 1, 1])
    with pytest.raises(ValueError, match="SSIMLoss takes no reference: the ground truth is its second argument"):
        SSIMLoss()(torch.rand(1, 3, 16, 16), reference=torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="SSIMLoss takes no prompt"):
        SSIMLoss()(pred, target, prompt=["a"] * 3)
    with pytest.raises(ValueError, match='variant must be "metric" or "official", got \'oficial\''):
        SSIMDistanceLoss(variant="oficial")
    with pytest.raises(ValueError, match=r"ScoreLoss\(psnr\) needs a target"):
        ScoreLoss(PSNR())(pred)
    with pytest.raises(ValueError, match="reduction must be one of"):
        SSIMLoss(reduction="sum")
    with pytest.raises(ValueError, match="weight must be a finite number"):
        SSIMLoss(weight=float("inf"))


@pytest.mark.filterwarnings("ignore:.*has no best value, and this loss no ceiling")
class TestScoreLoss:
    def test_the_sign_is_applied_once(self, pair):
        pred, _ = pair
        brightness = lambda x: x.mean((1, 2, 3))  # noqa: E731
        for better, sign in ((True, -1), (False, 1)):
            scorer = FunctionScorer(brightness, name="brightness", higher_is_better=better)
            assert torch.allclose(ScoreLoss(scorer)(pred), sign * pred.mean())

    def test_a_reference_scorer_gets_the_target(self, pair):
        assert torch.allclose(ScoreLoss(PSNR())(*pair), -PSNR()(pair[0], reference=pair[1]).mean())

    def test_the_scorer_is_frozen_and_not_owned(self, pair):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
        with pytest.warns(UserWarning, match="calls a Sequential whose parameters need gradients"):
            scorer = FunctionScorer(lambda x: net(x).mean((1, 2, 3)), name="net", higher_is_better=True)
        owned = FunctionScorer(
            nn.Sequential(net, nn.Flatten(), nn.Linear(15376, 1)), name="owned", higher_is_better=True
        )
        parent = nn.ModuleDict({"a": ScoreLoss(scorer), "b": ScoreLoss(owned)}).train()
        parent["b"](pair[0]).backward()
        assert pair[0].grad.abs().sum() > 0
        assert not list(parent.parameters())
        assert not parent.state_dict()
        assert not net.training
        assert all(not p.requires_grad and p.grad is None for p in net.parameters())

    def test_what_has_no_gradient_is_refused(self, pair):
        flat = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="flat", higher_is_better=True, differentiable=False)
        with pytest.raises(ValueError, match="flat has no usable gradient"):
            ScoreLoss(flat)
        cut = FunctionScorer(lambda x: x.detach().mean((1, 2, 3)), name="cut", higher_is_better=True)
        with pytest.raises(ValueError, match="no gradient comes back from cut"):
            ScoreLoss(cut)(pair[0])
        with pytest.raises(TypeError, match="wrap a function as FunctionScorer"):
            ScoreLoss(lambda x: x)

    def test_the_range_is_the_scorers(self, pair):
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="m", higher_is_better=True, value_range=(-1, 1))
        assert ScoreLoss(scorer)(torch.zeros(1, 1, 4, 4)).item() == -0.5
