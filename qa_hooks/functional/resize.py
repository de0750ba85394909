"""Half the size: the mean of 2 x 2 pixels, or MATLAB's `imresize(I, 0.5)` (bicubic with antialiasing).

At a factor of exactly one half, `imresize` is one symmetric 8-tap filter, applied at every second pixel of each axis,
on an image continued by reflection at its edges (edge pixel repeated):

    taps at distances 0.5, 1.5, 2.5, 3.5:  k(d / 2) / 2,  k = Keys' cubic with a = -0.5
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# k(0.25), k(0.75), k(1.25), k(1.75), each halved; both sides together sum to 1.
_TAPS = (0.43359375, 0.11328125, -0.03515625, -0.01171875)


def halve(images: Tensor, *, antialias: bool) -> Tensor:
    """`(N, H, W)` -> `(N, H // 2, W // 2)`; differentiable any number of times. An odd last row or column is cut.

    Args:
        images: floating, sides of at least 8.
        antialias: MATLAB's imresize; otherwise the mean of 2 x 2 pixels.

    Example:
        >>> halve(torch.ones(1, 9, 16), antialias=True)[0, 0, :2]
        tensor([1., 1.])
    """
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    images = images[:, :height, :width]
    if not antialias:
        return F.avg_pool2d(images[:, None], 2)[:, 0]
    return _Imresize.apply(images, False)  # type: ignore[no-any-return]


class _Imresize(torch.autograd.Function):
    """The filter is linear: its gradient is its adjoint, whose gradient is the filter. Nothing needs to be saved."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, adjoint: bool) -> Tensor:
        ctx.adjoint = adjoint
        return _spread_axis(_spread_axis(images, 2), 1) if adjoint else _halve_axis(_halve_axis(images, 1), 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Imresize.apply(grad, not ctx.adjoint), None


def _halve_axis(images: Tensor, axis: int) -> Tensor:
    length = images.shape[axis]
    head, tail = images.narrow(axis, 0, 3).flip(axis), images.narrow(axis, length - 3, 3).flip(axis)
    # Even and odd pixels of the continued image: output i meets even pixels i..i+3 and odd pixels i..i+3.
    padded = torch.cat([head, images, tail], axis)
    half = length // 2
    pairs = padded.view(*padded.shape[:axis], half + 3, 2, *padded.shape[axis + 1 :])
    even, odd = pairs.select(axis + 1, 0), pairs.select(axis + 1, 1)
    result = torch.zeros_like(even.narrow(axis, 0, half))
    for distance, tap in enumerate(_TAPS):
        # Distances in input pixels from the output's centre: the pair (3 - distance, 4 + distance) of eight.
        for position in (3 - distance, 4 + distance):
            source = odd if position % 2 else even
            result.add_(source.narrow(axis, position // 2, half), alpha=tap)
    return result


def _spread_axis(grad: Tensor, axis: int) -> Tensor:
    """The adjoint of `_halve_axis`."""
    half = grad.shape[axis]
    length = 2 * half
    shape = list(grad.shape)
    shape[axis : axis + 1] = [half + 3, 2]
    padded = grad.new_zeros(shape)
    for distance, tap in enumerate(_TAPS):
        for position in (3 - distance, 4 + distance):
            padded.select(axis + 1, position % 2).narrow(axis, position // 2, half).add_(grad, alpha=tap)
    padded = padded.flatten(axis, axis + 1)
    result = padded.narrow(axis, 3, length).contiguous()
    result.narrow(axis, 0, 3).add_(padded.narrow(axis, 0, 3).flip(axis))
    result.narrow(axis, length - 3, 3).add_(padded.narrow(axis, length + 3, 3).flip(axis))
    return result
