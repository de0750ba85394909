"""A row of the table, and how its arguments are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Row:
    """A public callable with its arguments.

    Attributes:
        call: a function of tensors; it makes what it needs anew, so that calls do not depend on each other.
        inputs: the tensors for a batch of n.
        images: how many of them, from the first on, are images in [0, 1].
        gradient: the positions of those that get a gradient.
        batches: the sizes of batches to try.
        side: the images' height and width; the smallest that the callable takes is at most this.
        rtol: how far two layouts may differ, in parts of the largest number.
    """

    call: Callable[..., Any]
    inputs: Callable[[int], Inputs]
    images: int = 0
    gradient: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1, 3)
    rtol: float = 1e-4


def seeded(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(parts) % 2**31)


def pictures(count: int, images: int = 2, channels: int = 3, height: int = 24, width: int = 28) -> Inputs:
    """Several batches of random images; the second is near the first, so that it can stand for a reconstruction."""
    shape = (count, channels, height, width)
    first = torch.rand(shape, generator=seeded(count, height))
    near = [(first + 0.1 * torch.randn(shape, generator=seeded(k))).clamp(0, 1) for k in range(1, images)]
    return (first, *near)


def pair(**options: int) -> Callable[[int], Inputs]:
    return lambda n: pictures(n, 2, **options)


def single(**options: int) -> Callable[[int], Inputs]:
    return lambda n: pictures(n, 1, **options)


def rows(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[int], Inputs]:
    """Random features; the first axis of length 0 becomes the size of the batch."""

    def make(n: int) -> Inputs:
        sizes = [tuple(n if side == 0 else side for side in shape) for shape in shapes]
        return tuple(scale * torch.randn(size, generator=seeded(k, *size)) for k, size in enumerate(sizes))

    return make


def square(images: Inputs) -> Inputs:
    return tuple(image[..., :24, :24] for image in images)


def spread(dim: int, seed: int) -> Tensor:
    """A covariance."""
    factor = torch.randn(dim, 2 * dim, generator=seeded(seed, dim))
    return factor @ factor.T / (2 * dim)
