"""Hooks in any order of step, attach, record, save, load and close: counted right, refused clearly, nothing moved."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from fuzz.effort import effort
from qa_hooks.callbacks import Callback, EarlyStop, Hooks, NaNGuard, SampleGrid, ScoreMonitor
from qa_hooks.losses import SSIMLoss
from qa_hooks.scorers import FunctionScorer
from qa_hooks.weighting import TopK
from qa_hooks.writers import MemoryWriter


class Counter(Callback):
    """Remembers each step that it saw, and moves every random state there is."""

    every = 1
    state_key = "counter"

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ends = 0

    def on_step_end(self, ctx: Any) -> None:
        self.seen.append(ctx.step)
        torch.rand(3)
        random.random()

    def on_train_end(self, ctx: Any) -> None:
        self.ends += 1

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = list(state["seen"])


class Parts:
    """One run: a network that trains, and the hooks on it."""

    def __init__(self) -> None:
        self.net = nn.Conv2d(1, 1, 3, padding=1)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.01)
        self.counter, self.loss, self.topk = Counter(), SSIMLoss(), TopK(0.5)
        bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True)
        self.monitor = ScoreMonitor(bright, every=2, images="fake")
        self.hooks = Hooks(
            [
                self.counter,
                self.monitor,
                SampleGrid(lambda n, g: torch.rand(n, 1, 8, 8, generator=g), every=3, n=2),
                EarlyStop(self.monitor, "mean", mode="max", patience=10**6),
                NaNGuard(),
            ],
            writer=MemoryWriter(),
            track={"ssim": self.loss, "topk": self.topk},
            log_every=3,
        )

    def state(self) -> tuple[object, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), torch.is_grad_enabled(), self.net.training


class AnyOrder(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        random.seed(0)
        self.saved: tuple[dict[str, Any], int, list[int]] | None = None
        self.fresh()

    def fresh(self, step: int = 0, seen: list[int] | None = None) -> None:
        self.parts = Parts()
        self.step, self.seen = step, list(seen or [])
        self.attached = self.stepped = self.closed = False

    def images(self, count: int) -> Tensor:
        return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(self.step))

    @rule(count=st.integers(1, 4), number=st.none() | st.integers(1, 50))
    def step_explicitly(self, count: int, number: int | None) -> None:
        hooks, before = self.parts.hooks, self.parts.state()
        if self.attached or self.closed:
            with pytest.raises(RuntimeError, match=r"closed|attached"):
                hooks.step(number, fake=self.images(count))
            return
        self.step = self.step + 1 if number is None else self.step + number
        hooks.step(None if number is None else self.step, fake=self.images(count))
        self.seen.append(self.step)
        self.stepped = True
        assert self.parts.state() == before

    @rule(count=st.integers(1, 4), bad=st.booleans())
    def train(self, count: int, bad: bool) -> None:
        """A step of the optimizer, which calls the hooks when they are attached."""
        parts, x = self.parts, self.images(count)
        parts.optimizer.zero_grad()
        weights = parts.topk(x, scores=x.mean((1, 2, 3)))
        value = (weights * parts.net(x).mean((1, 2, 3))).mean() + parts.loss(parts.net(x), x)
        value.backward()
        if bad:
            parts.net.bias.grad.fill_(torch.nan)
        twin = [p.detach().clone() for p in parts.net.parameters()]
        for own, p in zip(twin, parts.net.parameters(), strict=True):
            own.grad = p.grad.clone()
        before = parts.state()
        parts.optimizer.step()
        assert parts.state() == before
        torch.optim.SGD(twin, lr=0.01).step()  # without hooks
        for found, right in zip(parts.net.parameters(), twin, strict=True):
            assert torch.equal(found.nan_to_num(7.0), right.nan_to_num(7.0))
        if bad:
            nn.init.zeros_(parts.net.bias)
        if self.attached and not self.closed:
            self.step += 1
            self.seen.append(self.step)
            self.stepped = True

    @rule()
    def attach(self) -> None:
        parts = self.parts
        if self.attached or self.stepped:
            with pytest.raises(RuntimeError, match="attach"):
                parts.hooks.attach(parts.optimizer)
            return
        if self.closed:
            return
        parts.hooks.attach(parts.optimizer)
        self.attached = True

    @rule(value=st.floats(-1e3, 1e3) | st.sampled_from([float("nan"), float("inf")]))
    def record(self, value: float) -> None:
        self.parts.hooks.record(own=value, also=torch.tensor(value))

    @rule()
    def capture(self) -> None:
        if not self.closed:
            self.parts.hooks.capture("fake", self.parts.net)

    @rule()
    def save(self) -> None:
        state = copy.deepcopy(self.parts.hooks.state_dict())
        assert state["step"] == self.step
        self.saved = (state, self.step, list(self.seen))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def resume(self) -> None:
        """A new process: new parts, the saved state."""
        state, step, seen = self.saved
        self.parts.hooks.close()
        self.fresh(step, seen)
        self.parts.hooks.load_state_dict(state)
        assert str(self.parts.hooks.state_dict()) == str(state)

    @rule(broken=st.sampled_from(["nothing", {}, {"step": 3}, {"callbacks": {"other": {}}}]))
    def load_something_else(self, broken: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            self.parts.hooks.load_state_dict(broken)

    @rule()
    def close(self) -> None:
        before = self.parts.state()
        self.parts.hooks.close()
        assert self.parts.state() == before
        assert self.parts.counter.ends == (1 if self.stepped else 0)
        self.closed = True

    @rule()
    def leave_the_block(self) -> None:
        with self.parts.hooks:
            pass
        self.closed = True

    @invariant()
    def counted(self) -> None:
        if hasattr(self, "parts"):
            assert self.parts.hooks.step_count == self.step
            assert self.parts.counter.seen == self.seen

    def teardown(self) -> None:
        if hasattr(self, "parts"):
            self.parts.hooks.close()


def test_hooks_in_any_order():
    with warnings.catch_warnings():
        run_state_machine_as_test(AnyOrder, settings=effort(80, 5000, stateful_step_count=25))
