"""A critic penalty through the optimizer's pre-step hook, against the same penalty inside the loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import Hooks
from qa_hooks.penalties import GradientPenalty, QAGANPenalty, SSIMPenalty, attach_penalty
from qa_hooks.writers import MemoryWriter

RANGE = (-1.0, 1.0)


def closed_trainer(critic: nn.Module, optimizer, digits, steps: int = 4, clip: float | None = None, extra=None):
    """A trainer's critic loop; `extra` stands for an edit of its loss, `state` for what it shows of itself."""
    state: dict[str, torch.Tensor] = {}

    def train() -> None:
        generator = torch.Generator().manual_seed(3)
        for step in range(steps):
            state["real"] = digits[64 * step : 64 * step + 64]
            state["fake"] = torch.rand(64, 1, 16, 16, generator=generator) * 2 - 1
            loss = critic(state["fake"]).mean() - critic(state["real"]).mean()
            if extra is not None:
                loss = loss + extra(critic, state["real"], state["fake"])
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(critic.parameters(), clip)
            optimizer.step()

    return state, train


def adam(critic: nn.Module, **options) -> torch.optim.Optimizer:
    return torch.optim.Adam(critic.parameters(), lr=1e-3, **options)


def test_it_is_the_penalty_in_the_loss(digits, critic):
    edited, attached = copy.deepcopy(critic), copy.deepcopy(critic)
    sgd = lambda net: torch.optim.SGD(net.parameters(), lr=0.05)  # noqa: E731 - Adam would enlarge rounding errors
    _, train = closed_trainer(edited, sgd(edited), digits, extra=QAGANPenalty("ssim", value_range=RANGE))
    train()
    optimizer = sgd(attached)
    state, train = closed_trainer(attached, optimizer, digits)
    penalty = QAGANPenalty("ssim", value_range=RANGE)
    handle = attach_penalty(optimizer, attached, penalty, batch=lambda: (state["real"], state["fake"]))
    writer = MemoryWriter()
    with Hooks(writer=writer, track={"qagan": penalty}, log_every=1).attach(optimizer):
        train()
    for a, b in zip(edited.parameters(), attached.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert len(writer.scalars["qa_loss/qagan/ssim"]) == 4

    handle.detach()
    handle.detach()
    before = penalty.calls
    train()
    assert penalty.calls == before


def test_weight_zero_is_bit_identical_and_asks_for_no_batch(digits, critic):
    plain, watched = copy.deepcopy(critic), copy.deepcopy(critic)
    closed_trainer(plain, adam(plain), digits)[1]()
    optimizer = adam(watched)
    _, train = closed_trainer(watched, optimizer, digits)
    with attach_penalty(optimizer, watched, SSIMPenalty(value_range=RANGE, weight=0), batch=lambda: 1 / 0):
        train()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))


def test_it_comes_after_clipping(digits, critic):
    """Clipped to 0.01 the gradient is at most 0.01 long; with the penalty that comes later it is longer."""
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    state, train = closed_trainer(critic, optimizer, digits, steps=1, clip=0.01)
    with attach_penalty(
        optimizer, critic, GradientPenalty(value_range=RANGE, weight=10.0), batch=lambda: tuple(state.values())
    ):
        train()
    assert torch.cat([p.grad.flatten() for p in critic.parameters()]).norm() > 0.05


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled_by_the_trainer", [False, True])
def test_under_a_grad_scaler_it_counts_as_much_as_without(digits, critic, fused, unscaled_by_the_trainer):
    """SGD makes the size of the gradient visible; a scale of 1024 would show as a factor of 1024."""
    results = []
    real, fake = digits[:64], digits[:64].flip(-1)
    for scaled in (False, True):
        net = copy.deepcopy(critic)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        with attach_penalty(
            optimizer, net, GradientPenalty(value_range=RANGE, weight=10.0), batch=lambda: (real, fake)
        ):
            scaler.scale(net(fake).mean() - net(real).mean()).backward()
            if unscaled_by_the_trainer:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not torch.equal(results[0][0], critic[0].weight)


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_of_a_grad_scaler_is_skipped(digits, critic, fused):
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-2, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(list(critic.parameters()))
    penalty = SSIMPenalty(value_range=RANGE)
    with attach_penalty(optimizer, critic, penalty, batch=lambda: (digits[:8], -digits[:8])):
        scaler.scale(critic(digits[:8]).mean() * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
    assert penalty.calls == 0
    assert all(torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_an_infinite_penalty_is_left_out_with_one_warning(digits, critic):
    class Broken(SSIMPenalty):
        def term(self, shared):
            return super().term(shared) * (float("inf") if self.calls > 4 else 1.0)

    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-3)
    state, train = closed_trainer(critic, optimizer, digits, steps=8)
    with pytest.warns(UserWarning, match="not finite") as caught:  # noqa: SIM117 - what is caught is the second's
        with attach_penalty(
            optimizer, critic, Broken(value_range=RANGE), batch=lambda: tuple(state.values())
        ) as handle:
            train()
    assert len([w for w in caught if "not finite" in str(w.message)]) == 1
    assert handle.left_out == 4
    assert all(torch.isfinite(p).all() for p in critic.parameters())


def test_trainers_that_switch_requires_grad_off_are_told(digits, critic):
    optimizer = adam(critic)
    attach_penalty(optimizer, critic, SSIMPenalty(value_range=RANGE), batch=lambda: (digits[:8], -digits[:8]))
    critic(digits[:8]).mean().backward()
    critic.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"requires_grad.*StyleGAN.*QALoss"):
        optimizer.step()


def test_what_does_not_fit_is_refused(digits, critic):
    penalty = SSIMPenalty(value_range=RANGE)
    with pytest.raises(TypeError, match="needs a torch optimizer"):
        attach_penalty(critic, critic, penalty, batch=lambda: None)
    with pytest.raises(TypeError, match="must be a CriticPenalty"):
        attach_penalty(adam(critic), critic, nn.MSELoss(), batch=lambda: None)
    with pytest.raises(TypeError, match="batch must be callable"):
        attach_penalty(adam(critic), critic, penalty, batch=(digits, digits))
    optimizer = adam(critic)
    with attach_penalty(optimizer, critic, penalty, batch=lambda: digits), pytest.raises(TypeError, match="real, fake"):
        optimizer.step()
    other = nn.Linear(2, 2)
    optimizer = adam(other)
    with (
        attach_penalty(optimizer, critic, penalty, batch=lambda: (digits[:8], -digits[:8])),
        pytest.raises(RuntimeError, match="reaches no parameter"),
    ):
        optimizer.step()
    lbfgs = torch.optim.LBFGS(critic.parameters())
    with attach_penalty(lbfgs, critic, penalty, batch=lambda: None), pytest.raises(ValueError, match="closure"):
        lbfgs.step(lambda: critic(digits[:8]).mean())


def test_parameters_that_enter_as_a_sum_do_not_share_a_gradient(digits):
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))

        def forward(self, images):
            return images.mean((1, 2, 3)) * (1 + self.a + self.b)

    critic = Sum()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    penalty = GradientPenalty(value_range=(-1, 1))
    with attach_penalty(optimizer, critic, penalty, batch=lambda: (digits[:8], digits[8:16])):
        optimizer.step()
    before = critic.b.grad.clone()
    critic.a.grad.add_(1)
    assert torch.equal(critic.b.grad, before)
