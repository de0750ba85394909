"""Signs of an over-optimised image in its spectrum and its tones, measured without a reference or a network.

    power       P(f): Hann-windowed tiles that overlap by half, each without its mean, averaged (Welch 1967)
    high share  sum_{|f| >= c} P(f) / sum_{f != 0} P(f), c = 1/4 cycle per pixel, half of what a grid of pixels holds
    peak        max_f |F(f)| / median of |F| at the frequencies of the same length as f
    dark share  of the pixels whose brightest channel is (nearly) 0; saturated share: of the values that are (nearly) 1

A generator that is pushed along a reward's gradient draws regular patterns: its layers' strides and kernels repeat
(Odena et al. 2016, "Deconvolution and Checkerboard Artifacts"), which stands out as single frequencies above their
ring, and mostly at fractions of the sampling rate such as 1/2, 1/3, 1/4. Natural spectra fall with |f| (Field 1987), so
a peak is compared with its own ring and not with the median of all. Tiles make images of different sizes comparable.

Source: Welch, "The use of fast Fourier transform for the estimation of power spectra", 1967.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.images import check_images

HIGH = 0.25  # cycles per pixel
NEARLY = 4 / 255  # of the range: what no eye tells from black or white
INVISIBLE = (1 / 255) ** 2  # variance of a pattern that 8 bits just hold
_CHUNK = 1 << 22  # numbers transformed at a time
_FIRST_RING = 4  # below it a ring has too few frequencies for a median, and the window smears them


class SpectralPeak(NamedTuple):
    """The strongest single frequency of each image: `ratio` `(N,)`, and its frequency in cycles per pixel `(N,)`."""

    ratio: Tensor
    vertical: Tensor
    horizontal: Tensor


def power_spectrum(images: Tensor, *, tile: int = 64) -> Tensor:
    """Welch's estimate of the power spectrum, the mean over channels and tiles.

    Args:
        images: `(N, C, H, W)` floating, in [0, 1].
        tile: side of the tiles; smaller images are one tile of their smaller side.

    Returns:
        `(N, t, t // 2 + 1)` float32: vertical frequencies in FFT order, horizontal ones from 0. Scaled so that the sum
        over both halves of the spectrum is the variance inside a tile.

    Raises:
        TypeError, ValueError: no such images.

    Example:
        >>> power_spectrum(torch.rand(2, 3, 100, 80)).shape
        torch.Size([2, 64, 33])
    """
    check_images("images", images)
    side = min(check_count("tile", tile, least=8), *images.shape[-2:])
    ramp = torch.hann_window(side, device=images.device, dtype=torch.float32)
    window = ramp[:, None] * ramp[None]
    window = window / window.square().mean().sqrt() if side > 2 else torch.ones_like(window)
    stride = max(1, side // 2)
    rows = []
    channels, height, width = images.shape[1:]
    for part in images.float().split(max(1, _CHUNK // (4 * channels * height * width))):
        tiles = part.unfold(2, side, stride).unfold(3, side, stride)
        tiles = tiles - tiles.mean((-2, -1), keepdim=True)
        rows.append(torch.fft.rfft2(tiles * window).abs().square().mean((1, 2, 3)) / side**4)
    return torch.cat(rows)


def high_frequency_share(power: Tensor) -> Tensor:
    """The share of the power at frequencies of at least a quarter of a cycle per pixel.

    Args:
        power: `(..., t, t // 2 + 1)`, from `power_spectrum`.

    Returns:
        `(...)`, in [0, 1]; 0 where nothing varies.

    Example:
        >>> noise = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> round(float(high_frequency_share(power_spectrum(noise))), 1)  # 1 - pi / 4^2 * 4 of the plane
        0.8
    """
    length, count = _lengths(power)
    total = (power * count).sum((-2, -1))
    return (power * count * (length >= HIGH)).sum((-2, -1)) / total.clamp(min=1e-3 * INVISIBLE)


def spectral_peak(power: Tensor) -> SpectralPeak:
    """How far the strongest single frequency stands out of the other frequencies of the same length.

    A pattern that is too faint to be held by 8 bits does not count.

    Args:
        power: `(N, t, t // 2 + 1)`, from `power_spectrum`.

    Example:
        >>> x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> x[..., ::2, :] += 0.5
        >>> peak = spectral_peak(power_spectrum(x))
        >>> bool(peak.ratio > 10), abs(float(peak.vertical))
        (True, 0.5)
    """
    length, _ = _lengths(power)
    side = power.shape[-2]
    ring = (length * side).round().long().flatten()
    amplitude = (power.flatten(1) + INVISIBLE / side**2).sqrt()
    floor = torch.full_like(amplitude, math.inf)
    for radius in range(_FIRST_RING, int(ring.max()) + 1):
        members = (ring == radius).nonzero().flatten()
        if len(members) >= _FIRST_RING:
            floor[:, members] = amplitude[:, members].median(1, keepdim=True).values
        elif len(members):  # the corner of the square: with the ring inside it
            floor[:, members] = floor[:, ring == radius - 1][:, :1]
    ratio, where = (amplitude / floor).max(1)
    vertical = torch.fft.fftfreq(side, device=power.device, dtype=torch.float32)[where // power.shape[-1]]
    horizontal = torch.fft.rfftfreq(side, device=power.device, dtype=torch.float32)[where % power.shape[-1]]
    return SpectralPeak(ratio, vertical, horizontal)


def dark_share(images: Tensor) -> Tensor:
    """`(N,)`: the share of the pixels of `(N, C, H, W)` in [0, 1] whose brightest channel is at most `NEARLY`.

    Example:
        >>> dark_share(torch.tensor([0.0, 0.5]).view(1, 1, 1, 2))
        tensor([0.5000])
    """
    return (images.amax(1) <= NEARLY).float().mean((1, 2))


def saturated_share(images: Tensor) -> Tensor:
    """`(N,)`: the share of the values of `(N, C, H, W)` in [0, 1] that are at least `1 - NEARLY`.

    Example:
        >>> saturated_share(torch.tensor([1.0, 0.5]).view(1, 1, 1, 2))
        tensor([0.5000])
    """
    return (images >= 1 - NEARLY).float().mean((1, 2, 3))


def _lengths(power: Tensor) -> tuple[Tensor, Tensor]:
    """The length of each frequency in cycles per pixel, and how many frequencies of the whole spectrum it stands for.

    The zero frequency stands for none: tiles have no mean.
    """
    side = power.shape[-2]
    if power.ndim < 2 or power.shape[-1] != side // 2 + 1:
        raise ValueError(f"power must be (..., t, t // 2 + 1) from power_spectrum, got {tuple(power.shape)}")
    vertical = torch.fft.fftfreq(side, device=power.device, dtype=torch.float32)[:, None]
    horizontal = torch.fft.rfftfreq(side, device=power.device, dtype=torch.float32)[None]
    count = torch.full_like(horizontal, 2.0)
    count[:, 0] = 1.0
    if side % 2 == 0:
        count[:, -1] = 1.0
    count = count.repeat(side, 1)
    count[0, 0] = 0.0
    return (vertical.square() + horizontal.square()).sqrt(), count
