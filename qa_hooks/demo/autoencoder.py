"""A small AutoencoderKL and its training, and a measure of the tiles that decoders like to draw."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

PERIODS = (2, 4, 8)  # of the up-sampling in decoders


def small_vae() -> Any:
    """An AutoencoderKL of 0.7 million parameters: 96x96x3 -> 24x24x4 -> 96x96x3."""
    diffusers: Any = importlib.import_module("diffusers")
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
    )


def encode(vae: Any, images: Tensor) -> Tensor:
    """The means of the latents of images in [0, 1]."""
    with torch.no_grad():
        latents: Tensor = vae.encode(images * 2 - 1).latent_dist.mode()
    return latents


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Images of latents, in [0, 1] but for what the decoder draws beyond."""
    images: Tensor = vae.decode(latents).sample
    return images / 2 + 0.5


def train_vae(vae: Any, batches: Iterable[Tensor], *, steps: int, progress: Any = None) -> None:
    """Adam on the mean absolute error and a little of the KL divergence.

    Args:
        batches: `(N, 3, H, W)` in [0, 1], at least `steps` of them.
        progress: its `put(n)` is told of n further steps, as `side_by_side` wants it.
    """
    optimizer = torch.optim.Adam(vae.parameters(), 1e-3)
    for _, images in zip(range(steps), batches, strict=False):
        posterior = vae.encode(images * 2 - 1).latent_dist
        loss = F.l1_loss(decode(vae, posterior.sample()), images) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress.put(1)


def tile_ratio(images: Tensor) -> float:
    """How much stronger the strongest phase of a period is than the mean of its phases: 1 without any tiles.

    For each period, rows and columns: the mean difference of neighbours, by where in the period they stand.
    """
    ratios = []
    for turned in (images, images.transpose(2, 3)):
        steps = turned.diff(dim=3).abs().mean((0, 1, 2))
        for period in PERIODS:
            whole = steps[: len(steps) // period * period].view(-1, period).mean(0)
            ratios.append(float(whole.max() / whole.mean().clamp_min(1e-8)))
    return max(ratios)
