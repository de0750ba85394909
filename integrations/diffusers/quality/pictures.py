"""The strip: images of one seed over the settings of the dial."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.drawing.contact_sheet import CARD_LETTERS, contact_sheet


def draw_strip(images: Tensor, levels: Sequence[float], *, title: str = "", side: int = 96) -> Tensor:
    """One row for each seed, one column for each setting, with the setting under it.

    Args:
        images: `(seeds, settings, C, H, W)` uint8.
        levels: q of each column.
        title: above.
        side: small images are enlarged to about this many pixels.

    Returns:
        uint8 `(3, h, w)`.

    Example:
        >>> import torch
        >>> draw_strip(torch.zeros(2, 3, 3, 8, 8, dtype=torch.uint8), [-1, 0, 1]).dtype
        torch.uint8
    """
    if images.ndim != 5 or images.shape[1] != len(levels):
        raise ValueError(f"images must be (seeds, {len(levels)}, C, H, W), got {tuple(images.shape)}")
    labels = [f"{level:+.3g}" for level in levels] * len(images)
    pictures: list[Tensor | None] = list(images.flatten(0, 1))
    pictures, labels = (
        [None, *pictures],
        [f"{title}; q is under each image" if title else "q is under each image", *labels],
    )
    scale = max(1, check_count("side", side) // images.shape[-1])
    return contact_sheet(
        pictures, labels, columns=len(levels), scale=scale, max_side=max(side, 64), letters=CARD_LETTERS, bold=True
    )
