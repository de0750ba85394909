"""Finds the first value that is not finite, names it, and does what it was told."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped

ACTIONS = ("warn", "skip", "stop")


class NaNGuard(Callback):
    """Looks at the tracked terms, the recorded values and (attached, or with `optimizer=`) the gradients.

    The one callback that may act on the run, and only when told to:

    - "warn": says once what was not finite, and counts.
    - "skip": an optimizer step with a non-finite gradient does nothing: the gradients are set to None just before it
      (zeros would still move Adam).
    - "stop": raises `TrainingStopped` before that step where Hooks is attached; otherwise sets `hooks.should_stop`.

    Steps that a GradScaler skips by itself are not reported. Each look synchronises a GPU; `every` thins them out.

    Args:
        action: "warn", "skip" or "stop".
        every: steps between two looks.
        optimizer: whose gradients to look at when Hooks is not attached; needed for "skip" then.

    Attributes:
        found, skipped: how often something was not finite, and how many steps were skipped.

    Example:
        >>> guard = NaNGuard(action="skip")
    """

    def __init__(self, action: str = "warn", *, every: int = 1, optimizer: torch.optim.Optimizer | None = None) -> None:
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {ACTIONS}, got {action!r}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.action, self.every = action, int(every)
        self.found = self.skipped = 0
        self._steps = 0
        self._watching = False
        if optimizer is not None:
            self.attach(optimizer)

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._watching:
            optimizer.register_step_pre_hook(self._before_step)
            self._watching = True

    def on_train_start(self, ctx: Context) -> None:
        if self.action == "skip" and not self._watching:
            warnings.warn('NaNGuard("skip") sees no gradients: attach the hooks, or pass optimizer=')

    def on_step_end(self, ctx: Context) -> None:
        named = {f"{track}/{term}": value for track, terms in ctx.terms.items() for term, value in terms.items()}
        if not named:
            return
        values = [torch.as_tensor(value, dtype=torch.float32).detach().mean() for value in named.values()]
        finite = torch.isfinite(torch.stack([value.to(values[0].device) for value in values]))
        if not bool(finite.all()):
            bad = [name for name, good in zip(named, finite.tolist(), strict=True) if not good]
            self._report(f"step {ctx.step}: {', '.join(bad)} is not finite", stop=self.action == "stop")

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found, self.skipped = int(state["found"]), int(state["skipped"])

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        if self._steps % self.every:
            return
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not parameters:
            return
        norms = torch.stack([p.grad.detach().norm().float().to(parameters[0].device) for p in parameters])
        bad = int((~torch.isfinite(norms)).sum())
        if not bad:
            return
        message = f"the gradients of {bad} of {len(parameters)} parameters are not finite"
        if self.action == "skip":
            for parameter in parameters:
                parameter.grad = None
            self.skipped += 1
            message += "; the step is skipped"
        self._report(message, stop=self.action == "stop")

    def _report(self, message: str, *, stop: bool) -> None:
        self.found += 1
        if stop:
            raise TrainingStopped(f"NaNGuard: {message}")
        if self.found == 1:
            warnings.warn(f"NaNGuard: {message} (said once; NaNGuard.found counts)")
