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


def test_views_of_a_line_are_lines():
    """3/4 to 5/4 of one pixel is one pixel, in the crop and in what comes out."""
    line = torch.arange(8.0).expand(1, 1, 1, 8)
    for seed in range(20):
        views = [random_view(images.shape, torch.Generator().manual_seed(seed), noise=0.0)(images)
                 for images in (line, line.mT)]  # fmt: skip
        assert (views[0].shape[-2], views[1].shape[-1]) == (1, 1)
        assert all(view.min() >= 0 and view.max() <= 7 for view in views)
