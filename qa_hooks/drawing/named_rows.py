"""A sheet with a row of images for each name, such as the samples of several runs from the same noise."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.drawing.contact_sheet import contact_sheet


def named_rows(rows: Mapping[str, Tensor], *, scale: int = 1) -> Tensor:
    """Draw the rows, each under its name.

    Args:
        rows: uint8 `(N, C, H, W)` by name.
        scale: images are enlarged so many times, without smoothing.

    Returns:
        uint8 `(3, h, w)`.

    Raises:
        ValueError: no rows.

    Example:
        >>> import torch
        >>> named_rows({"real": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, scale=4).dtype
        torch.uint8
    """
    if not rows:
        raise ValueError("rows is empty")
    scale = check_count("scale", scale)
    images: list[Tensor | None] = []
    labels: list[str] = []
    for name, pictures in rows.items():
        images += [None, *pictures]
        labels += [name, *[""] * len(pictures)]
    longest = max(max(picture.shape[-2:]) for picture in rows.values())
    return contact_sheet(images, labels, columns=max(map(len, rows.values())), scale=scale, max_side=scale * longest)
