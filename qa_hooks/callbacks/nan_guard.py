"""Finds values that are not finite, names them, and warns, skips the step or stops."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.optimizers import check_no_closure, outside_graphs, skips_step, unwrapped_optimizer
from qa_hooks._base.processes import any_rank
from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped
from qa_hooks.rewards.broken import broken_images, broken_message
from qa_hooks.writers import log_text, make_tag

ACTIONS = ("warn", "skip", "stop")


class NaNGuard(Callback):
    """Looks at the tracked terms, the recorded values and the gradients of the optimizers that it knows.

    It knows the optimizer that Hooks is attached to, and the optimizers given as `optimizer=` (the critic's, of a GAN).
    It sees the terms of all calls since the last step, so of each critic step as well.

    The one callback that may act on the run, and only when told to:

    - "warn": says once what was not finite, and counts.
    - "skip": an optimizer step with a non-finite gradient does nothing: the gradients are set to None just before it
      (zeros would still move Adam). Not for optimizers that compute gradients in a closure.
    - "stop": raises `TrainingStopped` out of `optimizer.step()`, before the step is made, where it sees the gradients;
      otherwise sets `hooks.should_stop`.

    Several processes skip and stop together. Steps that a GradScaler skips by itself are not reported. Each look
    synchronises a GPU, so "warn" looks every tenth step.

    Images that the loop hands over are looked at, too: any that is not finite is reported, and a batch of which half or
    more is black or of one colour is warned of once, whatever the action. Both are what a decoder makes that overflows
    in float16.

    Args:
        action: "warn", "skip" or "stop".
        every: steps between two looks; 10 for "warn", 1 for the others, and "skip" allows nothing else.
        optimizer: one more whose gradients to look at, or several; needed for "skip" where Hooks is not attached.
        name: for its key in a saved state, where there are several.

    Attributes:
        found, skips: how often something was not finite, and how many steps were skipped.

    Example:
        >>> guard = NaNGuard(action="skip")
    """

    def __init__(
        self,
        action: str = "warn",
        *,
        every: int | None = None,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        name: str = "nan",
    ) -> None:
        if action not in ACTIONS:
            raise ValueError(f"action must be one of {ACTIONS}, got {action!r}")
        self.every = check_count("every", every if every is not None else 10 if action == "warn" else 1)
        if action == "skip" and self.every != 1:
            raise ValueError(f'"skip" must see every step: every must be 1, got {every}')
        self.action, self.name = action, name
        self.found = self.skips = 0
        self._told: set[str] = set()  # names of images
        self._unlogged: list[str] = []  # what was said where there is no writer
        self._blind = False
        self._handles: dict[torch.optim.Optimizer, Any] = {}
        self._steps: dict[torch.optim.Optimizer, int] = {}
        for one in (optimizer,) if hasattr(optimizer, "param_groups") else optimizer or ():
            self.attach(unwrapped_optimizer(one, "NaNGuard"))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        if optimizer not in self._handles:
            self._handles[optimizer] = optimizer.register_step_pre_hook(outside_graphs(self._before_step))
            self._steps[optimizer] = 0

    def detach(self) -> None:
        for handle in self._handles.values():
            handle.remove()
        self._handles = {}

    def on_train_start(self, ctx: Context) -> None:
        if self.action == "skip" and not self._handles:
            warn('NaNGuard("skip") sees no gradients: attach the hooks, or pass optimizer=')

    def on_step_end(self, ctx: Context) -> None:
        named = {f"{track}/{term}": value for track, terms in ctx.terms.items() for term, value in terms.items()}
        bad = self._look_at_images(ctx)
        if named:
            tensors = (v if isinstance(v, Tensor) else torch.full((), v, dtype=torch.float32, device="cpu")
                       for v in named.values())  # fmt: skip
            values = [value.detach().float().mean() for value in tensors]
            finite = torch.isfinite(torch.stack([value.to(values[0].device) for value in values])).tolist()
            bad += [name for name, good in zip(named, finite, strict=True) if not good]
        stop = self.action == "stop" and any_rank(bool(bad))
        if bad or stop:
            what = f"{', '.join(bad)} is not finite" if bad else "a term of another rank is not finite"
            self._report(f"step {ctx.step}: {what}", stop=stop)

        self._log(ctx)

    def on_train_end(self, ctx: Context) -> None:
        self._log(ctx)

    def _look_at_images(self, ctx: Context) -> list[str]:
        """The names of images that are not finite; images that show nothing are warned of."""
        bad = []
        for name, images in ctx.images.items() if ctx.step % self.every == 0 else ():
            batches = [images] if isinstance(images, Tensor) else [image[None] for image in images]
            broken = [broken_images(batch) for batch in batches if batch.numel()]
            if not broken:
                continue
            shares = {kind: float(torch.cat([found[kind] for found in broken]).float().mean()) for kind in broken[0]}
            if shares.pop("nonfinite"):
                bad.append(f"images {name!r}")
            message = broken_message(shares, len(images)) if sum(shares.values()) >= 0.5 else None
            if message and name not in self._told:
                self._told.add(name)
                self._say(f"step {ctx.step}, images {name!r}: {message}")
        return bad

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found, "skips": self.skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found, self.skips = int(state["found"]), int(state["skips"])

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self.skipped = None
        self._steps[optimizer] += 1
        if self._steps[optimizer] % self.every:
            return
        if self.action == "skip":
            check_no_closure(args, kwargs, 'NaNGuard("skip") cannot guard')
        if skips_step(optimizer):
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = self._count(gradients)
        if self.action == "warn":
            if bad:
                self._report(f"the gradients of {bad} of {len(gradients)} parameters are not finite", stop=False)
            return
        if any_rank(bad > 0):
            message = f"the gradients of {bad} of {len(gradients)} parameters are not finite"
            if self.action == "skip":
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None
                self.skipped = optimizer
                self.skips += 1
                message += "; the step is skipped"
            self._report(message, stop=self.action == "stop")

    def _count(self, gradients: list[Tensor]) -> int:
        """How many are not finite; 0 for gradients of a kind that cannot be looked at, which is said once."""
        if self._blind:
            return 0
        try:
            return _count_non_finite(gradients)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            self._blind = True
            warn(f"NaNGuard cannot look at these gradients, and does not from now on: {error}")
            return 0

    def _report(self, message: str, *, stop: bool) -> None:
        self.found += 1
        if stop:
            self._unlogged.append(message)
            raise TrainingStopped(f"NaNGuard: {message}")
        if self.found == 1:
            self._say(f"{message} (said once; NaNGuard.found counts)")

    def _say(self, message: str) -> None:
        self._unlogged.append(message)
        warn(f"NaNGuard: {message}")

    def _log(self, ctx: Context) -> None:
        """Put what was said into the log, as the text `qa_eval/{name}/alarm`."""
        for message in self._unlogged:
            log_text(ctx.writer, make_tag("eval", self.name, "alarm"), message, ctx.step)
        self._unlogged = []


def _count_non_finite(gradients: list[torch.Tensor]) -> int:
    """How many of the gradients hold a NaN or an infinity; one pass and one synchronisation when none does."""
    gradients = [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return 0
    total_norm = getattr(torch.nn.utils, "get_total_norm", None)  # torch 2.6
    if total_norm is not None and bool(torch.isfinite(total_norm(gradients))):
        return 0
    finite = [torch.isfinite(gradient).all().to(gradients[0].device) for gradient in gradients]
    return int((~torch.stack(finite)).sum())
