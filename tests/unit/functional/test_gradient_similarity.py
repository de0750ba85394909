from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from qa_hooks.functional.gradient_similarity import gmsd


def by_hand(image: np.ndarray, reference: np.ndarray) -> float:
    """The published formula of two grey images `(H, W)` in 0..255, in float64."""

    def edges(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, [(0, side % 2) for side in x.shape])
        half = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
        across = np.array([[1, 0, -1]] * 3) / 3
        return np.hypot(convolve(half, across, mode="constant"), convolve(half, across.T, mode="constant"))

    own, real = edges(image), edges(reference)
    return float(((2 * own * real + 170) / (own**2 + real**2 + 170)).std())


@pytest.mark.parametrize("size", [(16, 16), (17, 20), (33, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_published_formula(size, dtype):
    rng = np.random.default_rng(0)
    reference = rng.uniform(0, 255, (3, *size))
    images = (reference + rng.normal(0, [[[3.0]], [[20.0]], [[60.0]]], reference.shape)).clip(0, 255)
    expected = [by_hand(*pair) for pair in zip(images, reference, strict=True)]
    given = (torch.tensor(x / 255, dtype=dtype)[:, None] for x in (images, reference))
    assert gmsd(*given).tolist() == pytest.approx(expected, abs=1e-6)


def test_layouts_colour_and_batches():
    images, reference = torch.rand(2, 4, 3, 20, 24)
    whole = gmsd(images, reference)
    last = [x.contiguous(memory_format=torch.channels_last) for x in (images, reference)]
    torch.testing.assert_close(gmsd(*last), whole)
    torch.testing.assert_close(gmsd(images[1:2], reference[1:2]), whole[1:2])
    torch.testing.assert_close(gmsd(images.bfloat16(), reference.bfloat16()), whole, atol=0.01, rtol=0.05)
    grey = torch.rand(2, 1, 20, 24)
    torch.testing.assert_close(
        gmsd(grey.expand(-1, 3, -1, -1), grey * 0.8), gmsd(grey, grey * 0.8), atol=1e-5, rtol=1e-4
    )


def test_gradients_are_right_and_finite_where_nothing_differs():
    images, reference = torch.rand(2, 2, 1, 8, 8, dtype=torch.float64)
    torch.autograd.gradcheck(lambda x: gmsd(x, reference), images.requires_grad_())
    flat = torch.full((1, 1, 8, 8), 0.5, requires_grad=True)
    gmsd(flat, flat.detach()).sum().backward()
    assert bool(torch.isfinite(flat.grad).all())


def test_more_damage_is_a_larger_distance():
    reference = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    levels = [float(gmsd((reference + level * noise).clamp(0, 1), reference)) for level in (0, 0.02, 0.1, 0.3)]
    assert levels == sorted(levels)
    assert levels[0] < 1e-4
