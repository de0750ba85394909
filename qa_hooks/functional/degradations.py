"""Synthetic degradations in ladders: the same image at five levels, each worse than the one before.

So the order of quality is known without asking anybody. Level 0 is the image itself. The parameters of the levels 1 to
4 are in `LADDERS`, in pixels and in units of [0, 1].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks.images import check_images, to_uint8

LADDERS = {
    "blur": (0.5, 0.9, 1.5, 2.5),  # deviation of the Gaussian, pixels
    "noise": (0.02, 0.05, 0.1, 0.2),  # deviation of Gaussian noise
    "jpeg": (60, 30, 15, 7),  # quality
    "downsample": (1.5, 2, 3, 4),  # factor, and up again by bicubic interpolation
    "sharpen": (1, 2, 4, 8),  # amount of an unsharp mask, whose Gaussian has a deviation of one pixel
    "salt_pepper": (0.005, 0.02, 0.06, 0.15),  # share of the pixels that turn black or white
}
LEVELS = 5
RANDOM = frozenset({"noise", "salt_pepper"})


def degrade(images: Tensor, kind: str, level: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Images that are blurred, noisy, compressed or otherwise degraded to a known level.

    Args:
        images: `(N, 1 or 3, H, W)` floating, in [0, 1].
        kind: "blur", "noise", "jpeg", "downsample", "sharpen" or "salt_pepper".
        level: 0 (unchanged) to 4 (worst).
        generator: where the kinds in `RANDOM` draw from, which need it; the draw is made on its device.

    Returns:
        Like `images`, in [0, 1], without gradient.

    Raises:
        ValueError: an unknown kind or level, a random kind without a generator.

    Example:
        >>> image = torch.rand(1, 3, 32, 32)
        >>> errors = [float((degrade(image, "jpeg", level) - image).square().mean()) for level in range(5)]
        >>> errors == sorted(errors)
        True
    """
    check_images("images", images)
    if kind not in LADDERS or level not in range(LEVELS):
        raise ValueError(
            f"kind must be one of {tuple(LADDERS)} and level 0 to {LEVELS - 1}, got {kind!r} and {level!r}"
        )
    images = images.detach()
    if level == 0:
        return images
    strength = LADDERS[kind][level - 1]
    if kind in RANDOM:
        return _at_random(images, kind, strength, generator)
    if kind == "sharpen":
        return (images + strength * (images - blur(images, 1.0))).clamp(0, 1)
    if kind == "blur":
        return blur(images, strength)
    if kind == "jpeg":
        return jpeg(images, int(strength))
    size = [max(1, round(side / strength)) for side in images.shape[-2:]]
    small = F.interpolate(images, size, mode="bicubic", antialias=True)
    return F.interpolate(small, images.shape[-2:], mode="bicubic").clamp(0, 1)


def chain(images: Tensor, kind: str, *, generator: torch.Generator | None = None) -> Tensor:
    """Images at every level of a ladder: `(LEVELS, N, C, H, W)`, the best first; arguments as in `degrade`.

    Example:
        >>> chain(torch.rand(2, 3, 32, 32), "blur").shape
        torch.Size([5, 2, 3, 32, 32])
    """
    return torch.stack([degrade(images, kind, level, generator=generator) for level in range(LEVELS)])


def _at_random(images: Tensor, kind: str, strength: float, generator: torch.Generator | None) -> Tensor:
    if generator is None:
        raise ValueError(f"{kind} needs generator=, so that the images can be made again")
    own: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if kind == "noise":
        return (images + strength * torch.randn(images.shape, **own).to(images)).clamp(0, 1)
    drawn = torch.rand(len(images), 1, *images.shape[2:], **own).to(images.device)
    return images.masked_fill(drawn < strength, 1.0).masked_fill(drawn < strength / 2, 0.0)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Images `(N, C, H, W)` or one image `(C, H, W)`, filtered by a Gaussian of deviation `sigma` pixels."""
    from torchvision.transforms.functional import gaussian_blur

    reach = min(2 * int(3 * sigma + 0.5), *(2 * (side - 1) for side in images.shape[-2:])) + 1
    blurred: Tensor = gaussian_blur(images, [reach, reach], [sigma, sigma])
    return blurred


def jpeg(images: Tensor, quality: int) -> Tensor:
    """Images `(N, 1 or 3, H, W)` in [0, 1], written as JPEG of this quality and read again."""
    from torchvision.io import decode_jpeg, encode_jpeg

    decoded = [decode_jpeg(encode_jpeg(image, quality)) for image in to_uint8(images).cpu()]
    return torch.stack(decoded).to(images) / 255


def dead_leaves(count: int, size: int, *, generator: torch.Generator, channels: int = 3, leaves: int = 400) -> Tensor:
    """Draw pictures of occluding discs.

    Args:
        count, size, channels: of the pictures `(count, channels, size, size)`.
        generator: a CPU generator, so that they can be drawn again.
        leaves: how many discs each has.

    Returns:
        `(count, channels, size, size)` float32 in [0, 1].

    Example:
        >>> dead_leaves(2, 32, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 32, 32])
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float32, device="cpu")

    grid = torch.arange(size, dtype=torch.float32, device="cpu")
    smallest, largest = 1.0 / max(2.0, 0.02 * size) ** 2, 1.0 / (0.3 * size) ** 2
    radii = (
        smallest + draw(count, leaves) * (largest - smallest)
    ).rsqrt()  # the inverse of the r^-3 density's integral
    centres = draw(count, leaves, 2) * size
    shades, slopes = draw(count, leaves, channels), (draw(count, leaves, 2) - 0.5) * 0.6 / size
    pictures = draw(count, channels, 1, 1).expand(count, channels, size, size).clone()
    for picture in range(count):
        for leaf in range(leaves):
            row, column = (grid - centres[picture, leaf, i] for i in (0, 1))
            inside = row[:, None].square() + column.square() < radii[picture, leaf].square()
            slope = slopes[picture, leaf, 0] * row[:, None] + slopes[picture, leaf, 1] * column
            pictures[picture, :, inside] = (shades[picture, leaf, :, None, None] + slope)[:, inside]
    grain = 0.01 * torch.randn(pictures.shape, generator=generator, dtype=torch.float32, device="cpu")
    return (0.1 + 0.8 * pictures + grain).clamp(0, 1)
