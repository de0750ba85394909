"""Where float64 is chosen: covariance algebra runs in double precision, and this module says how.

Sums of squares of a few hundred rows already lose half of float32's digits, and a 36 x 36 covariance with a condition
number of 1e7 loses the rest. Every module that solves, factors or inverts a covariance converts with `to_float64`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def to_float64(tensor: Tensor) -> Tensor:
    """`tensor` in float64, differentiably; on MPS, which has no float64, on the CPU.

    Example:
        >>> to_float64(torch.ones(2)).dtype
        torch.float64
    """
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """The type in which to multiply features: theirs, or float64 where torch may round float32 products further.

    The user may have allowed TF32 or bfloat16 products for training (`torch.set_float32_matmul_precision`); a
    distance of features loses its digits with them.

    Example:
        >>> product_dtype(torch.zeros(2), torch.zeros(2).half())
        torch.float32
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64


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
