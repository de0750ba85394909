"""A generator and a critic small enough to train in a minute on one core, and the average of the generator."""

from __future__ import annotations

import math

import torch
from torch import nn

LATENT = 32


def make_generator(size: int, channels: int) -> nn.Sequential:
    """`(N, 32)` noise -> `(N, C, S, S)` in (-1, 1); S is 16, 32, 48 or 64."""
    least, stages = _smallest(size)
    widths = [32 * 2**i for i in reversed(range(stages))]
    layers: list[nn.Module] = [nn.Linear(LATENT, widths[0] * least**2), nn.Unflatten(1, (widths[0], least, least))]
    for width, out in zip(widths, [*widths[1:], channels], strict=True):
        layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.ConvTranspose2d(width, out, 4, 2, 1)]
    return nn.Sequential(*layers, nn.Tanh())


def make_critic(size: int, channels: int) -> nn.Sequential:
    """`(N, C, S, S)` -> `(N, 1)`; no normalisation, so that a gradient belongs to one image."""
    least, stages = _smallest(size)
    layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels, 32, 3, padding=1), nn.LeakyReLU(0.2)]
    width = 32
    for _ in range(stages - 1):
        layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width *= 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * least**2, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the average's parameters towards the model's, and take over its buffers."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)
    for own, new in zip(ema.buffers(), model.buffers(), strict=True):
        own.copy_(new)


def _smallest(size: int) -> tuple[int, int]:
    """The side of the smallest maps, 4 or 6, and how often it is doubled."""
    if size not in (16, 32, 48, 64):
        raise ValueError(f"size must be 16, 32, 48 or 64, got {size}")
    least = 6 if size == 48 else 4
    return least, int(math.log2(size // least))
