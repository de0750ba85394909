"""The similarity of two batches of planes, with its gradient in closed form: what `ssim` and `ms_ssim` are made of.

With the sum s = x + y and the difference d = x - y, blurred means m_s, m_d and local variances v_s, v_d, SSIM's
luminance and contrast-structure terms (Wang et al. 2004) become

    l  = 1 - 2 a,   a = m_d^2 / (m_s^2 + m_d^2 + 2 C1)
    cs = 1 - 2 b,   b = v_d / (v_s + v_d + 2 C2)

which needs four blurs instead of five and cancels nothing where the images agree: a and b vanish with d. The variances
are those of s and d less their means over the image, so bright flat images keep their digits. The gradient of
mean(l cs) is three more blurs (four for both images), see `_adjoint`.

On the CPU the work is done in chunks of planes, so that all the maps of a chunk stay in the cache.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks.functional.filters import Filter, filter_maps_adjoint, filter_planes, full_precision, gaussian_blur
from qa_hooks.functional.numerics import differentiable_once, is_transformed
from qa_hooks.images import Range, to_unit

C1, C2 = 0.01**2, 0.03**2
CHUNK = 2**17  # pixels per chunk and thread on the CPU: a dozen maps of half a megabyte


class _Blurs(NamedTuple):
    """What a chunk of P planes is blurred to. Planes are `(P, H, W)`, maps `(H', W' P)`."""

    total: Tensor  # the planes s and d less their means
    difference: Tensor
    mean_total: Tensor  # their blurs
    mean_difference: Tensor
    offset_total: Tensor  # what the blurs lack of m_s and m_d: the means of the planes, one per column `(W' P,)`
    offset_difference: Tensor
    b: Tensor
    inverse: Tensor  # 1 / (v_s + v_d + 2 C2)


class _Luminance(NamedTuple):
    """The luminance term's maps, `(H', W' P)`."""

    m_total: Tensor
    m_difference: Tensor
    a: Tensor
    inverse: Tensor  # 1 / (m_s^2 + m_d^2 + 2 C1)


def plane_similarity(
    x: Tensor, y: Tensor, kernel: Filter, *, luminance: bool, value_range: Range, second_order: bool
) -> Tensor:
    """Mean of `l cs` (or of `cs` alone) over the positions of `kernel`, for each image and channel.

    Args:
        x, y: `(N, C, H, W)`, floating point, in any memory layout.
        kernel: a filter for their size; its rows must sum to 1 (no zero padding).
        luminance: with the luminance term.
        value_range: what the numbers mean.
        second_order: take the path of plain autograd operations, as `torch.func` and forward mode always do.

    Returns:
        `(N, C)`, float64 when an input is, else float32.
    """
    if second_order or is_transformed(x, y):
        return _plain(x, y, kernel, luminance, value_range)
    need = [torch.is_grad_enabled() and image.requires_grad for image in (x, y)]
    if not any(need):
        return _evaluate(x, y, kernel, luminance, value_range, (False, False))[0]
    values: Tensor = _Similarity.apply(x, y, kernel, luminance, value_range, tuple(need))
    return values


def work_dtype(x: Tensor, y: Tensor) -> torch.dtype:
    """The precision of the computation: float64 when an input has it, else float32."""
    return torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32


def centred(planes: Tensor) -> tuple[Tensor, Tensor]:
    """Planes `(P, H, W)` less their means, and the means `(P,)`, which are constants for the gradient."""
    means = planes.detach().mean((1, 2))
    return planes - means[:, None, None], means


def _plain(x: Tensor, y: Tensor, kernel: Filter, luminance: bool, value_range: Range) -> Tensor:
    dtype = work_dtype(x, y)
    with full_precision(x.device):
        a, b = (to_unit(image.to(dtype), value_range).flatten(0, 1) for image in (x, y))
        total, offset_total = centred(a + b)
        difference, offset_difference = centred(a - b)
        mean_total, mean_difference = gaussian_blur(total, kernel), gaussian_blur(difference, kernel)
        var_total = gaussian_blur(total.square(), kernel) - mean_total.square()
        var_difference = gaussian_blur(difference.square(), kernel) - mean_difference.square()
        similarity = 1 - 2 * var_difference / (var_total + var_difference + 2 * C2)
        if luminance:
            square = (mean_difference + offset_difference).square()
            similarity = similarity * (1 - 2 * square / ((mean_total + offset_total).square() + square + 2 * C1))
        values: Tensor = similarity.mean((0, 1)).unflatten(0, x.shape[:2])
        return values


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, kernel: Filter, luminance: bool, value_range: Range, need: tuple[bool, bool]
    ) -> Tensor:
        values, *gradients = _evaluate(x, y, kernel, luminance, value_range, need)
        ctx.save_for_backward(values, *gradients)
        ctx.dtypes = x.dtype, y.dtype
        return values

    @staticmethod
    @differentiable_once(
        "the fast SSIM is differentiable once; call it with `second_order=True`, which is slower and has no such limit"
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        by_x, by_y = (
            None if gradient is None else (gradient * grad[:, :, None, None]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors[1:], ctx.dtypes, strict=True)
        )
        return by_x, by_y, None, None, None, None


def _evaluate(
    x: Tensor, y: Tensor, kernel: Filter, luminance: bool, value_range: Range, need: tuple[bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The values `(N, C)` and, where needed, their gradients `(N, C, H, W)`."""
    dtype = work_dtype(x, y)
    planes_x, planes_y = (image.detach().contiguous().flatten(0, 1) for image in (x, y))
    count, height, width = planes_x.shape
    positions = kernel.rows.size_out * kernel.columns.size_out
    scale = 4 / (positions * (value_range[1] - value_range[0]))
    values = planes_x.new_empty(count, dtype=dtype)
    gradients = [planes_x.new_empty(planes_x.shape, dtype=dtype) if needed else None for needed in need]
    step = max(1, CHUNK * torch.get_num_threads() // (height * width)) if x.device.type == "cpu" else count
    with torch.no_grad(), full_precision(x.device):
        for start in range(0, count, step):
            part = slice(start, start + step)
            unit_x, unit_y = (to_unit(planes[part].to(dtype), value_range) for planes in (planes_x, planes_y))
            blurs = _blur(unit_x, unit_y, kernel)
            light = _luminance(blurs) if luminance else None
            structure = 1 - 2 * blurs.b
            similarity = structure if light is None else (1 - 2 * light.a).mul_(structure)
            values[part] = similarity.sum(0).view(kernel.columns.size_out, -1).sum(0) / positions
            if any(need):
                targets = [None if gradient is None else gradient[part] for gradient in gradients]
                _adjoint(blurs, light, structure, kernel, targets)
                for target in targets:
                    if target is not None:
                        target.mul_(scale)
    gradient_x, gradient_y = (None if gradient is None else gradient.view(x.shape) for gradient in gradients)
    return values.view(x.shape[:2]), gradient_x, gradient_y


def _blur(x: Tensor, y: Tensor, kernel: Filter) -> _Blurs:
    total, difference = x + y, x - y
    offset_total, offset_difference = total.mean((1, 2)), difference.mean((1, 2))
    total -= offset_total[:, None, None]
    difference -= offset_difference[:, None, None]
    height, width = kernel.rows.size_out, kernel.columns.size_out
    mean_total, mean_difference, var_total, var_difference = (
        filter_planes(planes, kernel).view(height, -1)
        for planes in (total, difference, total * total, difference * difference)
    )
    var_total.addcmul_(mean_total, mean_total, value=-1)
    var_difference.addcmul_(mean_difference, mean_difference, value=-1)
    inverse = var_total.add_(var_difference).add_(2 * C2).reciprocal_()
    return _Blurs(
        total,
        difference,
        mean_total,
        mean_difference,
        offset_total.repeat(width),
        offset_difference.repeat(width),
        b=var_difference.mul_(inverse),
        inverse=inverse,
    )


def _luminance(blurs: _Blurs) -> _Luminance:
    m_total = blurs.mean_total + blurs.offset_total
    m_difference = blurs.mean_difference + blurs.offset_difference
    a = m_difference * m_difference
    inverse = (m_total * m_total).add_(a).add_(2 * C1).reciprocal_()
    return _Luminance(m_total, m_difference, a.mul_(inverse), inverse)


def _adjoint(
    blurs: _Blurs, light: _Luminance | None, structure: Tensor, kernel: Filter, targets: list[Tensor | None]
) -> None:
    """Write a quarter of the gradient of the sum of `l cs` by x and by y into `targets` (None: not wanted).

    The derivatives by the four blurs, of s^2, d^2, s and d, are 2 e, 2 f, 4 u and 4 v with

        e = l b / (v_s + v_d + 2 C2)                u = cs a m_s / (m_s^2 + m_d^2 + 2 C1)       - e blur(s)
        f = l (b - 1) / (v_s + v_d + 2 C2)          v = cs (a - 1) m_d / (m_s^2 + m_d^2 + 2 C1) - f blur(d)

    and x enters s and d with the sign +, y enters d with the sign -.
    """
    slope = blurs.inverse if light is None else (1 - 2 * light.a).mul_(blurs.inverse)
    e = slope * blurs.b
    f = e - slope
    u = (blurs.mean_total * e).neg_()
    v = (blurs.mean_difference * f).neg_()
    if light is not None:
        slope = structure * light.inverse
        by_total = slope * light.a
        v.addcmul_(by_total - slope, light.m_difference)
        u.addcmul_(by_total, light.m_total)

    def adjoint(maps: Tensor) -> Tensor:
        return filter_maps_adjoint(maps.view(kernel.rows.size_out, kernel.columns.size_out, -1), kernel)

    by_square = adjoint(e).mul_(blurs.total)
    by_square_difference = adjoint(f).mul_(blurs.difference)
    if None not in targets:
        through_total = adjoint(u).add_(by_square)
        through_difference = adjoint(v).add_(by_square_difference)
        torch.add(through_total, through_difference, out=targets[0])
        torch.sub(through_total, through_difference, out=targets[1])
        return
    for target, sign in zip(targets, (1, -1), strict=True):
        if target is not None:
            torch.add(adjoint(u.add_(v, alpha=sign)), by_square, out=target).add_(by_square_difference, alpha=sign)
