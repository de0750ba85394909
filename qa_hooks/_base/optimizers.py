"""Optimizers that the user steps: unwrap them, and notice steps that change nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


def unwrapped_optimizer(optimizer: Any, caller: str) -> torch.optim.Optimizer:
    """The torch optimizer inside wrappers such as `AcceleratedOptimizer`, which have it as `.optimizer`.

    Raises:
        TypeError: there is none; the message names the caller.
    """
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"{caller} needs a torch optimizer (or a wrapper with .optimizer), got {type(optimizer).__name__}"
        )
    return optimizer


def outside_graphs(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook for an optimizer whose step a user may have compiled: it runs as plain Python between two graphs.

    Where torch.compile has not been loaded nothing is done, since loading it takes seconds.
    """
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook


def skips_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a GradScaler has found an overflow: a fused optimizer then "steps" without changing anything."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and float(found_inf) != 0


def check_no_closure(args: Sequence[Any], kwargs: Mapping[str, Any], what: str) -> None:
    """`ValueError` when `optimizer.step(closure)` computes the gradients itself: before the step there are none."""
    if any(callable(arg) for arg in args[1:]) or kwargs.get("closure") is not None:
        raise ValueError(f"{what} an optimizer that computes its gradients in a closure")
