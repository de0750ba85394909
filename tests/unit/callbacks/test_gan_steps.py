"""Hooks on a generator's optimizer, and a critic that makes several steps for each of its steps."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import Callback, Hooks, NaNGuard
from qa_hooks.losses import SSIMLoss
from qa_hooks.penalties import DriftPenalty, NIQEPenalty, QAGANPenalty
from qa_hooks.weighting import OHEM
from qa_hooks.writers import MemoryWriter

UNIT = (0.0, 1.0)


def images(value: float, n: int = 2) -> torch.Tensor:
    return torch.full((n, 1, 1, 1), value)


class Terms(Callback):
    """Keeps what callbacks see."""

    def __init__(self) -> None:
        self.seen = []

    def on_step_end(self, ctx):
        self.seen.append({track: {k: float(v) for k, v in terms.items()} for track, terms in ctx.terms.items()})


def test_the_mean_is_that_of_all_calls():
    """Drift is the mean of squared scores: 1, 4, 9 in the first step, 16 in the second."""
    writer, penalty, terms = MemoryWriter(), DriftPenalty(value_range=(0, 9), weight=1.0), Terms()
    hooks = Hooks([terms], writer=writer, track={"d": penalty}, log_every=2)
    for step in ((1.0, 2.0, 3.0), (4.0,)):
        for value in step:
            penalty(lambda x: x.sum((1, 2, 3)), images(value), images(0.0))
        hooks.step()
    assert writer.scalars["qa_loss/d/drift"] == [(2, (1 + 4 + 9 + 16) / 4)]
    assert [seen["d"]["drift"] for seen in terms.seen] == [(1 + 4 + 9) / 3, 16.0]
    assert all(seen["train"] == {} for seen in terms.seen)


def test_losses_and_weighters_tell_each_call_too():
    writer, loss, ohem = MemoryWriter(), SSIMLoss(), OHEM(worst=0.25)
    hooks = Hooks([], writer=writer, track={"loss": loss, "ohem": ohem}, log_every=1)
    values = []
    for brightness in (0.0, 1.0):
        loss(torch.full((1, 1, 16, 16), brightness), torch.zeros(1, 1, 16, 16))
        values.append(float(next(iter(loss.terms.values()))))
        ohem(torch.zeros(4, 1, 2, 2), scores=torch.arange(4.0) + brightness)
    hooks.step()
    (name,) = loss.terms
    assert writer.scalars[f"qa_loss/loss/{name}"] == [(1, pytest.approx(sum(values) / 2))]
    assert writer.scalars["qa_weight/ohem/threshold"] == [(1, 1.5)]


def test_what_is_no_part_of_ours_is_read_once_a_step():
    class Own:
        __slots__ = ("terms",)

    own, writer = Own(), MemoryWriter()
    own.terms = {}
    hooks = Hooks([], writer=writer, track={"own": own}, log_every=1)
    own.terms = {"a": 1.0}
    own.terms = {"a": 3.0}
    hooks.step()
    hooks.step()
    assert writer.scalars == {"qa_loss/own/a": [(1, 3.0)]}


def test_closed_hooks_and_copies_hear_nothing():
    penalty = DriftPenalty(value_range=UNIT, weight=1.0)
    first, writer = Hooks([], track={"d": penalty}), MemoryWriter()
    second = Hooks([], writer=writer, track={"d": penalty}, log_every=1)
    first.step()
    first.close()
    for other in (copy.deepcopy(penalty), pickle.loads(pickle.dumps(penalty)), penalty):
        other(lambda x: x.sum((1, 2, 3)), images(1.0), images(0.0))
    second.step()
    assert writer.scalars == {"qa_loss/d/drift": [(1, 1.0)]}
    assert first._means.state_dict() == {}


def test_pending_terms_of_all_calls_survive_a_resume():
    def run(hooks, penalty, values):
        for value in values:
            penalty(lambda x: x.sum((1, 2, 3)), images(value), images(0.0))
        hooks.step()

    penalty = DriftPenalty(value_range=(0, 9), weight=1.0)
    hooks = Hooks([], track={"d": penalty}, log_every=2)
    run(hooks, penalty, (1.0, 2.0))
    penalty, writer = DriftPenalty(value_range=(0, 9), weight=1.0), MemoryWriter()
    resumed = Hooks([], writer=writer, track={"d": penalty}, log_every=2)
    resumed.load_state_dict(hooks.state_dict())
    run(resumed, penalty, (3.0,))
    assert writer.scalars["qa_loss/d/drift"] == [(2, pytest.approx((1 + 4 + 9) / 3))]


@pytest.mark.parametrize("kind", ["alone", "qagan"])
def test_a_warm_up_is_not_averaged_in(kind):
    """The term does not exist until the model does: its mean is that of the calls that had it."""
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(1568, 1))
    options = {"value_range": UNIT, "warmup": 2}
    penalty = NIQEPenalty(**options) if kind == "alone" else QAGANPenalty("niqe", **options)
    writer = MemoryWriter()
    hooks, values = Hooks([], writer=writer, track={"q": penalty}, log_every=4), []
    for _ in range(4):
        value = penalty(critic, torch.rand(200, 1, 16, 16), torch.rand(200, 1, 16, 16))
        values.append(float(penalty.terms["niqe"]) if "niqe" in penalty.terms else None)
        hooks.step()
    assert values[:2] == [None, None]
    assert value.requires_grad
    assert writer.scalars["qa_loss/q/niqe"] == [(4, pytest.approx((values[2] + values[3]) / 2, rel=1e-6))]
    assert writer.scalars["qa_loss/q/niqe_active"] == [(4, 0.5)]


class TestNaNGuard:
    def test_a_nan_of_an_earlier_critic_step_is_seen(self):
        class Own:
            pass

        from qa_hooks._base.terms import publish

        own, guard = Own(), NaNGuard(every=1)
        own.terms = {}
        hooks = Hooks([guard], track={"critic": own})
        for value in (1.0, float("nan"), 1.0):
            publish(own, {"gp": torch.tensor(value)})
        with pytest.warns(UserWarning, match="step 1: critic/gp is not finite"):
            hooks.step()
        publish(own, {"gp": torch.tensor(1.0)})
        hooks.step()
        assert guard.found == 1

    def test_it_looks_at_the_critics_gradients_as_well(self):
        optimizers = [torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1) for _ in range(3)]
        attached, *critics = optimizers
        guard, log = NaNGuard("skip", optimizer=critics), Terms()
        with Hooks([guard, log]).attach(attached):
            for optimizer in optimizers:
                (parameter,) = optimizer.param_groups[0]["params"]
                parameter.grad = torch.full((2,), float("nan"))
                if optimizer is attached:
                    parameter.grad = torch.ones(2)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    optimizer.step()
        assert guard.skips == 2
        assert len(log.seen) == 1
        assert [o.param_groups[0]["params"][0][0].item() for o in optimizers] == pytest.approx([-0.1, 0.0, 0.0])
        with pytest.raises(TypeError, match="NaNGuard needs a torch optimizer"):
            NaNGuard(optimizer=[3])
