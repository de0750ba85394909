"""Spectral and tonal measurements against numpy loops, closed forms and planted patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks.functional.degradations import degrade
from qa_hooks.functional.spectrum import (
    dark_share,
    high_frequency_share,
    power_spectrum,
    saturated_share,
    spectral_peak,
)


def by_hand(image: np.ndarray, side: int) -> np.ndarray:
    """Welch's estimate, tile by tile with numpy's full FFT."""
    window = np.hanning(side + 1)[:-1]
    window = np.outer(window, window)
    window /= np.sqrt((window**2).mean())
    found = []
    for channel in image:
        for top in range(0, channel.shape[0] - side + 1, side // 2):
            for left in range(0, channel.shape[1] - side + 1, side // 2):
                tile = channel[top : top + side, left : left + side]
                found.append(np.abs(np.fft.fft2((tile - tile.mean()) * window)) ** 2 / side**4)
    return np.mean(found, axis=0)


@pytest.mark.parametrize(("size", "tile"), [((48, 64), 32), ((33, 50), 33), ((20, 20), 64)])
def test_power_and_share_equal_a_numpy_loop(photographs, size, tile):
    images = photographs[:2, :, : size[0], : size[1]]
    side = min(tile, *size)
    power = power_spectrum(images, tile=tile)
    assert power.shape == (2, side, side // 2 + 1)
    frequency = np.fft.fftfreq(side)
    length = np.hypot(frequency[:, None], frequency[None])
    for image, own, share in zip(images.double().numpy(), power, high_frequency_share(power), strict=True):
        full = by_hand(image, side)
        np.testing.assert_allclose(own.numpy(), full[:, : side // 2 + 1], rtol=1e-4, atol=1e-10)
        full[0, 0] = 0
        assert float(share) == pytest.approx(full[length >= 0.25].sum() / full.sum(), rel=1e-4)


def test_the_power_of_noise_sums_to_its_variance_and_is_flat():
    noise = 0.1 * torch.randn(8, 3, 128, 128)
    power = power_spectrum(noise)
    both_halves = power.sum() + power[..., 1:-1].sum()
    assert float(both_halves / 8) == pytest.approx(0.01, rel=0.05)
    outside = 1 - np.pi * 0.25**2  # of the square of all frequencies, area 1
    assert high_frequency_share(power).mean().item() == pytest.approx(outside, abs=0.01)


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("size", [72, 192])
def test_a_faint_lattice_stands_out_at_its_frequency(photographs, period, size):
    images = degrade(photographs[..., :size, :size], "blur", 2)
    before = spectral_peak(power_spectrum(images)).ratio
    wave = torch.cos(2 * torch.pi * torch.arange(size) / period)
    found = spectral_peak(power_spectrum(images + 0.02 * wave))  # a column's neighbours differ by at most 4 %
    assert (found.ratio > 3 * before).all()
    assert torch.allclose(found.horizontal, torch.full((4,), 1 / period), atol=1 / 64)
    assert (found.vertical == 0).all()


def test_photographs_have_no_peak_and_noise_neither(photographs):
    assert (spectral_peak(power_spectrum(photographs)).ratio < 15).all()  # the rocket on its stand, all vertical: 11
    assert (spectral_peak(power_spectrum(torch.rand(4, 3, 128, 128))).ratio < 3).all()
    assert (spectral_peak(power_spectrum(photographs * 0 + 0.5)).ratio == 1).all()


def test_what_eight_bits_cannot_hold_is_no_peak(photographs):
    flat = torch.full((1, 3, 64, 64), 0.5)
    wave = torch.cos(torch.pi * torch.arange(64))
    assert float(spectral_peak(power_spectrum(flat + 1e-5 * wave)).ratio) < 2
    assert float(spectral_peak(power_spectrum(flat + 0.02 * wave)).ratio) > 50


def test_the_share_orders_blur_and_noise(photographs):
    ladder = [degrade(photographs, "blur", level) for level in (3, 2, 1, 0)]
    ladder.append(degrade(photographs, "noise", 3, generator=torch.Generator().manual_seed(0)))
    shares = torch.stack([high_frequency_share(power_spectrum(images)) for images in ladder])
    assert (shares.diff(dim=0) > 0).all()
    assert float(high_frequency_share(power_spectrum(torch.zeros(1, 1, 16, 16)))) == 0


def test_tones_equal_a_loop(photographs):
    images = (photographs - 0.3).clamp(0, 1) * 1.6
    images = images.clamp(0, 1)
    array = images.numpy()
    for image, dark, saturated in zip(array, dark_share(images), saturated_share(images), strict=True):
        pixels = image.reshape(3, -1).T
        assert float(dark) == pytest.approx(np.mean([max(pixel) <= 4 / 255 for pixel in pixels]), abs=1e-6)
        assert float(saturated) == pytest.approx(np.mean(image >= np.float32(1 - 4 / 255)), abs=1e-6)
    assert dark_share(images).min() > 0
    assert saturated_share(images).max() > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: power_spectrum(torch.zeros(3, 8, 8)), ValueError, r"\(N, C, H, W\)"),
        (lambda: power_spectrum(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)), TypeError, "floating"),
        (lambda: power_spectrum(torch.zeros(1, 3, 8, 8), tile=4), ValueError, "tile"),
        (lambda: high_frequency_share(torch.zeros(1, 8, 8)), ValueError, "power_spectrum"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
