"""The user's run is sacred: a stranger's WGAN-GP script, with and without us, whole and cut in two."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qa_hooks import GradientPenalty, Hooks, NaNGuard, QAGANPenalty, SampleGrid, ScoreMonitor, SSIMLoss, SSIMPenalty
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter


class Stranger:
    """A WGAN-GP script as people write it: global random state, shuffled loader, BatchNorm and dropout, own penalty."""

    def __init__(self, digits: torch.Tensor) -> None:
        torch.manual_seed(7)
        self.generator = nn.Sequential(
            nn.Linear(8, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 256), nn.Tanh(),
            nn.Unflatten(1, (1, 16, 16)),
        )  # fmt: skip
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(256, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
        self.opt_g = torch.optim.Adam(self.generator.parameters(), 1e-3, betas=(0.0, 0.9))
        self.opt_d = torch.optim.Adam(self.critic.parameters(), 1e-3, betas=(0.0, 0.9))
        self.loader = torch.utils.data.DataLoader(digits[:320], batch_size=64, shuffle=True)

    def gradient_penalty(self, real, fake):
        mix = torch.rand(len(real), 1, 1, 1)
        points = (mix * real + (1 - mix) * fake).requires_grad_()
        (gradient,) = torch.autograd.grad(self.critic(points).sum(), points, create_graph=True)
        return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()

    def train(self, steps, *, own_gp=True, extra=lambda critic, real, fake: 0, after=lambda **images: None):
        done = 0
        while done < steps:
            for real in self.loader:
                if done == steps:
                    return self
                fake = self.generator(torch.randn(len(real), 8)).detach()
                d_loss = self.critic(fake).mean() - self.critic(real).mean()
                if own_gp:
                    d_loss = d_loss + 10 * self.gradient_penalty(real, fake)
                d_loss = d_loss + extra(self.critic, real, fake)
                self.opt_d.zero_grad()
                d_loss.backward()
                self.opt_d.step()
                fake = self.generator(torch.randn(len(real), 8))
                g_loss = -self.critic(fake).mean()
                self.opt_g.zero_grad()
                g_loss.backward()
                self.opt_g.step()
                after(fake=fake, real=real)
                done += 1
        return self

    def weights(self):
        return [*self.generator.state_dict().values(), *self.critic.state_dict().values()]

    def parts(self):
        return {"g": self.generator, "d": self.critic, "opt_g": self.opt_g, "opt_d": self.opt_d}


def same(a: Stranger, b: Stranger) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.weights(), b.weights(), strict=True))


def monitors(run: Stranger, writer: MemoryWriter, track: dict) -> Hooks:
    scorer = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True, value_range=(-1, 1))

    def sample(n, rng):
        torch.randn(3)  # a careless lambda
        for _ in run.loader:
            break
        run.generator.train()
        return run.generator(torch.randn(n, 8, generator=rng))

    callbacks = [
        SampleGrid(sample, every=2, value_range=(-1, 1), n=9),
        ScoreMonitor(scorer, every=3, sample=sample, n=20),
        ScoreMonitor(scorer, every=1, images="fake", name="contrast of the batch"),
        NaNGuard(every=1),
    ]
    return Hooks(callbacks, writer=writer, track=track, log_every=1)


def test_with_weight_zero_and_every_monitor_on_nothing_changes(digits):
    plain = Stranger(digits).train(12)
    watched = Stranger(digits)
    penalty = QAGANPenalty("ssim", value_range=(-1, 1), gp_weight=0, quality_weight=0, drift_weight=0)
    loss = SSIMLoss(weight=0, value_range=(-1, 1))
    writer = MemoryWriter()
    torch.manual_seed(7)
    watched = Stranger(digits)
    with monitors(watched, writer, {"qagan": penalty, "loss": loss}) as hooks:
        watched.train(12, extra=lambda d, x, y: penalty(d, x, y) + loss(y, x), after=hooks.step)
    assert same(plain, watched)
    assert [step for step, _ in writer.images["qa_images/samples/grid"]] == [1, 2, 4, 6, 8, 10, 12]
    assert [step for step, _ in writer.scalars["qa_eval/contrast/mean"]] == [1, 3, 6, 9, 12]
    assert len(writer.scalars["qa_eval/contrast_of_the_batch/mean"]) == 12


def test_our_penalties_leave_the_users_random_numbers_alone(digits):
    """The penalty changes the weights, but the data and noise that the run sees are those of the run without it."""
    seen: dict[str, list[torch.Tensor]] = {"plain": [], "ours": []}
    Stranger(digits).train(6, after=lambda real, fake: seen["plain"].append(real))
    penalty = SSIMPenalty(value_range=(-1, 1))
    ours = Stranger(digits).train(6, extra=penalty, after=lambda real, fake: seen["ours"].append(real))
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    assert not same(ours, Stranger(digits).train(6))


@pytest.mark.parametrize("attached", [True, False])
def test_ten_steps_equal_five_saved_and_five_resumed(digits, tmp_path, attached):
    def make():
        run, writer = Stranger(digits), MemoryWriter()
        penalty = QAGANPenalty("both", value_range=(-1, 1), warmup=7, interval=1)
        guard = GradientPenalty(value_range=(-1, 1), weight=0.1, interval=2)
        hooks = monitors(run, writer, {"qagan": penalty, "guard": guard})
        if attached:
            hooks.capture("fake", run.generator)
            hooks.attach(run.opt_g)
        return run, hooks, writer, lambda d, x, y: penalty(d, x, y) + guard(d, x, y), penalty

    options = {} if attached else None
    whole, hooks, whole_curve, extra, penalty = make()
    whole.train(10, own_gp=False, extra=extra, **(options if options is not None else {"after": hooks.step}))
    assert penalty.parts["niqe"].model is not None

    first, hooks, _, extra, _ = make()
    first.train(5, own_gp=False, extra=extra, **(options if options is not None else {"after": hooks.step}))
    state = {name: part.state_dict() for name, part in first.parts().items()}
    torch.save({**state, "hooks": hooks.state_dict(), "rng": torch.get_rng_state()}, tmp_path / "run.pt")

    second, hooks, curve, extra, _ = make()
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    for name, part in second.parts().items():
        part.load_state_dict(state[name])
    hooks.load_state_dict(state["hooks"])
    torch.set_rng_state(state["rng"])
    second.train(5, own_gp=False, extra=extra, **(options if options is not None else {"after": hooks.step}))

    assert same(whole, second)
    for tag, points in curve.scalars.items():
        if "qa_perf" not in tag:
            assert points == [point for point in whole_curve.scalars[tag] if point[0] > 5], tag


def test_the_three_lines_of_the_readme(digits, tmp_path):
    """A WGAN-GP script whose gradient penalty is replaced, logged to TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Stranger(digits)
    before = copy.deepcopy(run.weights())
    penalty = QAGANPenalty("ssim", value_range=(-1, 1), gp_weight=10.0)
    with Hooks([NaNGuard()], log_dir=tmp_path, track={"qagan": penalty}, log_every=5).attach(run.opt_g):
        run.train(10, own_gp=False, extra=penalty)
    assert not all(torch.equal(a, b) for a, b in zip(before, run.weights(), strict=True))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"qa_loss/qagan/ssim", "qa_loss/qagan/gradient_penalty", "qa_loss/qagan/drift"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.step for event in events.Scalars("qa_loss/qagan/ssim")] == [5, 10]
