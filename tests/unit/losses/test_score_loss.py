"""ScoreLoss as a reward: ceiling, balance, views, range, combination, state."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks.callbacks import Hooks
from qa_hooks.functional.clamp import clamp_inward
from qa_hooks.functional.views import random_view
from qa_hooks.losses import MSSSIMLoss, ScoreLoss, SSIMLoss
from qa_hooks.losses.reward_balance import GradientBalance
from qa_hooks.scorers import NIQE, PSNR, FunctionScorer


def scorer(function=lambda x: x.square().mean((1, 2, 3)), name="power", better=True, bounds=(0.0, 1.0), **options):
    return FunctionScorer(function, name=name, higher_is_better=better, score_range=bounds, **options)


def curved(x):
    """A score with a gradient of its own at each pixel."""
    weights = torch.linspace(-1, 2, x[0].numel(), dtype=x.dtype).view_as(x[0])
    return (torch.sin(3 * x) * weights).mean((1, 2, 3))


def batch(n=3, side=6, seed=0, low=0.0, high=1.0):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def gradient(loss, pred, **inputs):
    pred = pred.clone().requires_grad_()
    value = loss(pred, **inputs)
    value.backward()
    return pred.grad, value.detach()


class TestCeiling:
    def test_above_it_there_is_no_gradient(self):
        images = torch.stack([torch.full((3, 4, 4), v) for v in (0.2, 0.6, 0.9)])
        mean = scorer(lambda x: x.mean((1, 2, 3)))
        loss = ScoreLoss(mean, ceiling=0.6, reduction="none")
        grads, _ = gradient(lambda p: loss(p).sum(), images)
        assert torch.allclose(loss(images), torch.tensor([0.4, 0.0, 0.0]), atol=1e-6)
        assert torch.allclose(grads.flatten(1).sum(1), torch.tensor([-1.0, 0.0, 0.0]))
        assert loss.terms["at_ceiling"].item() == pytest.approx(2 / 3)
        assert loss.terms["score"].item() == pytest.approx(images.mean().item())

    def test_a_number_is_in_the_scorers_own_direction(self):
        error = scorer(lambda x: 10 * x.mean((1, 2, 3)), better=False, bounds=None)
        loss = ScoreLoss(error, ceiling=3.0, reduction="none")
        images = torch.stack([torch.full((3, 4, 4), v) for v in (0.1, 0.5)])
        assert loss(images).tolist() == pytest.approx([0.0, 2.0])
        assert loss.ceiling == 3.0
        loss(images)
        assert loss.terms["ceiling"].item() == 3.0  # in the direction of the score
        assert loss.terms["score"].item() == pytest.approx(3.0)

    def test_real_is_the_median_of_the_first_64(self):
        power = scorer(bounds=None)
        loss = ScoreLoss(power, ceiling="real")
        with pytest.raises(ValueError, match='ceiling="real" of ScoreLoss\\(power\\) needs real images'):
            loss(batch())
        reals = [batch(25, seed=s) for s in range(5)]
        for real in reals:
            loss(batch(), real=real)
        seen = power(torch.cat(reals[:3])).sort().values  # 75 images: the third call completes 64
        assert loss.ceiling == pytest.approx(seen[37].item())
        loss(batch())  # from now on without
        assert len(loss.run_state()["real"]) == 75

    def test_a_level_that_the_scorer_knows_is_taken(self):
        for better, level in ((True, 0.0), (False, 2.0)):
            knows = scorer(better=better, bounds=None)
            knows.real_level = level
            assert ScoreLoss(knows, ceiling="real").ceiling == level

    def test_it_stops_an_optimizer(self, photographs):
        contrast = scorer(lambda x: 10 * (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)), "contrast", bounds=None)
        real = photographs[:, :, 80:112, 80:112]
        start = nn.functional.avg_pool2d(nn.functional.pad(real, (1, 1, 1, 1), mode="replicate"), 3, 1)
        reached = {}
        for ceiling in ("real", 1e9):
            pred = start.clone().requires_grad_()
            loss, optimizer = ScoreLoss(contrast, ceiling=ceiling), torch.optim.SGD([pred], lr=3.0)
            for _ in range(200):
                optimizer.zero_grad()
                loss(pred, real=real).backward()
                optimizer.step()
            reached[ceiling] = contrast(pred.detach())
        level, begun = contrast(real).median(), contrast(start)
        assert begun.min() < 0.8 * level
        assert (reached["real"] < 1.25 * torch.maximum(begun, level)).all()
        assert (reached["real"] > 0.99 * level).all()
        assert (reached[1e9] > 2 * level).all()

    def test_an_unbounded_score_without_one_warns(self):
        with pytest.warns(UserWarning, match="open has no best value, and this loss no ceiling"):
            ScoreLoss(scorer(name="open", bounds=None))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ScoreLoss(scorer())
            ScoreLoss(PSNR())
            ScoreLoss(scorer(bounds=None), ceiling=1.0)
            ScoreLoss(scorer(bounds=None), weight=0)

    def test_bad_ceilings(self):
        for wrong in ("reel", float("nan"), True, [1.0]):
            with pytest.raises(ValueError, match="ceiling must be a finite score"):
                ScoreLoss(scorer(), ceiling=wrong)
        with pytest.raises(ValueError, match="no meaning for psnr"):
            ScoreLoss(PSNR(), ceiling="real")
        with pytest.raises(ValueError, match="real: values lie in"):
            ScoreLoss(scorer(), ceiling="real")(batch(), real=255 * batch())
        with pytest.raises(ValueError, match="score of a real image is not finite"):
            ScoreLoss(scorer(lambda x: x.mean((1, 2, 3)).log()), ceiling="real")(batch(), real=0 * batch())


class TestRange:
    def test_gradients_lead_in_and_never_out(self):
        x = torch.tensor([-0.5, -0.5, 0.2, 0.2, 1.5, 1.5], requires_grad=True)
        slopes = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
        (clamp_inward(x) * slopes).sum().backward()
        assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]  # a step goes against them
        ends = torch.tensor([0.0, 1.0], requires_grad=True)  # pixels on the bounds are inside
        (clamp_inward(ends) * torch.tensor([1.0, -1.0])).sum().backward()
        assert ends.grad.tolist() == [1, -1]
        assert clamp_inward(x).tolist() == pytest.approx([0, 0, 0.2, 0.2, 1, 1])

    @pytest.mark.parametrize("balance", [None, 1.0])
    def test_a_pixel_outside_comes_back(self, balance):
        mean = scorer(lambda x: x.mean((1, 2, 3)), value_range=(-1, 1))
        pred = torch.full((1, 3, 4, 4), 1.4)
        pred[:, 0], pred[:, 1] = -1.4, 0.0
        extra = {} if balance is None else {"balance": balance}
        loss = ScoreLoss(mean, ceiling=2.0, **extra)
        pred.requires_grad_()
        loss(pred, fidelity=(pred - 0.3).square().mean()).backward()
        assert (pred.grad[:, 2] > 0).all()  # too bright: the score would pay for more, and is not heard
        assert (pred.grad[:, :2] < 0).all()
        assert loss.terms["out_of_range"].item() == pytest.approx(0.2 * 2 / 3)  # in units of the whole range
        assert loss.terms["score"].item() == pytest.approx(0.5)  # of the clamped image

    def test_a_plain_score_sees_what_it_is_given(self):
        mean = scorer(lambda x: x.mean((1, 2, 3)))
        assert ScoreLoss(mean)(torch.full((1, 1, 2, 2), 1.2)).item() == pytest.approx(-1.2)
        assert ScoreLoss(mean, out_of_range=0.5)(torch.full((1, 1, 2, 2), 1.2)).item() == pytest.approx(-1 + 0.1)


class TestBalance:
    def terms(self, ratio, pred, power):
        target = batch(len(pred), seed=9)
        loss = ScoreLoss(power, balance=ratio)
        pred = pred.clone().requires_grad_()
        fidelity = (pred - target).square().mean()
        (of_fidelity,) = torch.autograd.grad(fidelity, pred, retain_graph=True)
        (of_reward,) = torch.autograd.grad(loss(pred, fidelity=fidelity), pred)
        return loss, of_fidelity, of_reward

    @pytest.mark.parametrize(("share", "told"), [(1.9, False), (2.1, True)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_plain_weight_that_overwhelms_fidelity_is_told_once(self, share, told, dtype):
        pred = batch().to(dtype).requires_grad_()
        fidelity = (pred.float() - batch(seed=9)).abs().mean()
        gradient = torch.autograd.grad(pred.float().mean((1, 2, 3)).sum() / len(pred), pred)[0].float().norm()
        of_fidelity = torch.autograd.grad(fidelity, pred, retain_graph=True)[0].float().norm()
        power = scorer(lambda x: x.mean((1, 2, 3)))
        loss = ScoreLoss(power, ceiling=0.9, weight=float(share * of_fidelity / gradient))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss(pred, fidelity=fidelity)
            loss(pred, fidelity=fidelity).backward()
        assert ["2.1 times the fidelity term's" in str(warning.message) for warning in caught] == [True] * told

    def test_what_cannot_be_compared_is_left_alone(self):
        pred = batch().requires_grad_()
        for fidelity in (torch.tensor(1.0), batch().requires_grad_().mean(), (0 * pred).mean()):
            loss = ScoreLoss(scorer(lambda x: x.mean((1, 2, 3))), weight=1e6, ceiling=0.9)
            assert loss(pred, fidelity=fidelity).isfinite()

    @pytest.mark.parametrize("ratio", [0.1, 1.0, 2.0])
    @pytest.mark.parametrize("unit", [1e-4, 1.0, 1e5])
    def test_the_gradients_have_the_ratio_whatever_the_units(self, ratio, unit):
        _, of_fidelity, of_reward = self.terms(ratio, batch(), scorer(lambda x: unit * curved(x)))
        assert (of_reward.norm() / of_fidelity.norm()).item() == pytest.approx(ratio, rel=1e-4)

    def test_the_weight_is_what_the_term_says_and_the_direction_the_scores(self):
        loss, _, of_reward = self.terms(1.0, batch(), scorer(curved))
        plain, _ = gradient(ScoreLoss(scorer(curved)), batch())
        assert torch.allclose(of_reward, loss.terms["weight"] * plain, rtol=1e-4, atol=1e-9)

    def test_it_is_averaged(self):
        balance, pred = GradientBalance(1.0), torch.zeros(2, 1, 1, 2, requires_grad=True)
        squares = []
        for step in range(4):
            fidelity = (pred * (step + 1.0)).mean()  # each of 4 pixels: (step + 1) / 4
            balance.measure(torch.full((2, 1, 1, 2), 0.5), fidelity, pred)
            squares.append(4 * ((step + 1) / 4) ** 2)
        expected = squares[0]
        for value in squares[1:]:
            expected = 0.99 * expected + 0.01 * value
        assert balance.norms.tolist() == pytest.approx([expected, 4 * (0.5 / 2) ** 2])
        before = balance.norms.clone()
        balance.measure(torch.full((2, 1, 1, 2), float("nan")), pred.mean(), pred)
        assert torch.equal(balance.norms, before)

    def test_images_at_the_ceiling_do_not_raise_the_weight_of_the_others(self):
        pred, target = batch(4), batch(4, seed=9)
        weights = []
        for ceiling in (1e9, float(curved(pred).median())):
            loss, own = ScoreLoss(scorer(curved), balance=1.0, ceiling=ceiling), pred.clone().requires_grad_()
            loss(own, fidelity=(own - target).abs().mean())
            weights.append(loss.terms["weight"].item())
        assert loss.terms["at_ceiling"] >= 0.5
        assert weights[0] == weights[1]

    def test_without_a_gradient_the_last_weight_holds(self):
        loss = ScoreLoss(scorer(curved), balance=1.0)
        own = batch().requires_grad_()
        loss(own, fidelity=own.mean())
        weight, norms = loss.terms["weight"].item(), loss.run_state()["norms"]
        with torch.no_grad():
            value = loss(batch())
        assert value.item() == pytest.approx(-weight * curved(batch()).mean().item())
        assert torch.equal(loss.run_state()["norms"], norms)

    def test_half_precision(self):
        target = batch(2, 64, seed=9)
        for dtype in (torch.bfloat16, torch.float16):
            pred = batch(2, 64).to(dtype).requires_grad_()
            fidelity = (pred - target).abs().mean()  # 4e-5 for each pixel, of which float16 has few steps
            loss = ScoreLoss(scorer(curved), balance=1.0)
            loss(pred, fidelity=fidelity).backward()
            assert loss.run_state()["norms"][0].item() == pytest.approx(1 / pred.numel(), rel=0.01)
            assert torch.isfinite(pred.grad).all()

    def test_bad_balance(self):
        with pytest.warns(UserWarning, match="balance=3 is cut to 2"):
            loss = ScoreLoss(scorer(curved), balance=3)
        own = batch().requires_grad_()
        with pytest.raises(TypeError, match="balance needs the loss that it compares with"):
            loss(own)
        with pytest.raises(ValueError, match="fidelity does not depend on pred"):
            loss(own, fidelity=batch().requires_grad_().mean())
        with pytest.raises(ValueError, match="fidelity does not depend on pred"):
            loss(own, fidelity=torch.tensor(1.0))
        with pytest.raises(ValueError, match="fidelity must be a scalar"):
            loss(own, fidelity=own.mean((1, 2, 3)))
        with pytest.raises(ValueError, match="balance must be a finite number"):
            ScoreLoss(scorer(), balance=-1)


def test_hooks_on_the_predictions_run_in_the_users_backward_alone():
    """DeepSpeed's engine begins its own work in a hook on what the network returned."""
    pred = torch.rand(2, 3, 16, 16).requires_grad_().clone()
    seen = []
    pred.register_hook(lambda gradient: seen.append(gradient.clone()))
    loss = ScoreLoss(scorer(curved), balance=1.0)
    total = loss(pred, fidelity=pred.square().mean())
    assert seen == []
    total.backward()
    assert len(seen) == 1


class TestViews:
    def test_a_view_is_a_crop_resized_and_flipped(self):
        ramp = torch.arange(40.0).view(1, 1, 1, 40).expand(2, 1, 40, 40) / 40
        shapes, flipped, starts = set(), set(), set()
        for seed in range(60):
            view = random_view(ramp.shape, torch.Generator().manual_seed(seed), noise=0.0)(ramp)
            steps = view[0, 0, 0].diff()
            flipped.add(bool(steps.mean() < 0))
            assert (steps < 1e-6).all() or (steps > -1e-6).all()
            ends = view[0, 0, 0, [0, -1]].sort().values
            assert 0.7 < ends[1] - ends[0] < 1  # the crop has 3/4 of the image or more
            starts.add(round(ends[0].item(), 2))
            shapes.add(view.shape[-1])
        assert min(shapes) >= 30
        assert max(shapes) <= 50
        assert len(shapes) > 10
        assert len(starts) > 4
        assert flipped == {True, False}

    def test_the_loss_is_the_mean_over_its_views(self):
        loss = ScoreLoss(scorer(lambda x: x.amax((1, 2, 3))), views=3, seed=5)
        pred = batch(2, 16)
        value = loss(pred)
        generators = copy.copy(loss.random)
        generators.draws = 0
        views = [random_view(pred.shape, generators.generator(), noise=0.01)(pred) for _ in range(3)]
        assert value.item() == pytest.approx(-sum(v.amax((1, 2, 3)).mean().item() for v in views) / 3, abs=1e-6)
        assert loss(pred).item() != value.item()  # the next call has views of its own

    def test_a_reference_moves_along_without_noise(self):
        pred = batch(2, 32)
        value = ScoreLoss(PSNR(), views=4)(pred, pred)
        assert value.item() == pytest.approx(-40.0, abs=0.5)  # only the noise of .01 is between them

    def test_the_global_random_state_does_not_move(self):
        before = torch.get_rng_state()
        ScoreLoss(scorer(), views=2)(batch(2, 16).requires_grad_())
        assert torch.equal(torch.get_rng_state(), before)


class TestCombination:
    def pair(self):
        up = scorer(lambda x: 100 * x[:, 0].mean((1, 2)), "up", bounds=(0.0, 100.0))
        down = scorer(lambda x: 2 * x[:, 1].mean((1, 2)) - 1, "down", better=False, bounds=(-1.0, 1.0))
        return [up, down]

    def test_mean_and_minimum_of_what_is_mapped_to_01(self):
        images = batch(4)
        unit = torch.stack([images[:, 0].mean((1, 2)), 1 - images[:, 1].mean((1, 2))])
        mean, least = ScoreLoss(self.pair()), ScoreLoss(self.pair(), combine="min", reduction="none")
        assert mean(images).item() == pytest.approx(-unit.mean().item(), abs=1e-6)
        assert torch.allclose(least(images), -unit.min(0).values, atol=1e-6)
        assert mean.terms["score_up"].item() == pytest.approx(100 * images[:, 0].mean().item(), rel=1e-5)
        assert mean.terms["score_down"].item() == pytest.approx(2 * images[:, 1].mean().item() - 1, abs=1e-5)
        assert mean.terms["score"].item() == pytest.approx(unit.mean().item(), abs=1e-6)

    def test_the_worst_one_has_the_gradient(self):
        image = torch.full((1, 3, 4, 4), 0.3)
        grads, _ = gradient(ScoreLoss(self.pair(), combine="min"), image)  # up: .3, down: .7
        assert (grads[:, 0] < 0).all()
        assert (grads[:, 1:] == 0).all()

    def test_a_ceiling_is_on_the_common_scale(self):
        real = batch(70, seed=1)
        loss = ScoreLoss(self.pair(), ceiling="real")
        loss(batch(), real=real)
        unit = (real[:, 0].mean((1, 2)) + 1 - real[:, 1].mean((1, 2))) / 2
        assert loss.ceiling == pytest.approx(unit.sort().values[34].item(), abs=1e-6)

    def test_what_cannot_be_combined(self):
        up, down = self.pair()
        with pytest.raises(
            ValueError, match=r"open has no score_range, so it shares no scale with up; .*calibrated\(\)"
        ):
            ScoreLoss([up, scorer(name="open", bounds=None)])
        with pytest.raises(ValueError, match="one value_range"):
            ScoreLoss([up, scorer(name="other", value_range=(-1, 1))])
        with pytest.raises(ValueError, match="different names"):
            ScoreLoss([up, up])
        with pytest.raises(ValueError, match="empty list"):
            ScoreLoss([])
        with pytest.raises(ValueError, match="combine must be one of"):
            ScoreLoss([up, down], combine="max")


@pytest.mark.filterwarnings("ignore:.*times the fidelity term's")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ceiling": 0.3},
        {"views": 2, "seed": 3},
        {"out_of_range": 1.0},
        {"balance": 0.5},
        {"balance": 0.5, "ceiling": 0.3, "views": 2, "weight": 3.0},
    ],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(options):
    """The weight of the balance is a constant to autograd, so it is held while the pixels are moved."""
    pred = batch(2, 8, low=0.02, high=0.98).double()
    pred[0, 0, 0, 0], pred[0, 0, 0, 1] = -0.2, 1.2
    target = batch(2, 8, seed=4).double()
    loss = ScoreLoss(scorer(curved), **options)
    own = pred.clone().requires_grad_()
    loss(own, fidelity=(own - target).square().mean()).backward()
    state = {**loss.run_state(), "draws": 0}

    def value(images):
        loss.load_run_state(state)
        with torch.no_grad():
            return loss(images, fidelity=None).double()

    pixels = [(0, 1, 3, 3), (0, 2, 7, 0), (1, 0, 2, 5), (1, 2, 4, 4), (1, 1, 0, 7)]
    step = 1e-3
    for pixel in pixels:
        moved = torch.zeros_like(pred)
        moved[pixel] = step
        slope = (value(pred + moved) - value(pred - moved)) / (2 * step)
        assert own.grad[pixel].item() == pytest.approx(slope.item(), rel=0.02, abs=2e-4 * loss.weight)
    assert own.grad.abs().max() > 2e-3


@pytest.mark.filterwarnings("ignore:.*another convention")
def test_the_reward_alone_can_be_a_leaf_network(photographs):
    """Autograd through a network behind pred: the same as a hand-written loss."""
    torch.manual_seed(0)
    net = nn.Conv2d(3, 3, 3, padding=1)
    x = photographs[:2, :, :16, :16]
    loss = ScoreLoss(scorer(curved), balance=1.0)
    pred = net(x)
    fidelity = (pred - x).abs().mean()
    (fidelity + loss(pred, fidelity=fidelity)).backward()
    got = net.weight.grad.clone()
    net.zero_grad()
    pred = net(x)
    clamped = clamp_inward(pred)
    outside = ((pred - 0.5).abs() - 0.5).relu().mean()
    ((pred - x).abs().mean() - loss.terms["weight"] * curved(clamped).mean() + outside).backward()
    assert torch.allclose(got, net.weight.grad, rtol=1e-4, atol=1e-7)


def test_defaults_are_what_they_were():
    """The plain loss: the scorer's own numbers, its own gradient, to the bit."""
    pred = batch(low=-0.3, high=1.3)
    grads, value = gradient(ScoreLoss(scorer(curved), weight=0.7), pred)
    own = pred.clone().requires_grad_()
    expected = 0.7 * (-scorer(curved)(own)).mean()
    expected.backward()
    assert torch.equal(value, expected.detach())
    assert torch.equal(grads, own.grad)


def test_weight_zero_computes_and_draws_nothing():
    def never(x):
        raise AssertionError("called")

    loss = ScoreLoss(scorer(never, bounds=None), weight=0, ceiling="real", balance=1.0, views=3)
    value = loss(batch().requires_grad_())
    assert not value.requires_grad
    assert value == 0
    assert loss.random.draws == 0


def test_what_cannot_teach_is_refused_at_the_first_call():
    rounded = scorer(lambda x: (10 * x).round().mean((1, 2, 3)), "rounded")
    with pytest.raises(ValueError, match="rounded cannot be a reward"):
        ScoreLoss(rounded)(batch(2, 32).requires_grad_())
    mixed = scorer(lambda x: x.mean((1, 2, 3)) * x.mean(), "mixed")
    with pytest.raises(ValueError, match="gradient at the other images of the batch"):
        ScoreLoss(mixed)(batch(2, 32).requires_grad_())
    calls = []
    counted = scorer(lambda x: (calls.append(len(x)), curved(x))[1])
    loss = ScoreLoss(counted)
    for _ in range(3):
        loss(batch(2, 16).requires_grad_())
    assert len(calls) == 4  # tried once


@pytest.mark.filterwarnings("ignore:.*another convention")
def test_the_state_resumes_to_the_bit():
    def make():
        torch.manual_seed(0)
        net = nn.Conv2d(3, 3, 3, padding=1)
        loss = ScoreLoss(scorer(curved, bounds=None), ceiling="real", balance=0.5, views=2, seed=1)
        return net, torch.optim.Adam(net.parameters(), lr=0.01), loss, Hooks(track={"reward": loss})

    def steps(parts, numbers):
        net, optimizer, loss, hooks = parts
        for number in numbers:
            x = batch(2, 12, seed=number)
            pred = net(x)
            fidelity = (pred - x).abs().mean()
            optimizer.zero_grad()
            (fidelity + loss(pred, fidelity=fidelity, real=batch(20, 12, seed=100 + number))).backward()
            optimizer.step()
            hooks.step()

    whole, first, second = make(), make(), make()
    steps(whole, range(6))
    steps(first, range(2))
    second[0].load_state_dict(first[0].state_dict())
    second[1].load_state_dict(first[1].state_dict())
    second[3].load_state_dict(first[3].state_dict())
    steps(second, range(2, 6))
    assert torch.equal(second[0].weight, whole[0].weight)
    assert second[2].ceiling == whole[2].ceiling
    assert torch.equal(second[2].run_state()["norms"], whole[2].run_state()["norms"])
    with pytest.raises(ValueError, match="this is not the state of such a ScoreLoss"):
        second[2].load_run_state(ScoreLoss(scorer()).run_state())


def test_niqe_with_everything_on(photographs):
    crops = photographs[:2, :, :96, :96]
    pred = (crops + 0.1 * torch.randn_like(crops)).requires_grad_()
    loss = ScoreLoss(NIQE(pristine="bsd100"), ceiling="real", balance=0.3)
    loss(pred, real=crops, fidelity=(pred - crops).abs().mean()).backward()
    assert torch.isfinite(pred.grad).all()
    assert set(loss.terms) == {"niqe_bsd100_loss", "score", "at_ceiling", "ceiling", "out_of_range", "weight"}
    assert loss.terms["score"] > -loss.terms["ceiling"]


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 1e6])
@pytest.mark.parametrize(
    "of_pixels", [lambda x: x.float().square().mean(), lambda x: x.abs().mean(), lambda x: x.sum()]
)
def test_balance_takes_half_precision_whatever_the_size_of_the_gradients(kind, size, of_pixels):
    images = batch(2, 128).to(kind)
    loss = ScoreLoss(scorer(lambda x: size * curved(x), bounds=(-1e9, 1e9)), balance=0.5)
    pred = images.clone().requires_grad_()
    fidelity = of_pixels(pred - 0.3)
    (expected,) = torch.autograd.grad(64 * fidelity, pred, retain_graph=True)
    (got,) = torch.autograd.grad(64 * loss(pred, fidelity=fidelity), pred)
    assert got.isfinite().all()
    assert (got.float().norm() / expected.float().norm()).item() == pytest.approx(0.5, rel=0.02)


def test_a_ceiling_can_be_numpys_number():
    measured = np.float32(0.5)
    assert ScoreLoss(scorer(), ceiling=measured).ceiling == 0.5
    with pytest.raises(TypeError, match="got str; write create_scorer"):
        ScoreLoss("niqe_bsd100")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own forward mode
def test_torch_func_grad_is_the_gradient_and_vmap_and_forward_mode_are_refused_in_words():
    scorer = FunctionScorer(lambda images: images.square().mean((1, 2, 3)), name="bright", higher_is_better=True)
    images = (torch.rand(2, 1, 8, 8) * 1.2 - 0.1).requires_grad_()  # some lie outside the range
    loss = ScoreLoss(scorer, ceiling=1.0)
    (right,) = torch.autograd.grad(loss(images), images)
    torch.testing.assert_close(torch.func.grad(ScoreLoss(scorer, ceiling=1.0))(images.detach()), right)
    with pytest.raises(RuntimeError, match=r"pred comes from torch\.func\.vmap"):
        torch.func.vmap(lambda image: loss(image[None]))(images.detach())
    with pytest.raises(RuntimeError, match=r"images comes from torch\.func\.vmap"):
        torch.func.vmap(torch.func.grad(lambda image: scorer(image[None]).sum()))(images.detach())
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(loss, (images.detach(),), (torch.ones_like(images),))


def test_a_loss_does_not_stand_under_the_name_of_a_score():
    """With a ceiling it is the distance to it, and without one it may be the negative score."""
    for higher_is_better, ceiling in ((True, None), (True, 0.75), (False, 0.1)):
        mean = lambda x: x.mean((1, 2, 3))  # noqa: E731
        bright = FunctionScorer(mean, name="bright", higher_is_better=higher_is_better, score_range=(0.0, 1.0))
        loss = ScoreLoss(bright, ceiling=ceiling)
        value = loss(torch.full((2, 3, 8, 8), 0.25))
        assert "bright" not in loss.terms
        assert loss.terms["bright_loss"] == value
        assert loss.terms["score"] == 0.25
    for kind, name in ((SSIMLoss, "ssim"), (MSSSIMLoss, "ms_ssim")):
        loss = kind()
        loss(torch.rand(1, 3, 176, 176), torch.rand(1, 3, 176, 176))
        assert set(loss.terms) == {f"{name}_loss"}
