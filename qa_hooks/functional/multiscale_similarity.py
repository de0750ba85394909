"""Multi-scale SSIM.

    MS-SSIM = prod_j cs_j^w_j * ssim_M^w_M

where cs_j is the mean contrast-structure term of the images halved j - 1 times by 2x2 means, ssim_M the SSIM at the
coarsest of M = 5 levels, and w = (.0448, .2856, .3001, .2363, .1333). Wang, Simoncelli, Bovik: Multi-scale structural
similarity for image quality assessment, 2003.

Two gaps of the definition are closed here. An image too small for five levels uses those that fit, with their weights
divided by their sum. And a term at or below zero, as an anti-correlated pair has, would have no power (or, cut off at
zero as elsewhere, no gradient): below 0.05 a term v is continued by 0.05 exp((v - 0.05) / 0.05), the exponential with
the same value and slope, so that the result stays positive and smooth and still rises with every term.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks.functional._ssim_fast import plane_similarity, work_dtype
from qa_hooks.functional.filters import full_precision
from qa_hooks.functional.structural_similarity import check_ssim_arguments, valid_filter
from qa_hooks.images import Range, to_unit

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
LOWEST = 0.05  # terms above this are what Wang et al. define


def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    value_range: Range = (0.0, 1.0),
    window_size: int = 11,
    sigma: float = 1.5,
    second_order: bool = False,
) -> Tensor:
    """Multi-scale structural similarity of two batches, image by image.

    As in pytorch-msssim and piq, the product is taken per channel and then averaged. Odd sides are halved as in
    pytorch-msssim, with zeros (black) before the first row or column; piq repeats the first one instead. Precision,
    gradients and numbers outside the range are as in `ssim`.

    Args:
        x, y: images `(N, C, H, W)`, floating point. Five levels need sides of 161 pixels with the default window; fewer
            are used for smaller images, which a warning says once for each size.
        value_range: what the numbers mean.
        window_size: odd; the largest odd window that fits is taken where not even one level has room for it.
        sigma: the window's standard deviation in pixels.
        second_order: allow the gradient to be differentiated again, at about twice the time.

    Returns:
        `(N,)` in (0, 1], 1 for equal images; float64 if an input is, else float32.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes, range or window that make no sense.
        RuntimeError: the gradient was differentiated again without `second_order=True`.

    Source:
        Wang, Simoncelli, Bovik: Multi-scale structural similarity for image quality assessment, 2003.

    Example:
        >>> x = torch.rand(2, 3, 176, 176)
        >>> ms_ssim(x, x)
        tensor([1., 1.])
    """
    value_range = check_ssim_arguments(x, y, value_range, window_size, sigma)
    height, width = x.shape[-2:]
    levels = _levels(height, width, window_size)
    weights = [weight / sum(WEIGHTS[:levels]) for weight in WEIGHTS[:levels]] if levels < len(WEIGHTS) else WEIGHTS
    dtype = work_dtype(x, y)
    x, y = to_unit(x.to(dtype), value_range), to_unit(y.to(dtype), value_range)
    logarithm = x.new_zeros(x.shape[:2])
    with full_precision(x.device):
        for level, weight in enumerate(weights, start=1):
            term = plane_similarity(
                x,
                y,
                valid_filter(x, y, window_size, sigma),
                luminance=level == levels,
                value_range=(0.0, 1.0),
                second_order=second_order,
            )
            logarithm = logarithm + weight * _log(term)
            if level < levels:
                x, y = _halve(x), _halve(y)
        return logarithm.exp().mean(1)


def _log(term: Tensor) -> Tensor:
    """The logarithm of a term continued below `LOWEST`: there it is the logarithm's tangent."""
    below = math.log(LOWEST) + (term - LOWEST) / LOWEST
    return torch.where(term < LOWEST, below, term.clamp(min=LOWEST).log())


def _halve(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return F.avg_pool2d(images, 2, padding=(height % 2, width % 2))


@cache  # and so the warning comes once for each size
def _levels(height: int, width: int, window_size: int) -> int:
    levels, side = 1, min(height, width)
    while levels < len(WEIGHTS) and (side := (side + 1) // 2) >= window_size:
        levels += 1
    if levels < len(WEIGHTS):
        warn(
            f"images of {height}x{width} have room for {levels} of the {len(WEIGHTS)} levels of MS-SSIM with "
            f"window_size={window_size}; these are used, with their weights divided by their sum"
        )
    return levels
