"""What the guard measures of images: against loops and SciPy, and that each measurement answers to its own fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage, stats

from qa_hooks.functional.degradations import blur
from qa_hooks.rewards.measures import (
    ROUNDING,
    differences,
    mean_distance,
    measure_images,
    measure_tones,
    nearest_distance,
)

TONES = {"brightness", "contrast", "detail", "detail_kurtosis", "red_green", "yellow_blue", "colourfulness"}


def pictures(count=4, channels=3, side=24) -> torch.Tensor:
    coarse = torch.rand(count, channels, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(1))
    return (smooth + 0.03 * noise).clamp(0, 1)


def test_tones_against_numpy_and_scipy():
    images = pictures()
    found = measure_tones(images)
    assert set(found) == TONES
    for index, image in enumerate(images.double().numpy()):
        luma = image.mean(0)
        details = luma - ndimage.uniform_filter(luma, 3, mode="nearest")
        noise = np.random.default_rng(0).normal(0, ROUNDING**0.5, (4000, *details.shape))
        second, fourth = ((details + noise) ** 2).mean(), ((details + noise) ** 4).mean()
        red, green, blue = image
        rg, yb = red - green, (red + green) / 2 - blue
        wanted = {
            "brightness": image.mean(),
            "contrast": luma.std(),
            "detail": np.log(second),
            "detail_kurtosis": np.log(fourth / second**2),
            "red_green": rg.mean(),
            "yellow_blue": yb.mean(),
            "colourfulness": np.sqrt(rg.var() + yb.var()) + 0.3 * np.hypot(rg.mean(), yb.mean()),
        }
        for key, value in wanted.items():
            assert float(found[key][index]) == pytest.approx(value, rel=2e-3, abs=1e-6), key


def test_the_kurtosis_of_noise_is_the_normal_one():
    noise = 0.5 + 0.05 * torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0))
    kurtosis = float(measure_tones(noise)["detail_kurtosis"].exp())
    details = noise[0, 0].numpy() - ndimage.uniform_filter(noise[0, 0].numpy(), 3, mode="nearest")
    assert kurtosis == pytest.approx(stats.kurtosis(details, axis=None, fisher=False), rel=1e-2)
    assert kurtosis == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_that_are_not_rgb_have_no_colours(channels):
    assert set(measure_tones(pictures(channels=channels))) == TONES - {"red_green", "yellow_blue", "colourfulness"}


FAULTS = {
    "brightness": (lambda x: 0.7 * x, -1),
    "contrast": (lambda x: 0.5 + 0.5 * (x - 0.5), -1),
    "detail": (lambda x: blur(x, 1.0), -1),
    "red_green": (lambda x: x + torch.tensor([0.1, -0.1, 0.0]).view(1, 3, 1, 1), 1),
    "yellow_blue": (lambda x: x + torch.tensor([0.1, 0.1, -0.1]).view(1, 3, 1, 1), 1),
    "colourfulness": (lambda x: x.mean(1, keepdim=True) + 2 * (x - x.mean(1, keepdim=True)), 1),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_measurement_answers_to_its_own_fault(kind, photographs):
    images = photographs[:, :, :64, :64]
    spoil, sign = FAULTS[kind]
    change = measure_tones(spoil(images).clamp(0, 1))[kind] - measure_tones(images)[kind]
    assert (sign * change > 0).float().mean() > 0.9


def test_noise_and_grids_lower_the_kurtosis_of_a_photograph_and_single_pixels_raise_it(photographs):
    images = photographs[:, :, :64, :64]
    drawn = torch.Generator().manual_seed(0)
    before = measure_tones(images)["detail_kurtosis"].mean()
    grid = 0.1 * (torch.arange(64) % 2 * 2 - 1.0)
    salt = torch.where(torch.rand(64, 64, generator=drawn) < 0.003, 1.0, images)
    noisy = images + 0.1 * torch.randn(images.shape, generator=drawn)
    kurtosis = [float(measure_tones(x)["detail_kurtosis"].mean() - before) for x in (noisy, images + grid, salt)]
    assert kurtosis[0] < -0.3
    assert kurtosis[1] < -0.3
    assert kurtosis[2] > 0.3


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 8, 8), torch.ones(2, 1, 8, 8), torch.rand(1, 3, 1, 1)])
def test_images_of_nothing_have_finite_measurements(images):
    assert all(bool(row.isfinite().all()) for row in measure_tones(images).values())


def test_rows_of_broken_images_are_finite(photographs):
    images = photographs[:2, :, :32, :32].clone()
    images[0, 0, 0, 0] = float("nan")
    rows = measure_images(images, lambda x: x.flatten(1)[:, :4])
    assert all(bool(row.isfinite().all()) for row in rows.values())
    assert rows["nonfinite"].tolist() == [1, 0]


def test_nearest_against_a_loop():
    rows = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    wanted = np.mean([min(float((a - b).norm()) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)])
    assert nearest_distance(rows) == pytest.approx(wanted, rel=1e-6)
    assert nearest_distance(rows) < mean_distance(rows)
    assert nearest_distance(rows[:1].repeat(5, 1)) == 0
    with pytest.raises(ValueError, match="at least 2"):
        nearest_distance(rows[:1])


def test_differences_are_of_what_both_have_for_each_image():
    now = {"a": torch.tensor([3.0, 5.0]), "b": torch.ones(2), "features": torch.ones(2, 3)}
    found = differences(now, {"a": torch.tensor([1.0, 1.0]), "features": torch.zeros(2, 3)})
    assert {key: row.tolist() for key, row in found.items()} == {"change/a": [2.0, 4.0]}
