"""Means and deviations of channels against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qa_hooks.functional.channel_statistics import channel_statistics


def naive(maps: Tensor) -> np.ndarray:
    values = maps.detach().double().numpy()
    return np.concatenate([values.mean((2, 3)), np.sqrt(values.var((2, 3)) + 1e-6)], 1)


def test_they_are_those_of_numpy_in_any_memory_layout() -> None:
    maps = 50 + torch.randn(3, 5, 17, 12)  # far from zero, where raw second moments would lose digits
    for laid_out in (maps, maps.contiguous(memory_format=torch.channels_last), maps.transpose(2, 3), maps[:, :, ::2]):
        np.testing.assert_allclose(channel_statistics([laid_out]).numpy(), naive(laid_out), rtol=2e-6)


def test_stages_stand_side_by_side() -> None:
    stages = [torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)]
    expected = np.concatenate([naive(maps) for maps in stages], 1)
    np.testing.assert_allclose(channel_statistics(stages).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    maps = (50 + torch.randn(2, 3, 8, 8)).to(dtype)
    found = channel_statistics([maps])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), naive(maps), rtol=2e-6)


def test_the_gradient_is_right_and_finite_where_a_channel_is_constant() -> None:
    maps = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: channel_statistics([x]), maps)
    flat = torch.ones(1, 2, 4, 4, requires_grad=True)
    channel_statistics([flat])[:, 2:].sum().backward()
    assert flat.grad is not None
    assert flat.grad.eq(0).all()
