"""Two promises about numbers: covariances are computed in float64, and a missing second derivative is an error.

Sums of squares of a few hundred rows already lose half of float32's digits, and a 36 x 36 covariance with a condition
number of 1e7 loses the rest. Every module that solves, factors or inverts a covariance converts with `to_float64`.

The fast functions of this package have a first derivative that is written by hand and no second one. Every way to ask
for the second one, or for a forward-mode derivative, ends in an error and never in a zero: see `differentiable_once`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def to_float64(tensor: Tensor) -> Tensor:
    """`tensor` in float64, differentiably; on MPS, which has no float64, on the CPU.

    Example:
        >>> to_float64(torch.ones(2)).dtype
        torch.float64
    """
    if tensor.device.type == "mps":
        tensor = tensor.cpu()
    return tensor.to(torch.float64)


def as_doubles(values: Any) -> Tensor:
    """Numbers (a tensor, an array or a list) in float64 on the CPU, without gradient, whatever torch's defaults are.

    Example:
        >>> as_doubles([1, 2]).dtype
        torch.float64
    """
    given = values.detach().cpu() if isinstance(values, Tensor) else values
    return torch.as_tensor(given, dtype=torch.float64, device="cpu")


def result_dtype(given: Tensor) -> torch.dtype:
    """The type of a result for `given`: its own, but float32 for half precision, whose range ends at 65504.

    Example:
        >>> result_dtype(torch.zeros(1).half()), result_dtype(torch.zeros(1).double())
        (torch.float32, torch.float64)
    """
    return torch.promote_types(given.dtype, torch.float32)


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


def differentiable_once(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the `backward` of an `autograd.Function` that has no second derivative: asking for one is an error.

    torch's own `once_differentiable` hangs its error on the incoming gradient alone. A Hessian-vector product or a
    meta-gradient differentiates by the inputs instead, finds no way there, and takes the missing part for zero. Here
    the error stands between each gradient and the output of the function, so it is met on the way to any input.

    `forward` must save its (differentiable) output first: `ctx.save_for_backward(output, ...)`.

    Args:
        what: the subject of the message and what to write instead, for example
            "the fast SSIM is differentiable once; call it with `second_order=True`".
    """

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *grads: Tensor) -> Any:
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            output = ctx.saved_tensors[0]
            if not isinstance(results, tuple):
                return _Refused.apply(what, results, output, *grads)
            return tuple(None if part is None else _Refused.apply(what, part, output, *grads) for part in results)

        return wrapper

    return decorate


class _Refused(torch.autograd.Function):
    """A gradient whose own derivative is an error."""

    @staticmethod
    def forward(ctx: Any, what: str, gradient: Tensor, *_: Tensor) -> Tensor:
        ctx.what = what
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError(
            f"a gradient was differentiated again (a gradient penalty, a Hessian, a meta-gradient?), but {ctx.what}"
        )


def is_transformed(*tensors: Tensor) -> bool:
    """True under `torch.func` (grad, vmap, jvp, hessian) and for dual numbers of forward-mode differentiation.

    Such tensors must go through plain operations: code without a graph would drop what they carry.

    Example:
        >>> is_transformed(torch.ones(2)), torch.func.vmap(lambda x: x + is_transformed(x))(torch.zeros(2))
        (False, tensor([1., 1.]))
    """
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def check_reverse_mode(name: str, *tensors: Tensor) -> None:
    """Refuse what `is_transformed` finds, for functions that only `backward()` and `torch.autograd.grad` can pass.

    Raises:
        RuntimeError: a transform of `torch.func`, or a dual number.
    """
    if is_transformed(*tensors):
        raise RuntimeError(
            f"{name} has its gradient by backward() and torch.autograd.grad only, and once: torch.func (grad, vmap, "
            "jvp, hessian) and forward-mode differentiation cannot go through it. Call it on the whole batch, outside "
            "the transform, and take the gradient with torch.autograd.grad"
        )
