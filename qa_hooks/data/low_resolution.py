"""Low-resolution images made from originals: any callable `(image, scale, generator) -> low-resolution image`.

The image is `(C, H, W)` float32 in [0, 1] with sides that `scale` divides, the answer `(C, H / scale, W / scale)`; all
randomness comes from the generator, so that a sample can be made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks.functional.degradations import jpeg
from qa_hooks.images import Range

Degradation = Callable[[Tensor, int, torch.Generator], Tensor]
MODES = ("area", "bilinear", "bicubic")
KERNEL_SIDES = (3, 5, 7, 9)


def bicubic_degradation(image: Tensor, scale: int, generator: torch.Generator | None = None) -> Tensor:
    """Antialiased bicubic down-sampling (MATLAB's imresize up to its edges), rounded to 8 bits as a file would be.

    Example:
        >>> bicubic_degradation(torch.rand(3, 32, 48), 4).shape
        torch.Size([3, 8, 12])
    """
    size = [side // scale for side in image.shape[-2:]]
    return round_to_bytes(F.interpolate(image[None], size, mode="bicubic", antialias=True)[0])


@dataclass(frozen=True)
class HGGTDegradation:
    """The one-stage degradation of HGGT (Chen et al., CVPR 2023): blur, resize, noise, JPEG, down-sampling.

    Each sample has its own, where the published code has one for a whole batch and mixes batches by a pool of pairs.
    JPEG qualities are whole numbers; resizing is antialiased only as far as "area" is, as published.

    Attributes:
        sigma: deviation of the Gaussian blur along each axis; the kernel has 3 to 9 pixels a side.
        isotropic: share of the kernels with one deviation for both axes; the others are turned at random.
        sinc: share of the kernels that are circular low-pass filters instead, which ring.
        resize: range of the factor before the noise; up with `up`, down with `down`, else unchanged.
        gaussian: share of Gaussian noise, of a deviation in `noise` / 255; otherwise Poisson noise times `poisson`.
        grey: share of the noise that is the same in all channels.
        quality: of the JPEG, range.

    Example:
        >>> degrade, generator = HGGTDegradation(), torch.Generator().manual_seed(0)
        >>> degrade(torch.rand(3, 64, 64, generator=generator), 4, generator).shape
        torch.Size([3, 16, 16])
    """

    sigma: Range = (0.1, 1.0)
    isotropic: float = 0.7
    sinc: float = 0.01
    resize: Range = (0.8, 1.2)
    up: float = 0.1
    down: float = 0.85
    gaussian: float = 0.5
    noise: Range = (1.0, 12.0)
    poisson: Range = (0.05, 0.8)
    grey: float = 0.2
    quality: tuple[int, int] = (75, 95)

    def __call__(self, image: Tensor, scale: int, generator: torch.Generator) -> Tensor:
        height, width = image.shape[-2:]
        mode = MODES[_whole(generator, 0, len(MODES) - 1)]
        image = filter_image(image, self._kernel(generator))
        kind = _between(generator, 0, 1)
        low, high = (1.0, self.resize[1]) if kind < self.up else (self.resize[0], 1.0)
        factor = _between(generator, low, high) if kind < self.up + self.down else 1.0
        image = _resized(image, [max(1, round(height * factor)), max(1, round(width * factor))], mode)
        image = self._noisy(image, generator).clamp(0, 1)
        image = compress(image, _whole(generator, *self.quality))
        return round_to_bytes(_resized(image, [height // scale, width // scale], mode))

    def _kernel(self, generator: torch.Generator) -> Tensor:
        side = KERNEL_SIDES[_whole(generator, 0, len(KERNEL_SIDES) - 1)]
        if _between(generator, 0, 1) < self.sinc:
            return sinc_kernel(side, _between(generator, math.pi / 3, math.pi))
        first = second = _between(generator, *self.sigma)
        angle = 0.0
        if _between(generator, 0, 1) >= self.isotropic:
            second, angle = _between(generator, *self.sigma), _between(generator, -math.pi, math.pi)
        return gaussian_kernel(side, first, second, angle)

    def _noisy(self, image: Tensor, generator: torch.Generator) -> Tensor:
        gaussian = _between(generator, 0, 1) < self.gaussian
        grey = _between(generator, 0, 1) < self.grey
        if gaussian:
            shape = (1 if grey else image.shape[0], *image.shape[1:])
            noise = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)
            return image + noise * _between(generator, *self.noise) / 255
        photons = round_to_bytes(image.mean(0, keepdim=True) if grey else image)
        levels = 2 ** math.ceil(math.log2(max(2, len(photons.unique()))))  # as published: the light follows the image
        shot: Tensor = torch.poisson(photons * levels, generator=generator) / levels - photons
        return image + shot * _between(generator, *self.poisson)


def gaussian_kernel(side: int, first: float, second: float, angle: float) -> Tensor:
    """`(side, side)` Gaussian of sum 1, with deviations `first` and `second` along axes turned by `angle`."""
    offsets = torch.arange(side, dtype=torch.float64, device="cpu") - side // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = (-0.5 * ((along / first) ** 2 + (across / second) ** 2)).exp()
    return (kernel / kernel.sum()).float()


def sinc_kernel(side: int, cutoff: float) -> Tensor:
    """`(side, side)` circular low-pass filter w J1(w r) / (2 pi r) of sum 1; `cutoff` w in radians per pixel."""
    offsets = torch.arange(side, dtype=torch.float64, device="cpu") - side // 2
    radius = (offsets[:, None] ** 2 + offsets**2).sqrt().clamp_min(1e-6)
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel = kernel / kernel.sum()
    return kernel.float()


def filter_image(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate each channel of `(C, H, W)` with an odd `(k, k)` kernel; edge pixels are repeated outside."""
    reach = len(kernel) // 2
    padded = F.pad(image[None], (reach,) * 4, mode="replicate")[0]
    filtered: Tensor = F.conv2d(padded[:, None], kernel[None, None])[:, 0]
    return filtered


def compress(image: Tensor, quality: int) -> Tensor:
    """A JPEG of `(1 or 3, H, W)` in [0, 1], decoded again."""
    return jpeg(image[None], quality)[0]


def round_to_bytes(image: Tensor) -> Tensor:
    """Clamped to [0, 1] and rounded to 256 levels."""
    return (image.clamp(0, 1) * 255).round() / 255


def _resized(image: Tensor, size: list[int], mode: str) -> Tensor:
    return F.interpolate(image[None], size, mode=mode)[0]


def _between(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64, device="cpu"))


def _whole(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator, device="cpu"))
