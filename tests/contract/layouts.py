"""Ways to hold one tensor in memory, and how two results are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from contract.row import Row


def reversed_axes(x: Tensor) -> Tensor:
    """Column-major, as a transposed array arrives."""
    order = tuple(range(x.ndim - 1, -1, -1))
    return x.permute(order).contiguous().permute(order)


def last_axes_swapped(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT if x.ndim > 1 else x


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def image_read_as_hwc(x: Tensor) -> Tensor:
    """What `torch.from_numpy(image).permute(2, 0, 1)[None]` gives: of one image the strides are not channels_last's."""
    return torch.stack(list(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) if x.ndim == 4 else x


def cut_out(x: Tensor) -> Tensor:
    """A crop of something larger, which holds NaN where it should not be read."""
    around = x.new_full([side + 3 for side in x.shape], torch.nan)
    place = tuple(slice(1, 1 + side) for side in x.shape)
    around[place] = x
    return around[place]


def every_second(x: Tensor) -> Tensor:
    around = x.new_full([2 * side for side in x.shape], torch.nan)
    place = (slice(None, None, 2),) * x.ndim
    around[place] = x
    return around[place]


def expanded(x: Tensor) -> Tensor:
    """The same image, row or number for the whole batch: no memory of its own."""
    return x[:1].expand_as(x)


def expanded_channels(x: Tensor) -> Tensor:
    return x[:, :1].expand_as(x) if x.ndim == 4 else x


def odd_strides(x: Tensor) -> Tensor:
    """Axes of length 1 may have any stride at all."""
    strides = [7 if side == 1 else stride for side, stride in zip(x.shape, x.contiguous().stride(), strict=True)]
    return x.contiguous().as_strided(x.shape, strides)


LAYOUTS: list[Callable[[Tensor], Tensor]] = [
    reversed_axes,
    last_axes_swapped,
    channels_last,
    image_read_as_hwc,
    cut_out,
    every_second,
    expanded,
    expanded_channels,
    odd_strides,
]


def numbers(result: Any) -> Tensor:
    """All numbers of a result, in a row, with their graph."""
    if isinstance(result, Tensor):
        return result.flatten() if result.is_floating_point() else result.flatten().double()
    if isinstance(result, (tuple, list)):
        return torch.cat([numbers(part).double() for part in result] or [torch.zeros(0)])
    return torch.tensor([float(result)])


def value_and_gradient(row: Row, inputs: tuple[Tensor, ...], make: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The result, and the gradient of a weighted sum of it by each input of `row.gradient` (which may have none).

    Args:
        inputs: contiguous tensors.
        make: gives a tensor its layout.
    """
    given = [make(x.detach().clone()) for x in inputs]
    kept = [x.clone() for x in given]
    for place in row.gradient:
        given[place].requires_grad_()
    value = numbers(row.call(*given))
    assert all(torch.equal(a.detach(), b) for a, b in zip(given, kept, strict=True)), "an input was changed"
    if not row.gradient:
        return [value]
    weights = torch.rand(value.shape, generator=torch.Generator().manual_seed(0)).to(value)
    wanted = [given[place] for place in row.gradient]
    gradients = torch.autograd.grad((value * weights).sum(), wanted, allow_unused=True)
    assert all(g is None or g.shape == x.shape for g, x in zip(gradients, wanted, strict=True))
    return [value.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(gradients, wanted, strict=True))]
