"""Each ladder makes photographs worse from level to level, and is the degradation that its name says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.functional.degradations import LADDERS, LEVELS, chain, degrade


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", LADDERS)
def test_each_level_is_further_from_the_photograph(kind, photographs):
    errors = torch.stack(
        [
            (degrade(photographs, kind, k, generator=rng()) - photographs).square().flatten(1).mean(1)
            for k in range(LEVELS)
        ]
    )
    assert (errors[0] == 0).all()
    assert (errors.diff(dim=0) > 0).all()
    worst = degrade(photographs, kind, LEVELS - 1, generator=rng())
    assert worst.min() >= 0
    assert worst.max() <= 1
    assert worst.shape == photographs.shape


def test_blur_is_scipy_s(photographs):
    ndimage = pytest.importorskip("scipy.ndimage")
    expected = ndimage.gaussian_filter(photographs[0, 0].double().numpy(), 1.5, radius=5, mode="mirror")
    assert np.abs(degrade(photographs, "blur", 3)[0, 0].numpy() - expected).max() < 1e-5


def test_jpeg_is_a_jpeg_of_that_quality(photographs):
    array = (photographs[0] * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(array).save(file, "JPEG", quality=15)
    expected = np.asarray(Image.open(file)).astype(np.float64) / 255
    ours = degrade(photographs, "jpeg", 3)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - expected).mean() < 2e-3  # two decoders round differently


@pytest.mark.parametrize("kind", LADDERS)
def test_small_and_grey_images(kind):
    image = torch.rand(2, 1, 4, 5)
    for level in range(LEVELS):
        assert degrade(image, kind, level, generator=rng()).shape == image.shape


def test_noise_is_that_of_the_generator():
    image = torch.full((1, 3, 64, 64), 0.5)
    first, second = (degrade(image, "noise", 2, generator=rng()) for _ in range(2))
    assert torch.equal(first, second)
    assert float((first - image).std()) == pytest.approx(0.05, rel=0.05)


@pytest.mark.parametrize("kind", ["noise", "salt_pepper"])
def test_random_kinds_need_a_generator(kind):
    with pytest.raises(ValueError, match=f"{kind} needs generator="):
        degrade(torch.rand(1, 3, 8, 8), kind, 1)


def test_salt_and_pepper_turn_a_share_of_the_pixels_black_or_white():
    image = torch.full((2, 3, 200, 200), 0.5)
    spoilt = degrade(image, "salt_pepper", 3, generator=rng())
    assert ((spoilt == spoilt[:, :1]).all(1)).all()  # all channels of a pixel
    assert float((spoilt == 1).float().mean()) == pytest.approx(0.03, abs=0.003)
    assert float((spoilt == 0).float().mean()) == pytest.approx(0.03, abs=0.003)
    assert float((spoilt == 0.5).float().mean()) == pytest.approx(0.94, abs=0.005)


def test_sharpening_is_an_unsharp_mask(photographs):
    """x + a (x - gaussian(x)), clamped, with scipy's Gaussian."""
    ndimage = pytest.importorskip("scipy.ndimage")
    image = photographs[0, 1].double().numpy()
    expected = (image + 4 * (image - ndimage.gaussian_filter(image, 1.0, radius=3, mode="mirror"))).clip(0, 1)
    assert np.abs(degrade(photographs, "sharpen", 3)[0, 1].numpy() - expected).max() < 1e-5


def test_a_chain_is_all_levels(photographs):
    made = chain(photographs, "jpeg")
    assert torch.equal(made[0], photographs)
    assert all(torch.equal(made[level], degrade(photographs, "jpeg", level)) for level in range(LEVELS))


@pytest.mark.parametrize(("kind", "level"), [("haze", 1), ("blur", 5), ("blur", -1)])
def test_unknown_ones(kind, level):
    with pytest.raises(ValueError, match="kind must be one of"):
        degrade(torch.rand(1, 3, 8, 8), kind, level)
