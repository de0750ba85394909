"""Per-sample weights: the rules by hand and by loops, the promises to the loop that calls them."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from qa_hooks.callbacks import Hooks
from qa_hooks.weighting import OHEM, TopK, ohem_weights
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness


def images(count: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_papers_rule_is_strict():
    weights = ohem_weights(torch.tensor([0.0, 0.2, 0.1999, 1.0, torch.nan]), threshold=0.2, weight=2.0)
    assert weights.tolist() == [2, 1, 2, 1, 1]
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("count", [1, 2, 5, 10, 64])
@pytest.mark.parametrize("worst", [0.1, 0.2, 0.5, 0.9])
def test_ohem_weights_the_worst_share(count, worst):
    scores = torch.randn(count)
    weights = OHEM(worst=worst, weight=3.0, normalize=True)(images(count), scores=scores)
    heavy = set(sorted(range(count), key=lambda i: float(scores[i]))[: min(round(worst * count), count - 1)])
    expected = [3.0 if i in heavy else 1.0 for i in range(count)]
    expected = [w / (sum(expected) / count) for w in expected]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6)
    assert float(weights.mean()) == pytest.approx(1, rel=1e-6)


def test_ohem_in_absolute_mode_is_the_papers_rule():
    scores = torch.tensor([0.1, 0.5, 0.19, 0.2])
    with pytest.warns(UserWarning, match="ran away"):
        ohem = OHEM(threshold_mode="absolute", normalize=False)
    assert torch.equal(ohem(images(4), scores=scores), ohem_weights(scores, threshold=0.2, weight=2.0))
    assert OHEM(threshold_mode="absolute")(images(4), scores=scores / 10).tolist() == [1, 1, 1, 1]  # all are below


def test_terms_by_hand():
    ohem = OHEM(worst=0.25, weight=3.0)
    assert ohem.terms == {}
    ohem(images(4), scores=torch.tensor([4.0, 1.0, 3.0, 2.0]))
    assert {name: float(value) for name, value in ohem.terms.items()} == {
        "weighted": 0.25,
        "effective_sample_size": 36 / (4 * 12),
        "threshold": 2.0,
        "nonfinite": 0.0,
    }
    first = ohem.terms
    ohem(images(4), scores=torch.ones(4))
    assert ohem.terms is not first
    assert float(ohem.terms["weighted"]) == 0


def test_lower_is_better_and_the_thresholds_own_direction():
    scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
    ohem = OHEM(worst=0.25, weight=3.0, higher_is_better=False)
    assert int(ohem(images(4), scores=scores).argmax()) == 0
    assert float(ohem.terms["threshold"]) == 3
    niqe_like = OHEM(brightness(higher_is_better=False), worst=0.25)
    batch = torch.tensor([0.9, 0.1, 0.3, 0.2])[:, None, None, None].expand(4, 1, 8, 8)
    assert int(niqe_like(batch).argmax()) == 0
    assert torch.equal(niqe_like(batch), niqe_like(batch, scores=brightness()(batch)))  # what the scorer would return
    assert int(TopK(0.25, higher_is_real=False)(images(4), scores=scores).argmax()) == 1


@pytest.mark.parametrize("make", [OHEM, TopK])
def test_equal_scores_give_ones(make):
    assert make()(images(8), scores=torch.full((8,), 0.3)).tolist() == [1] * 8


def test_topk_is_the_mean_over_the_best():
    losses, scores = torch.rand(64), torch.randn(64)
    best = sorted(range(64), key=lambda i: -float(scores[i]))[:48]
    expected = sum(float(losses[i]) for i in best) / 48
    weights = TopK(0.75)(images(64), scores=scores[:, None])
    assert float((weights * losses).mean()) == pytest.approx(expected, rel=1e-6)
    assert set(TopK(0.75, normalize=False)(images(64), scores=scores).tolist()) == {0.0, 1.0}


def test_topk_keeps_one_at_least_and_its_fraction_may_change():
    topk = TopK(0.01)
    assert topk(images(4), scores=torch.tensor([1.0, 4.0, 2.0, 3.0])).tolist() == [0, 4, 0, 0]
    topk.fraction = 1.0
    assert topk(images(4)).tolist() == [1] * 4  # off: no scores are wanted
    with pytest.raises(ValueError, match="fraction"):
        topk.fraction = 0.0


def test_a_critic_is_called_without_a_trace():
    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
            self.head, self.modes = nn.Linear(4 * 14 * 14, 1), []

        def forward(self, x):
            self.modes.append((self.training, torch.is_grad_enabled(), x.requires_grad))
            return self.head(self.net(x))

    critic = Critic()
    before, random = copy.deepcopy(critic.state_dict()), torch.get_rng_state()
    batch = images(16).requires_grad_()
    weights = OHEM(critic, weight=4.0)(batch)
    assert critic.modes == [(False, False, False)]
    assert critic.training
    assert all(part.training for part in critic.modules())
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not weights.requires_grad
    assert int((weights > 1).sum()) == 3


def test_under_autocast_the_critic_keeps_its_gradients():
    critic = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fake = nn.Conv2d(1, 1, 1)(images(8)).detach()
        assert fake.dtype == torch.bfloat16
        weights = OHEM(critic)(fake)
        loss = (weights * F.softplus(critic(fake)).flatten()).mean()
    loss.backward()
    assert weights.dtype == torch.float32
    assert float(critic[1].weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("make", [OHEM, TopK])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_scores_that_are_not_finite(make, bad):
    scores = torch.tensor([1.0, bad, 3.0, 4.0, 5.0])
    with pytest.raises(ValueError, match="1 of 5 scores of brightness are not finite"):
        make(scorer=brightness())(images(5), scores=scores)
    weighter = make(0.75) if make is TopK else make(worst=0.25, weight=3.0)
    for _ in range(3):
        weighter(images(5), scores=torch.arange(5.0))
    weighter.normalize = False
    weights = weighter(images(5), scores=scores)
    assert float(weighter.terms["nonfinite"]) == 1
    assert weights.tolist() == ([0, 1, 1, 1, 1] if make is TopK else [3, 1, 1, 1, 1])  # one of the four known
    assert weighter(images(5), scores=torch.full((5,), bad)).tolist() == [1] * 5


@pytest.mark.parametrize("make", [OHEM, TopK])
def test_the_third_call_is_checked_and_no_later_one(make):
    weighter, bad = make(scorer=brightness()), torch.tensor([1.0, torch.nan, 3.0])
    for _ in range(2):
        weighter(images(3), scores=torch.rand(3))
    with pytest.raises(ValueError, match="1 of 3 scores"):
        weighter(images(3), scores=bad)
    assert torch.isfinite(weighter(images(3), scores=bad)).all()


def test_weight_one_runs_nothing_and_every_skips():
    calls = []

    def critic(x):
        calls.append(len(x))
        return x.mean((1, 2, 3))

    off = OHEM(critic, weight=1)
    assert off(images()).tolist() == [1] * 8
    assert (calls, off.terms) == ([], {})
    ohem = OHEM(critic, every=3)
    ones = [ohem(images()).tolist() == [1] * 8 for _ in range(7)]
    assert ones == [False, True, True, False, True, True, False]
    assert len(calls) == 3
    ohem(images(), scores=torch.arange(8.0))
    assert len(calls) == 3


class Waits(TorchDispatchMode):
    """Lists the operators for which a GPU would have to finish first."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(part in name for part in ("_local_scalar_dense", "nonzero", "equal.", "masked_select", "unique")):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [OHEM, TopK])
def test_no_synchronisation_after_the_first_calls(make):
    weighter = make(scorer=nn.Sequential(nn.Flatten(), nn.Linear(256, 1)))
    scores = torch.rand(8)
    with Waits() as first:
        for _ in range(3):
            weighter(images(), scores=scores)
        weighter(images())  # the first call of the critic tells what a call moves
    with Waits() as later:
        weighter(images(), scores=scores)
        weighter(images())
    assert first.seen  # the checks of the first three calls are what the list would show
    assert later.seen == []


def gan_losses(weighter, steps: int, critic: nn.Module, hooks: Hooks | None = None, start: int = 0) -> list[float]:
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    losses = []
    for step in range(start, start + steps):
        real, fake = images(8, 2 * step), images(8, 2 * step + 1) ** 2
        per_sample = F.softplus(critic(fake)).flatten()
        fake_loss = per_sample.mean() if weighter is None else (weighter(fake) * per_sample).mean()
        loss = F.softplus(-critic(real)).mean() + fake_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if hooks is not None:
            hooks.step()
    return losses


def test_weight_one_is_bit_identical_to_no_ohem(critic):
    other, third = copy.deepcopy(critic), copy.deepcopy(critic)
    plain = gan_losses(None, 4, critic)
    assert plain == gan_losses(OHEM(other, weight=1), 4, other)
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), other.parameters(), strict=True))
    assert plain != gan_losses(OHEM(third, weight=2), 4, third)


def test_ten_steps_are_five_saved_and_five(critic):
    other = copy.deepcopy(critic)
    whole = OHEM(critic, every=3)
    expected = gan_losses(whole, 10, critic, Hooks(track={"ohem": whole}))
    first = OHEM(other, every=3)
    hooks = Hooks(track={"ohem": first})
    losses = gan_losses(first, 5, other, hooks)
    second = OHEM(other, every=3)
    resumed = Hooks(track={"ohem": second})
    resumed.load_state_dict(hooks.state_dict())
    losses += gan_losses(second, 5, other, resumed, start=5)
    assert losses == expected
    assert second.run_state() == whole.run_state() == {"calls": 10}


def test_hooks_log_the_terms_as_weights():
    writer, ohem = MemoryWriter(), OHEM(worst=0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Hooks(track={"ohem": ohem}, writer=writer, log_every=1) as hooks:
            ohem(images(4), scores=torch.arange(4.0))
            hooks.step()
    assert set(writer.scalars) == {
        f"qa_weight/ohem/{name}" for name in ("weighted", "effective_sample_size", "threshold", "nonfinite")
    }
    assert writer.scalars["qa_weight/ohem/weighted"] == [(1, 0.25)]


def test_top_k_resumes_with_the_fraction_it_had_come_to():
    topk, resumed = TopK(0.9), TopK(0.9)
    topk.fraction = 0.3
    resumed.load_run_state(topk.run_state())
    assert resumed.fraction == 0.3
