"""Images and prompts together, as a head of opinions sees them.

    row = [cos, ..., cos, u * v, u]        u: the image, v: its prompt, both of length 1; each third has u's length

The cosine is what a CLIP-like model says by itself. The products are its terms, so that the head can find which of them
count; u lets an image be liked for itself. The cosine is repeated as often as there are terms because the head
penalises all weights alike: written once among a thousand numbers it would hardly be heard. On vectors made up of 128
terms, 100 to 1,200 images and prompts held out, the rank correlation with ratings was then never more than .01 under
the cosine's own, and up to .22 above it; with the cosine written once it was .29 under it for 100 images
(`tests/unit/scorers/test_alignment.py` repeats a part).
"""

from __future__ import annotations

import torch
from torch import Tensor


def joined_width(dim: int) -> int:
    """The length of a row for vectors of `dim` numbers."""
    return 3 * dim


def joined(images: Tensor, prompts: Tensor) -> Tensor:
    """Features of images `(N, dim)` and of their prompts `(N, dim)` -> `(N, 3 dim)`.

    Example:
        >>> joined(torch.tensor([[0.6, 0.8]]), torch.tensor([[1.0, 0.0]]))
        tensor([[0.6000, 0.6000, 0.6000, 0.0000, 0.6000, 0.8000]])
    """
    products = images * prompts
    return torch.cat([products.sum(1, keepdim=True).expand_as(products), products, images], 1)
