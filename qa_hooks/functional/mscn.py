"""MSCN coefficients, their neighbour products and the products' side moments, in one autograd function.

    m = (I - mu) / (sigma + C)  or  (I - mu) / (sigma^2 + C),  mu = w * I,  sigma^2 = w * I^2 - mu^2
    products: m * circshift(m, shift) for (0,1), (1,0), (1,1), (1,-1), wrapped around within each block

All are cheap passes over a small working set, so they are fused: images go through in chunks that stay in the cache,
and the backward pass is closed form. Source: Mittal, Soundararajan, Bovik 2013, equations 1-3 and 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks.functional.filters import filter_small, full_precision, gaussian_filter, gaussian_taps
from qa_hooks.functional.numerics import differentiable_once

ONCE = "NIQE's features are differentiable once; keep them out of what is differentiated twice (`.detach()` them there)"
# On a CPU images are taken in chunks of this many pixels: the working set (some 20 maps) then stays in the cache.
_CHUNK_PIXELS = 1 << 15
# Maps up to this side are filtered by one small matrix product per axis, larger ones by sums of shifted views.
_SMALL = 32


class Normalization(NamedTuple):
    """The Gaussian window's taps and deviation, the constant C, and "std" or "var" as divisor."""

    window: int
    sigma: float
    constant: float
    divisor: str


def block_moments(images: Tensor, normalization: Normalization, block: int | None) -> tuple[Tensor, Tensor]:
    """Side moments of the MSCN coefficients (index 0) and of their four products (1 to 4) in each block.

    Args:
        images: float32 or float64 `(N, h, w)`, in any memory layout; sides multiples of `block`.
        normalization: how the coefficients are made.
        block: side of the blocks; None: each image is one block.

    Returns:
        `(3, 5, rows)`: mean squares of the negative side, of the positive side, mean magnitude, differentiable once;
        `(2, 5, rows)`: the share of negative and of positive values, without a gradient.
    """
    return _BlockMoments.apply(images.contiguous(), normalization, block)  # type: ignore[no-any-return]


def sigma_map(images: Tensor, normalization: Normalization) -> Tensor:
    """Local standard deviation of `(N, h, w)` images, in their units."""
    maps = _local_statistics(images.contiguous(), normalization)
    return maps.sigma * maps.scale


def to_blocks(maps: Tensor, block: int | None) -> Tensor:
    """`(n, h, w)` -> `(n * blocks, b, b)`, row-major within each image."""
    if block is None:
        return maps
    count, height, width = maps.shape
    tiles = maps.view(count, height // block, block, width // block, block).transpose(2, 3)
    return tiles.reshape(-1, block, block)


@dataclass
class _LocalStatistics:
    """MSCN of centred images that were divided by their largest magnitude, `scale` `(n, 1, 1)`; maps `(n, h, w)`."""

    scale: Tensor
    centred: Tensor
    difference: Tensor
    sigma: Tensor
    denominator: Tensor


def _local_statistics(images: Tensor, normalization: Normalization) -> _LocalStatistics:
    epsilon = torch.finfo(images.dtype).eps
    # MSCN does not depend on an offset, and a scale only rescales C: so the image is centred before it is squared,
    # rounding noise has a known size, and gradients need not pass through either number.
    scale = images.abs().amax((1, 2), keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    centred = (images - images.mean((1, 2), keepdim=True)) / scale
    mean, second = _blur(torch.stack([centred, centred.square()]), normalization).unbind()
    sigma = second.addcmul_(mean, mean, value=-1).clamp_min_(epsilon**2).sqrt_()
    # Flat regions differ from their mean by rounding only: exact zeros there keep random signs out of the counts.
    difference = F.hardshrink(centred - mean, 8 * epsilon)
    if normalization.divisor == "std":
        denominator = sigma + normalization.constant / scale
    else:
        denominator = sigma.square() * scale + normalization.constant / scale
    return _LocalStatistics(scale, centred, difference, sigma, denominator)


class _BlockMoments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, normalization: Normalization, block: int | None) -> tuple[Tensor, Tensor]:
        sums, shares, saved = [], [], []
        for chunk in _chunks(images):
            maps = _local_statistics(chunk, normalization)
            coefficients = maps.difference / maps.denominator
            blocks = to_blocks(coefficients, block)
            sides = blocks.new_empty((2, 5, blocks.shape[0], blocks[0].numel()))
            left, right = _signals(blocks, out=sides[0]), sides[1]
            torch.clamp_min(left, 0, out=right)
            left.sub_(right)
            total_left, total_right = sides.sum(-1)
            squares = torch.linalg.vecdot(sides, sides)
            sums.append(torch.cat([squares, (total_right - total_left)[None]]).div_(sides.shape[-1]))
            shares.append(sides.sign_().sum(-1).abs_().div_(sides.shape[-1]))
            if ctx.needs_input_grad[0]:
                saved += [maps.scale, maps.centred, maps.difference, maps.sigma, maps.denominator]
        result, constant = torch.cat(sums, dim=-1), torch.cat(shares, dim=-1)
        ctx.save_for_backward(result, *saved)
        ctx.normalization, ctx.block = normalization, block
        ctx.mark_non_differentiable(constant)
        return result, constant

    @staticmethod
    @differentiable_once(ONCE)
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        grads, first_row = [], 0
        _, *saved = ctx.saved_tensors
        for index in range(0, len(saved), 5):
            maps = _LocalStatistics(*saved[index : index + 5])
            coefficients = maps.difference / maps.denominator
            blocks = to_blocks(coefficients, ctx.block)
            rows = blocks.shape[0]
            grad_blocks = _moments_backward(blocks, grad[:, :, first_row : first_row + rows])
            first_row += rows
            grad_coefficients = _from_blocks(grad_blocks, coefficients.shape, ctx.block)
            grads.append(_mscn_backward(maps, coefficients, grad_coefficients, ctx.normalization))
        return torch.cat(grads), None, None


def _chunks(images: Tensor) -> Iterator[Tensor]:
    pixels = images.shape[1] * images.shape[2]
    size = max(_CHUNK_PIXELS // pixels, 1) if images.device.type == "cpu" else images.shape[0]
    return iter(torch.split(images, size))


def _signals(blocks: Tensor, out: Tensor | None = None) -> Tensor:
    """Blocks `(rows, b, b)` -> their values and the four neighbour products `(5, rows, pixels)`, in `out` if given."""
    signals = (blocks.new_empty((5, blocks.numel())) if out is None else out).view(5, *blocks.shape)
    signals[0] = blocks
    for target, neighbours in zip(signals[1:], _neighbours(blocks), strict=True):
        torch.mul(blocks, neighbours, out=target)
    return signals.flatten(2)


def _neighbours(blocks: Tensor) -> tuple[Tensor, ...]:
    """The blocks, circularly shifted by (0, 1), (1, 0), (1, 1) and (1, -1) rows and columns, as MATLAB's circshift.

    The published pristine parameters were fitted with this order. The diagonals are shifts of a shift.
    """
    below = blocks.roll(1, 1)
    return blocks.roll(1, 2), below, below.roll(1, 2), below.roll(-1, 2)


def _moments_backward(blocks: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the moments `(3, 5, rows)` with respect to the blocks `(rows, b, b)`."""
    signals = _signals(blocks)
    per_value = grad[..., None] / signals.shape[-1]
    by_left, by_right = 2 * per_value[:2]
    grad_signals = signals.clamp_max(0).mul_(by_left).addcmul_(signals.clamp_min(0), by_right)
    grad_signals.addcmul_(signals.sign_(), per_value[2])
    grad_signals = grad_signals.view(5, *blocks.shape)
    total, grad_products = grad_signals[0], grad_signals[1:]
    for grad_product, neighbours in zip(grad_products, _neighbours(blocks), strict=True):
        total.addcmul_(grad_product, neighbours)
    across, below, diagonal, antidiagonal = grad_products.mul_(blocks)  # to be shifted back, in the order above
    below = below.add_(diagonal.roll(-1, 2)).add_(antidiagonal.roll(1, 2))
    return total.add_(across.roll(-1, 2)).add_(below.roll(-1, 1))


def _mscn_backward(maps: _LocalStatistics, coefficients: Tensor, grad: Tensor, normalization: Normalization) -> Tensor:
    """Gradient of the coefficients with respect to the images."""
    grad_difference = grad / maps.denominator
    # -2 times the gradient of the variance; the mean's has the sign turned as well.
    variance = grad_difference * coefficients
    if normalization.divisor == "std":
        variance.div_(maps.sigma)
    else:
        variance.mul_(2 * maps.scale)
    mean = torch.addcmul(grad_difference, maps.centred - maps.difference, variance, value=-1)
    through_mean, through_second = _blur_adjoint(torch.stack([mean, variance]), normalization).unbind()
    total = grad_difference.sub_(through_mean).addcmul_(maps.centred, through_second, value=-1)
    return total.div_(maps.scale)


def _from_blocks(blocks: Tensor, shape: torch.Size, block: int | None) -> Tensor:
    if block is None:
        return blocks
    count, height, width = shape
    tiles = blocks.view(count, height // block, width // block, block, block).transpose(2, 3)
    return tiles.reshape(shape)


def _blur(maps: Tensor, normalization: Normalization) -> Tensor:
    """Gaussian filter of `(k, n, h, w)` with replicate border."""
    if max(maps.shape[-2:]) <= _SMALL:
        return _blur_small(maps, normalization, adjoint=False)
    radius = normalization.window // 2
    return _correlate(F.pad(maps, (radius,) * 4, mode="replicate"), normalization)


def _blur_adjoint(grad: Tensor, normalization: Normalization) -> Tensor:
    if max(grad.shape[-2:]) <= _SMALL:
        return _blur_small(grad, normalization, adjoint=True)
    radius = normalization.window // 2
    spread = _correlate(F.pad(grad, (2 * radius,) * 4), normalization)
    for axis in (-2, -1):  # what fell on the border belongs to the edge pixel that was repeated there
        length = spread.shape[axis] - 2 * radius
        inner = spread.narrow(axis, radius, length)
        inner.select(axis, 0).add_(spread.narrow(axis, 0, radius).sum(axis))
        inner.select(axis, -1).add_(spread.narrow(axis, length + radius, radius).sum(axis))
        spread = inner
    return spread


def _blur_small(maps: Tensor, normalization: Normalization, *, adjoint: bool) -> Tensor:
    """The same as matrix products, which are a few operations where the shifts are dozens."""
    kernel = gaussian_filter(
        *maps.shape[-2:],
        window_size=normalization.window,
        sigma=normalization.sigma,
        padding="replicate",
        dtype=maps.dtype,
        device=maps.device,
    )
    with full_precision(maps.device):  # a backward pass may run under the user's autocast
        return filter_small(maps.flatten(0, 1), kernel, adjoint=adjoint).view(maps.shape)


def _correlate(padded: Tensor, normalization: Normalization) -> Tensor:
    """Sums of shifted views beat convolution on a CPU."""
    taps, radius = gaussian_taps(normalization.window, normalization.sigma), normalization.window // 2
    for axis in (-2, -1):
        length = padded.shape[axis] - 2 * radius
        total = padded.narrow(axis, radius, length) * taps[radius]
        for distance in range(1, radius + 1):
            total.add_(padded.narrow(axis, radius - distance, length), alpha=taps[radius - distance])
            total.add_(padded.narrow(axis, radius + distance, length), alpha=taps[radius + distance])
        padded = total
    return padded
