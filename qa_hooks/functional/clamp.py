"""A clamp to the value range whose gradient still reaches pixels outside the range."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from qa_hooks.images import Range


class _ClampInward(torch.autograd.Function):
    generate_vmap_rule = True  # for torch.func

    @staticmethod
    def forward(images: Tensor, low: float, high: float) -> Tensor:
        return images.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.bounds = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (images,), (low, high), grad = ctx.saved_tensors, ctx.bounds, grads[0]
        # A descent step goes against the gradient.
        further_out = ((images > high) & (grad < 0)) | ((images < low) & (grad > 0))
        return grad.masked_fill(further_out, 0), None, None

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Tensor:
        raise RuntimeError(
            "clamp_inward, which ScoreLoss uses, has a gradient for descent and no forward-mode derivative: use "
            "backward(), torch.autograd.grad or torch.func.grad"
        )


def clamp_inward(images: Tensor, value_range: Range = (0.0, 1.0)) -> Tensor:
    """Images clamped to a range, with a gradient that can bring pixels back into the range and never drives them out.

    A plain clamp has no gradient outside the range, so a pixel that has left it never comes back. A straight-through
    clamp (clamped forward, the identity backward) pushes such a pixel on for ever, because the clamped value no longer
    changes. Here the gradient passes, except where a step against it would lead further out.

    Args:
        images: any shape, floating; the loss that is computed from them is minimised.
        value_range: (low, high).

    Example:
        >>> x = torch.tensor([-0.5, 0.5, 1.5, 1.5], requires_grad=True)
        >>> (clamp_inward(x) * torch.tensor([1.0, 1.0, 1.0, -1.0])).sum().backward()
        >>> x.grad.tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    clamped: Tensor = _ClampInward.apply(images, *value_range)
    return clamped


class _ThroughClamp(torch.autograd.Function):
    """Clamps to [0, 1] forward, does nothing backward."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def through_clamp(images: Tensor) -> Tensor:
    """Images clamped to [0, 1] with the gradient of unclamped images.

    Example:
        >>> x = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
        >>> y = through_clamp(x)
        >>> y.tolist(), torch.autograd.grad(y.sum(), x)[0].tolist()
        ([0.0, 0.5, 1.0], [1.0, 1.0, 1.0])
    """
    return cast(Tensor, _ThroughClamp.apply(images))
