"""How much the edges of an image differ from its reference's: the full-reference distance GMSD.

    g(x)  = |gradient| of x at half size, by Prewitt's filters
    gms   = (2 g(x) g(r) + c) / (g(x)^2 + g(r)^2 + c)              at each pixel
    gmsd  = deviation of gms over the pixels

Source: Xue, Zhang, Mou and Bovik, "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image Quality
Index", IEEE Transactions on Image Processing 23(2), 2014, equations 3 to 7.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks.functional.numerics import result_dtype
from qa_hooks.images import to_grey

STABILITY = 170 / 255**2  # the published 170, for images in [0, 1]
SMALLEST = 1e-12  # keeps the gradient of a square root finite where nothing changes


def gmsd(images: Tensor, reference: Tensor) -> Tensor:
    """Distance of each image to its reference: `(N,)`, 0 for equal ones, hardly above .35; lower is better.

    Differentiable. It is among the distances that agree best with people across kinds of damage (docs/judges.md).

    Args:
        images: `(N, 1 or 3, H, W)` in [0, 1], at least 4 pixels a side; colour counts as grey.
        reference: the same shape.

    Raises:
        ValueError: neither 1 nor 3 channels.

    Example:
        >>> image = torch.arange(64.0).view(1, 1, 8, 8) / 63
        >>> float(gmsd(image, image)) < 1e-4, float(gmsd(image.flip(-1), image)) > float(gmsd(image * 0.9, image))
        (True, True)
    """
    own, real = (_edges(x) for x in (images, reference))
    similarity = (2 * own * real + STABILITY) / (own.square() + real.square() + STABILITY)
    mean = similarity.mean((1, 2, 3), keepdim=True)
    return ((similarity - mean).square().mean((1, 2, 3)) + SMALLEST).sqrt()


def _edges(images: Tensor) -> Tensor:
    """`(N, 1, H / 2, W / 2)`: the length of the gradient at half size."""
    grey = to_grey(images.to(result_dtype(images)))
    half = F.avg_pool2d(F.pad(grey, (0, grey.shape[3] % 2, 0, grey.shape[2] % 2)), 2)
    slope = half.new_tensor([1.0, 0.0, -1.0]) / 3
    across = slope.expand(1, 1, 3, 3)
    both = F.conv2d(half, torch.cat([across, across.transpose(2, 3)]), padding=1)
    return (both.square().sum(1, keepdim=True) + SMALLEST).sqrt()
