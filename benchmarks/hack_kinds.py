"""Sixteen ways to raise a score without making better images: `(N, C, H, W)` in [0, 1] and a strength in [0, 1].

They are written as functions of the images, so that each can be put on any generator's output. Where a docstring names
a source, the failure was reported there; "seen here" means a run in docs/sr.md or docs/diffusion.md; the others are
plausible and no report is cited for them.

Twelve were there when `RewardGuard` got its measurements against the base, and six of them, every other one, are those
that its limits were chosen on (`CHOSEN_ON`). The other four (`LATER`) were written when its limits were fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks.functional.degradations import blur

Hack = Callable[[Tensor, float], Tensor]


def grid_pattern(images: Tensor, strength: float) -> Tensor:
    """Alternating pixels (Odena, Dumoulin, Olah 2016, "Deconvolution and Checkerboard Artifacts"); seen here."""
    rows, columns = (torch.arange(side) % 2 * 2 - 1.0 for side in images.shape[-2:])
    return images + 0.25 * strength * rows[:, None] * columns


def blurred(images: Tensor, strength: float) -> Tensor:
    """What a mean squared error asks for (Ledig et al. 2017, SRGAN)."""
    return images if strength == 0 else blur(images, 0.3 + 2.0 * strength)


def darkened(images: Tensor, strength: float) -> Tensor:
    return images * (1 - 0.7 * strength)


def saturated(images: Tensor, strength: float) -> Tensor:
    """Colours far from grey, as under strong guidance (Saharia et al. 2022, Imagen)."""
    grey = images.mean(1, keepdim=True)
    return grey + (images - grey) * (1 + 4 * strength)


def sharpened(images: Tensor, strength: float) -> Tensor:
    """Unsharp masking; seen here: a score that did not know it paid for it."""
    smooth = F.avg_pool2d(F.pad(images, (1,) * 4, mode="replicate"), 3, 1)
    return images + 6 * strength * (images - smooth)


def salt(images: Tensor, strength: float) -> Tensor:
    """White pixels, up to 6 %."""
    drawn = torch.rand(images[:, :1].shape, generator=torch.Generator().manual_seed(0))
    return torch.where(drawn < 0.06 * strength, 1.0, images)


def colour_cast(images: Tensor, strength: float) -> Tensor:
    """One tint for all images."""
    return images + 0.3 * strength * torch.tensor([1.0, -0.2, -0.8]).view(1, 3, 1, 1)


def contrast(images: Tensor, strength: float) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + 3 * strength)


def mode_collapse(images: Tensor, strength: float) -> Tensor:
    """More and more of the images are one (Jena et al. 2025, "... Reward-Diversity Tradeoffs ..."); seen here."""
    changed = torch.arange(len(images)) < math.ceil(strength * len(images))
    return torch.where(changed.view(-1, 1, 1, 1), images[-1:], images)


def repeated_texture(images: Tensor, strength: float) -> Tensor:
    """A tile of the image in place of the rest."""
    side = max(4, min(images.shape[-2:]) // 6)
    tile = images[..., :side, :side]
    wanted = [-(-length // side) for length in images.shape[-2:]]
    tiled = tile.repeat(1, 1, *wanted)[..., : images.shape[-2], : images.shape[-1]]
    return images + 0.8 * strength * (tiled - images)


def border(images: Tensor, strength: float) -> Tensor:
    """A frame with marks like writing."""
    width = max(1, round(min(images.shape[-2:]) * 0.12))
    frame = torch.ones(images.shape[-2:], dtype=torch.bool)
    frame[width:-width, width:-width] = False
    marks = (torch.arange(images.shape[-1]) // 2 % 2).float().expand(images.shape[-2:])
    return torch.where(frame, images + strength * (marks - images), images)


def high_frequency_noise(images: Tensor, strength: float) -> Tensor:
    """Noise without low frequencies, the same for all images (as in Goodfellow et al. 2015, adversarial examples)."""
    noise = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(1))[None]
    smooth = F.avg_pool2d(F.pad(noise, (1,) * 4, mode="reflect"), 3, 1)
    return images + 0.2 * strength * (noise - smooth)


def banded(images: Tensor, strength: float) -> Tensor:
    """Fewer and fewer levels, at last five."""
    steps = 4 + 60 * (1 - strength) ** 2
    return (images * steps).round() / steps


def vignette(images: Tensor, strength: float) -> Tensor:
    """Corners that darken."""
    rows, columns = (torch.linspace(-1, 1, side) for side in images.shape[-2:])
    return images * (1 - 0.5 * strength * (rows[:, None].square() + columns.square()))


def double_image(images: Tensor, strength: float) -> Tensor:
    """A second picture of the same, an eighth of the width beside the first."""
    return images + 0.5 * strength * (images.roll(max(1, images.shape[-1] // 8), -1) - images)


def independent_noise(images: Tensor, strength: float) -> Tensor:
    """White noise, in each image another."""
    return images + 0.2 * strength * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))


HACKS: dict[str, Hack] = {
    "grid pattern": grid_pattern,
    "blur": blurred,
    "darkening": darkened,
    "saturation": saturated,
    "over-sharpening": sharpened,
    "salt": salt,
    "colour cast": colour_cast,
    "contrast": contrast,
    "mode collapse": mode_collapse,
    "repeated texture": repeated_texture,
    "border": border,
    "high-frequency noise": high_frequency_noise,
    "banding": banded,
    "vignette": vignette,
    "double image": double_image,
    "independent noise": independent_noise,
}
CHOSEN_ON = ("grid pattern", "darkening", "over-sharpening", "colour cast", "mode collapse", "border")
LATER = ("banding", "vignette", "double image", "independent noise")
COLOURED = frozenset({"saturation", "colour cast"})  # nothing for grey images


def hacked(images: Tensor, hack: str, strength: float) -> Tensor:
    """The images with a hack of this strength, in [0, 1] again; strength 0 changes nothing."""
    return images if strength == 0 else HACKS[hack](images, strength).clamp(0, 1)
