"""Hooks on an optimizer: they let it call after each of its real steps, and notice when it never does."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from qa_hooks._base.at_exit import at_exit, crashed
from qa_hooks._base.checks import warn
from qa_hooks._base.optimizers import outside_graphs, skips_step, unwrapped_optimizer
from qa_hooks.callbacks.callback import Callback

SILENT_CALLS = 200

_NO_EVENT = (
    "no callback has run. Does the script step inside backward (fused backward pass), or use another optimizer? "
    "Then call hooks.step() in the loop"
)

# Optimizers that have hooks; weak, so that a forgotten one does not live on.
_ATTACHED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class Attachment:
    """Calls `on_step(number)` after each step that an optimizer really makes.

    A step does not count when a GradScaler or one of the callbacks has skipped it. `number` is how many steps the
    optimizer has made, given at the first call where its state says so, else None.

    Args:
        optimizer: of torch, or a wrapper.
        callbacks: whose `skipped` says that a step was cancelled.
        on_step: what is called.

    Raises:
        TypeError: not an optimizer.
        RuntimeError: it has hooks already.
    """

    def __init__(self, optimizer: Any, callbacks: Iterable[Callback], on_step: Callable[[int | None], None]) -> None:
        self.optimizer, self._callbacks = unwrapped_optimizer(optimizer, "attach"), list(callbacks)
        if self.optimizer in _ATTACHED:
            raise RuntimeError("this optimizer has hooks already; put all callbacks into one Hooks, or close the other")
        self._on_step = on_step
        self._steps = self._silent_calls = 0
        self._ended = False
        self._watch: RemovableHandle | None = None  # from the first dry run on
        self._others: dict[str, bool] = {}  # not empty: some optimizer has made a step since then
        _ATTACHED.add(self.optimizer)
        self._handle = self.optimizer.register_step_post_hook(outside_graphs(self._after_step))
        at_exit(self._close_unended)

    def count_silence(self) -> None:
        """Count a call from the user's loop; many calls without an optimizer step raise a warning."""
        self._silent_calls += not self._steps
        if self._silent_calls == SILENT_CALLS and not self._steps:
            warn(f"{SILENT_CALLS} calls and no optimizer step yet: " + _NO_EVENT)

    def checked(self) -> None:
        """A dry run was made: if that was the purpose, and no optimizer makes a step afterwards, nothing is said."""
        if self._watch is None:
            others = self._others  # a hook of all optimizers that held self would keep it alive
            hook = outside_graphs(lambda optimizer, args, kwargs: others.update(stepped=True))
            self._watch = register_optimizer_step_post_hook(hook)

    def close(self) -> None:
        """Say when the optimizer never made a step."""
        if not self._steps and (self._watch is None or self._others or self._silent_calls):
            warn("the optimizer that these hooks are attached to never made a step: " + _NO_EVENT)

    def end(self) -> None:
        """Take everything off the optimizer."""
        self._handle.remove()
        if self._watch is not None:
            self._watch.remove()
        self._ended = True
        _ATTACHED.discard(self.optimizer)

    def _close_unended(self) -> None:
        """Tell of an optimizer that never made a step, where nobody closed the hooks."""
        if not self._ended and not crashed():
            self.close()

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if skips_step(optimizer) or any(callback.skipped is optimizer for callback in self._callbacks):
            return
        self._steps += 1
        # Read once: on a GPU the counter may live there, and reading it each step would synchronise.
        self._on_step(_steps_in_state(optimizer) if self._steps == 1 else None)


def _steps_in_state(optimizer: torch.optim.Optimizer) -> int | None:
    return next((int(state["step"]) for state in optimizer.state.values() if "step" in state), None)
