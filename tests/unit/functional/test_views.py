"""Random views: how large they are."""

from __future__ import annotations

import torch

from qa_hooks.functional.views import random_view


def test_views_are_smaller_and_larger_than_the_image():
    """Sides from 3/4 to 5/4, as one factor for both; both ends are reached."""
    images = torch.rand(1, 3, 40, 80)
    sizes = [random_view(images.shape, torch.Generator().manual_seed(seed))(images).shape[-2:] for seed in range(200)]
    heights = torch.tensor([height for height, _ in sizes])
    assert heights.min() in (30, 31)
    assert heights.max() in (49, 50)
    assert 0.4 < (heights > 40).float().mean() < 0.6
    assert all(abs(width - 2 * height) <= 1 for height, width in sizes)
