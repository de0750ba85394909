"""A contact sheet: small pictures of many images in rows, each with a line of text under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from qa_hooks._base.checks import check_count

_GROUND, _INK, _PADDING = 245, 40, 6


def contact_sheet(
    images: Sequence[Tensor | None] | Tensor,
    labels: Sequence[str],
    *,
    columns: int | None = None,
    scale: int = 1,
    max_side: int = 192,
) -> Tensor:
    """Draw images of any sizes on one sheet, in reading order.

    Args:
        images: uint8 `(C, H, W)` each, C = 1 or 3, or one tensor `(N, C, H, W)`; None begins a new row with its label
            as a heading.
        labels: one text per image, drawn under it; "" draws none. What is wider than its cell is cut off.
        columns: images in a row; by default as many as make the sheet about square, at most 12.
        scale: small images are enlarged so many times, without smoothing.
        max_side: larger images are shrunk to this, keeping their proportions.

    Returns:
        uint8 `(3, h, w)`.

    Raises:
        TypeError, ValueError: no images, images that are not uint8 `(C, H, W)`, another number of labels.

    Example:
        >>> sheet = contact_sheet(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), ["0.9", "0.5", "0.1"], scale=4)
        >>> sheet.dtype, sheet.shape[0]
        (torch.uint8, 3)
    """
    from PIL import Image, ImageDraw, ImageFont

    scale, max_side = check_count("scale", scale), check_count("max_side", max_side)
    if len(images) != len(labels):
        raise ValueError(f"there must be one label per image, got {len(labels)} labels for {len(images)} images")
    pictures = [None if image is None else _picture(image, scale, max_side) for image in images]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        raise ValueError("images is empty")
    columns = min(12, math.ceil(math.sqrt(len(shown)))) if columns is None else check_count("columns", columns)
    font = ImageFont.load_default()
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = math.ceil(font.getbbox("0g|")[3]) + 4
    captions = [label for image, label in zip(images, labels, strict=True) if image is not None]
    wanted = max((draw.textlength(_plain(label), font=font) for label in captions), default=0)
    # Labels may widen the cells of tiny images, within reason.
    width = max(*(picture.shape[1] for picture in shown), min(math.ceil(wanted), 96), 1)

    rows: list[list[int]] = []  # positions; a heading is a row of its own
    for index, picture in enumerate(pictures):
        if picture is None or not rows or len(rows[-1]) == columns or pictures[rows[-1][0]] is None:
            rows.append([])
        rows[-1].append(index)
    heights = [max(0 if (p := pictures[i]) is None else p.shape[0] for i in row) + text for row in rows]
    widest = max(len(row) for row in rows)
    headings = [_plain(label) for image, label in zip(images, labels, strict=True) if image is None]
    room = max((math.ceil(draw.textlength(label, font=font)) for label in headings), default=0)
    size = (
        max(widest * (width + _PADDING), room + _PADDING) + _PADDING,
        sum(heights) + _PADDING * (len(rows) + 1),
    )
    sheet = Image.new("RGB", size, (_GROUND,) * 3)
    draw = ImageDraw.Draw(sheet)
    top = _PADDING
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left, picture = _PADDING + column * (width + _PADDING), pictures[index]
            if picture is None:
                draw.text((left, top + 2), _plain(labels[index]), font=font, fill=(_INK,) * 3)
                continue
            # On the row's common base line, in the middle of its cell.
            above = height - text - picture.shape[0]
            sheet.paste(Image.fromarray(picture), (left + (width - picture.shape[1]) // 2, top + above))
            label = _fitting(_plain(labels[index]), width, draw, font)
            middle = left + (width - draw.textlength(label, font=font)) / 2
            draw.text((middle, top + height - text + 2), label, font=font, fill=(_INK,) * 3)
        top += height + _PADDING
    return torch.from_numpy(np.asarray(sheet).transpose(2, 0, 1).copy())


def _picture(image: Tensor, scale: int, max_side: int) -> np.ndarray[Any, Any]:
    """`(C, H, W)` uint8 -> `(h, w, 3)` uint8 at its size on the sheet."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"images must be uint8 tensors (C, H, W), got {kind}; `qa_hooks.images.to_uint8` converts")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"an image must have the shape (1 or 3, H, W), got {tuple(image.shape)}")
    image = image.detach().cpu()
    times = min(scale, max(1, max_side // max(image.shape[1:])))
    image = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    longest = max(image.shape[1:])
    if longest > max_side:
        size = [max(1, round(side * max_side / longest)) for side in image.shape[1:]]
        small = interpolate(image[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
        image = small[0].round().clamp(0, 255).to(torch.uint8)
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()


def _plain(label: str) -> str:
    """One line of the characters that the default font has."""
    return " ".join(str(label).split()).encode("ascii", "replace").decode()


def _fitting(label: str, width: int, draw: Any, font: Any) -> str:
    if draw.textlength(label, font=font) <= width:
        return label
    while label and draw.textlength(label + "..", font=font) > width:
        label = label[:-1]
    return label + ".."
