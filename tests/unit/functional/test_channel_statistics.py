"""Means and deviations of channels against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qa_hooks.functional.channel_statistics import channel_statistics


def naive(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = maps.detach().double().numpy()
    return values.mean((2, 3)), np.sqrt(values.var((2, 3)) + 1e-6)


def test_they_are_those_of_numpy_in_any_memory_layout() -> None:
    maps = 50 + torch.randn(3, 5, 17, 12)  # far from zero, where raw second moments would lose digits
    for laid_out in (maps, maps.contiguous(memory_format=torch.channels_last), maps.transpose(2, 3), maps[:, :, ::2]):
        for found, expected in zip(channel_statistics(laid_out), naive(laid_out), strict=True):
            np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    maps = (50 + torch.randn(2, 3, 8, 8)).to(dtype)
    for found, expected in zip(channel_statistics(maps), naive(maps), strict=True):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


def test_the_gradient_is_right_and_finite_where_a_channel_is_constant() -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(channel_statistics, maps)
    flat = torch.ones(1, 2, 4, 4, requires_grad=True)
    channel_statistics(flat)[1].sum().backward()
    assert flat.grad is not None
    assert flat.grad.eq(0).all()
