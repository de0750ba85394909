"""Backward passes that cannot be differentiated again, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's `once_differentiable`, which lets a second backward pass through, with a gradient that lacks this part,
    where the incoming gradient is a constant (a sum of the outputs): this one refuses that, too.
    """
    refusing = once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor) -> Any:
        if torch.is_grad_enabled():
            grads = tuple(grad if grad.requires_grad else grad.detach().requires_grad_() for grad in grads)
        return refusing(ctx, *grads)

    return wrapper
