"""Gaussian filters as banded matrix products.

A separable filter is one matrix per axis: `out = R image C^T`, where the banded matrices R (rows) and C (columns) hold
the taps of the window on each line. Padding is linear, so it is part of the matrix as well: `valid` keeps the positions
where the whole window fits, `reflect` mirrors the indices (without repeating the edge), `replicate` repeats the edge,
and `zero` leaves out the taps that fall outside. The adjoint, which every gradient needs, is the same product with the
transposed matrices.

A matrix is applied block by block, so that almost none of its zeros are multiplied, and each product leaves its axis in
front: two of them filter both axes with plain large matrix products and no transposition. Hence the layouts of this
module: *planes* are `(P, H, W)`, their filtered *maps* are `(H', W', P)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Padding = Literal["valid", "reflect", "replicate", "zero"]

# Outputs per block. A block of b outputs multiplies b + window - 1 inputs: short ones waste fewer products, long ones
# need fewer calls. Sides up to WHOLE are one block. Measured on CPU; a GPU prefers few launches to few products.
BLOCK = {"cpu": 32}
OTHER_BLOCK = 128
WHOLE = 64


class Block(NamedTuple):
    """Rows `outputs` of a banded matrix and the only columns, `inputs`, where they are not zero."""

    outputs: slice
    inputs: slice
    weights: Tensor


class Band(NamedTuple):
    """A banded matrix `(size_out, size_in)` cut into blocks of rows, and its transpose cut in the same way."""

    size_out: int
    size_in: int
    blocks: tuple[Block, ...]
    transposed: tuple[Block, ...]


@dataclass(frozen=True, eq=False)
class Filter:
    """A separable filter for images of one size: one matrix per axis.

    No tuple, whose tensors `torch.func` would take for arguments of the function that the filter is handed to.
    """

    rows: Band
    columns: Band


def gaussian_taps(size: int, sigma: float) -> list[float]:
    """Normalised Gaussian weights at the offsets `-(size - 1) // 2 ... size // 2` (-5..5 for 11 taps, -3..4 for 8).

    Example:
        >>> [round(tap, 4) for tap in gaussian_taps(3, 1.0)]
        [0.2741, 0.4519, 0.2741]
    """
    taps = [math.exp(-((index - (size - 1) // 2) ** 2) / (2 * sigma**2)) for index in range(size)]
    return [tap / math.fsum(taps) for tap in taps]


def fitting_window(window_size: int, height: int, width: int) -> int:
    """The largest odd window, at most `window_size`, that fits into an image.

    Example:
        >>> fitting_window(11, 32, 32), fitting_window(11, 8, 32), fitting_window(11, 1, 1)
        (11, 7, 1)
    """
    largest = min(window_size, height, width)
    return largest if largest % 2 else largest - 1


@lru_cache(maxsize=128)
def gaussian_filter(
    height: int,
    width: int,
    *,
    window_size: int,
    sigma: float,
    padding: Padding,
    dtype: torch.dtype,
    device: torch.device,
) -> Filter:
    """The Gaussian filter for images `(height, width)`, built once per combination of arguments.

    Raises:
        ValueError: the window does not fit into the image (with `replicate` and `zero` padding every window fits).
    """
    if padding in ("valid", "reflect") and window_size > min(height, width):
        raise ValueError(f"window_size={window_size} does not fit into images of {height}x{width}")
    taps = gaussian_taps(window_size, sigma)
    # A tensor made in inference mode could not be used for training later, and these outlive the call.
    with torch.inference_mode(False), torch.no_grad():
        rows, columns = (_band(side, taps, padding, dtype, device) for side in (height, width))
    return Filter(rows, columns)


def _band(side: int, taps: list[float], padding: Padding, dtype: torch.dtype, device: torch.device) -> Band:
    before = (len(taps) - 1) // 2
    first, last = (before, side - len(taps) // 2) if padding == "valid" else (0, side)
    centres = torch.arange(first, last, device="cpu")
    outputs = torch.arange(len(centres), device="cpu")[:, None].expand(-1, len(taps))
    inputs = centres[:, None] + torch.arange(len(taps), device="cpu") - before
    weights = torch.tensor(taps, dtype=torch.float64, device="cpu").expand(inputs.shape)
    if padding == "reflect":
        inputs = side - 1 - (side - 1 - inputs.abs()).abs()
    elif padding == "replicate":
        inputs = inputs.clamp(0, side - 1)
    inside = (inputs >= 0) & (inputs < side)
    outputs, inputs, weights = outputs[inside], inputs[inside], weights[inside]
    step = side if side <= WHOLE else BLOCK.get(device.type, OTHER_BLOCK)

    def cut(outputs: Tensor, inputs: Tensor, count: int) -> tuple[Block, ...]:
        blocks = []
        for start in range(0, count, step):
            stop = min(start + step, count)
            here = (outputs >= start) & (outputs < stop)
            low, high = int(inputs[here].min()), int(inputs[here].max()) + 1
            block = torch.zeros(stop - start, high - low, dtype=torch.float64, device="cpu")
            block.index_put_((outputs[here] - start, inputs[here] - low), weights[here], accumulate=True)
            blocks.append(Block(slice(start, stop), slice(low, high), block.to(device, dtype)))
        return tuple(blocks)

    return Band(len(centres), side, cut(outputs, inputs, len(centres)), cut(inputs, outputs, side))


def filter_planes(planes: Tensor, kernel: Filter) -> Tensor:
    """Contiguous planes `(P, H, W)` -> maps `(H', W', P)`, without a graph; call it inside `full_precision`."""
    count, height, width = planes.shape
    half = _forward(planes.view(count * height, width), kernel.columns)
    maps = _forward(half.view(kernel.columns.size_out * count, height), kernel.rows)
    return maps.view(kernel.rows.size_out, kernel.columns.size_out, count)


def filter_maps_adjoint(maps: Tensor, kernel: Filter) -> Tensor:
    """Contiguous maps `(H', W', P)` -> planes `(P, H, W)`: the transpose of `filter_planes`."""
    height, width, count = maps.shape
    half = _backward(maps.view(height, width * count), kernel.rows)
    planes = _backward(half.view(width, count * kernel.rows.size_in), kernel.columns)
    return planes.view(count, kernel.rows.size_in, kernel.columns.size_in)


def filter_small(planes: Tensor, kernel: Filter, *, adjoint: bool = False) -> Tensor:
    """Contiguous planes `(P, H, W)` -> planes `(P, H', W')` for sides up to `WHOLE`, without a graph; or the transpose.

    The layout stays, which suits callers that go on with the planes; call it inside `full_precision`.
    """
    (rows,), (columns,) = (band.transposed if adjoint else band.blocks for band in (kernel.rows, kernel.columns))
    half = torch.mm(planes.view(-1, planes.shape[-1]), columns.weights.T)
    return torch.matmul(rows.weights, half.view(*planes.shape[:-1], -1))


def _forward(lines: Tensor, band: Band) -> Tensor:
    """`(L, size_in)` -> `(size_out, L)`: filter the last axis and leave it in front."""
    out = lines.new_empty(band.size_out, lines.shape[0])
    for block in band.blocks:
        torch.mm(block.weights, lines[:, block.inputs].T, out=out[block.outputs])
    return out


def _backward(lines: Tensor, band: Band) -> Tensor:
    """`(size_out, L)` -> `(L, size_in)`: the transpose of `_forward`."""
    out = lines.new_empty(lines.shape[1], band.size_in)
    for block in band.transposed:
        torch.mm(lines[block.inputs].T, block.weights.T, out=out[:, block.outputs])
    return out


def gaussian_blur(planes: Tensor, kernel: Filter) -> Tensor:
    """Planes `(P, H, W)` of any layout -> maps `(H', W', P)`, exact under autocast.

    Differentiable any number of times, forward and backward, and under `torch.func`.
    """
    maps: Tensor = _Blur.apply(planes, kernel, False)
    return maps


class _Blur(torch.autograd.Function):
    """The filter is linear: its gradient is its adjoint, whose gradient is the filter. Nothing needs to be saved."""

    @staticmethod
    def forward(values: Tensor, kernel: Filter, adjoint: bool) -> Tensor:
        with full_precision(values.device):
            return (filter_maps_adjoint if adjoint else filter_planes)(values.contiguous(), kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Filter, bool], output: Tensor) -> None:
        _, ctx.kernel, ctx.adjoint = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Blur.apply(grad, ctx.kernel, not ctx.adjoint), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        blurred: Tensor = _Blur.apply(tangent, ctx.kernel, ctx.adjoint)
        return blurred

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None, None], values: Tensor, kernel: Filter, adjoint: bool) -> Any:
        """A batch of planes is more planes: their axis is the first of planes and the last of maps."""
        planes = -1 if adjoint else 0
        batched = values.movedim(in_dims[0], planes)
        joint = batched.flatten(-2) if adjoint else batched.flatten(0, 1)
        result = _Blur.apply(joint, kernel, adjoint)
        if adjoint:  # back from (P B, H, W)
            return result.unflatten(0, (-1, info.batch_size)), 1
        return result.unflatten(-1, (info.batch_size, -1)), 2


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and float32 matrix products that are float32: not TF32 or bfloat16, whatever the run has chosen.

    A variance is a small difference of large products; with the ten bits of TF32 there is nothing left of it.
    """
    before = _product_precision(device)
    precise = before in ("none", "ieee", "highest")
    if precise and not torch.is_autocast_enabled(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        if precise:
            yield
            return
        _product_precision(device, "ieee")
        try:
            yield
        finally:
            _product_precision(device, before)


def _product_precision(device: torch.device, value: str | None = None) -> str:
    """Read, or set to `value`, what float32 matrix products are computed in."""
    backend: Any = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    if not hasattr(torch.backends.mkldnn, "matmul"):  # torch before 2.9 has one switch, with names of its own
        if value is not None:
            torch.set_float32_matmul_precision("highest" if value == "ieee" else value)
        return torch.get_float32_matmul_precision()
    if value is not None:
        backend.matmul.fp32_precision = value
    return str(backend.matmul.fp32_precision)
