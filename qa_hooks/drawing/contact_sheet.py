"""A contact sheet: small pictures of many images in rows, each with a few lines of text under it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.drawing.font import LETTERS, Font, load_font
from qa_hooks.drawing.thumbnails import most_detailed, shrunk, square_at

GROUND, INK, PADDING = (255,) * 3, (40,) * 3, 6
DETAIL = "the part of the image with the most detail, pixel by pixel"
LABEL = 8  # letters of text, by which labels may widen the cells of tiny images
CARD_COLUMNS, CARD_SIDE, CARD_LETTERS, CARD_LETTERS_OF_TALL = 6, 120, 21, 28
Picture = np.ndarray[Any, Any]


def contact_sheet(
    images: Sequence[Tensor | None] | Tensor,
    labels: Sequence[str],
    *,
    columns: int | None = None,
    scale: int = 1,
    max_side: int = 192,
    detail: int | Sequence[Tensor | None] = 0,
    letters: int = LETTERS,
    bold: bool = False,
) -> Tensor:
    """Draw images of any sizes on one sheet, in reading order.

    Args:
        images: uint8 `(C, H, W)` each, C = 1 or 3, or one tensor `(N, C, H, W)`; None begins a new row with its label
            as a heading, which may take several lines.
        labels: one text per image, drawn under it; "" draws none, a line end begins another line. A line that is wider
            than its cell takes two; of what is wider still both ends are shown.
        columns: images in a row; by default as many as make the sheet about square, at most 12.
        scale: small images are enlarged so many times, without smoothing.
        max_side: larger images are shrunk to this, keeping their proportions.
        detail: under an image that was shrunk comes a square of it of this side in its own pixels, of nine the one with
            the most detail: blur, noise and blocks are seen there and not in a thumbnail. The sheet says so. 0: none.
            Or the squares themselves, one for each image or None, where the images are thumbnails already.
        letters, bold: size of the text in pixels, and whether it is bold: where only every third row of pixels is
            shown, thin strokes such as a minus are lost.

    Returns:
        uint8 `(3, h, w)`.

    Raises:
        TypeError, ValueError: no images, images that are not uint8 `(C, H, W)`, another number of labels.

    Example:
        >>> sheet = contact_sheet(torch.zeros(3, 1, 16, 16, dtype=torch.uint8), ["0.9", "0.5", "0.1"], scale=4)
        >>> sheet.dtype, sheet.shape[0]
        (torch.uint8, 3)
    """
    from PIL import Image

    scale, max_side = check_count("scale", scale), check_count("max_side", max_side)
    font = load_font(check_count("letters", letters, least=6), bold=bold)
    if len(images) != len(labels):
        raise ValueError(f"there must be one label per image, got {len(labels)} labels for {len(images)} images")
    pictures = [None if image is None else _picture(image, scale, max_side) for image in images]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        raise ValueError("images is empty")
    if isinstance(detail, Sequence):
        if len(detail) != len(images):
            raise ValueError(f"there must be one square or None per image, got {len(detail)} for {len(images)} images")
        crops = [None if square is None else _array(square) for square in detail]
    else:
        side = check_count("detail", detail, least=0)
        crops = [_detail(image, side, max_side) for image in images]
    columns = min(12, math.ceil(math.sqrt(len(shown)))) if columns is None else check_count("columns", columns)
    texts = [[font.plain(line) for line in str(label).split("\n")] for label in labels]
    wanted = max(
        (font.width(line) for image, text in zip(images, texts, strict=True) if image is not None for line in text),
        default=0,
    )
    drawn = [part.shape[1] for part in (*shown, *crops) if part is not None]
    width = max(*drawn, min(wanted, LABEL * letters), 1)

    rows: list[list[int]] = []  # positions; a heading is a row of its own
    for index, picture in enumerate(pictures):
        if picture is None or not rows or len(rows[-1]) == columns or pictures[rows[-1][0]] is None:
            rows.append([])
        rows[-1].append(index)
    room = max(len(row) for row in rows) * (width + PADDING) - PADDING
    if any(image is None for image in images):
        room = max(room, 24 * letters)  # a heading of a narrow sheet
    fitted = [[part for line in text for part in font.fitted(line, width)] for text in texts]
    texts = [text if image is None else own for image, text, own in zip(images, texts, fitted, strict=True)]
    blocks = [_row(row, pictures, crops, texts, width, room, font) for row in rows]
    if any(crop is not None for crop in crops):
        blocks.append(_words(f"under each smaller picture: {DETAIL}", room, font))
    size = (room + 2 * PADDING, sum(block.height for block in blocks) + PADDING * (len(blocks) + 1))
    sheet = Image.new("RGB", size, GROUND)
    top = PADDING
    for block in blocks:
        sheet.paste(block, (PADDING, top))
        top += block.height + PADDING
    return torch.from_numpy(np.asarray(sheet).transpose(2, 0, 1).copy())


def card_sheet(
    images: Sequence[Tensor | None] | Tensor,
    labels: Sequence[str],
    squares: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """A contact sheet whose text is read on TensorBoard's cards, which show pictures at most 315 x 200 pixels large.

    Args:
        images, labels: as in `contact_sheet`; six in a row. Two rows with their headings fill a card.
        squares: of the images, in their own pixels, or None where an image is shown whole; by default those with the
            most detail of the images that are shrunk here. The letters of a sheet with squares are larger, since it is
            taller.

    Returns:
        uint8 `(3, h, w)`.

    Example:
        >>> card_sheet(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), ["#1: 0.9", "#2: 0.5"]).shape[0]
        3
    """
    longest = max((max(image.shape[1:]) for image in images if image is not None), default=1)
    is_tall = longest > CARD_SIDE if squares is None else any(square is not None for square in squares)
    return contact_sheet(
        images,
        labels,
        columns=CARD_COLUMNS,
        scale=max(1, CARD_SIDE // longest),
        max_side=CARD_SIDE,
        detail=CARD_SIDE if squares is None else squares,
        letters=CARD_LETTERS_OF_TALL if is_tall else CARD_LETTERS,
        bold=True,
    )


def _row(
    row: list[int],
    pictures: Sequence[Picture | None],
    crops: Sequence[Picture | None],
    texts: Sequence[list[str]],
    width: int,
    room: int,
    font: Font,
) -> Any:
    """A heading, or a row of images on a common base line, each in the middle of its cell, with details and texts."""
    from PIL import Image, ImageDraw

    if pictures[row[0]] is None:
        return _words(" ".join(texts[row[0]]), room, font)
    tallest = max(picture.shape[0] for i in row if (picture := pictures[i]) is not None)
    details = max(crop.shape[0] + PADDING // 2 if (crop := crops[i]) is not None else 0 for i in row)
    lines = max(len([line for line in texts[i] if line]) for i in row)
    block = Image.new("RGB", (room, tallest + details + font.line * lines), GROUND)
    draw = ImageDraw.Draw(block)
    for column, index in enumerate(row):
        left, picture, crop = column * (width + PADDING), pictures[index], crops[index]
        if picture is None:  # a heading, which is a row of its own
            continue
        block.paste(Image.fromarray(picture), (left + (width - picture.shape[1]) // 2, tallest - picture.shape[0]))
        if crop is not None:
            block.paste(Image.fromarray(crop), (left + (width - crop.shape[1]) // 2, tallest + PADDING // 2))
        for number, text in enumerate(texts[index]):
            place = (left + (width - font.width(text)) // 2, tallest + details + font.line * number + 2)
            draw.text(place, text, font=font.face, fill=INK)
    return block


def _words(text: str, room: int, font: Font) -> Any:
    """A text over the whole width."""
    from PIL import Image, ImageDraw

    lines = font.wrapped(text, room)
    block = Image.new("RGB", (room, font.line * len(lines)), GROUND)
    for number, line in enumerate(lines):
        ImageDraw.Draw(block).text((0, font.line * number + 2), line, font=font.face, fill=INK)
    return block


def _picture(image: Tensor, scale: int, max_side: int) -> Picture:
    """`(C, H, W)` uint8 -> `(h, w, 3)` uint8 at its size on the sheet."""
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        kind = image.dtype if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"images must be uint8 tensors (C, H, W), got {kind}; `qa_hooks.images.to_uint8` converts")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"an image must have the shape (1 or 3, H, W), got {tuple(image.shape)}")
    image = image.detach().cpu()
    times = min(scale, max(1, max_side // max(image.shape[1:])))
    image = image.repeat_interleave(times, 1).repeat_interleave(times, 2)
    return _array(shrunk(image, max_side))


def _detail(image: Tensor | None, side: int, max_side: int) -> Picture | None:
    """A square of an image that was shrunk, in its own pixels: of three times three, where neighbours differ most."""
    if image is None or not side or max(image.shape[1:]) <= max_side:
        return None
    image = image.detach().cpu()
    return _array(square_at(image, most_detailed(image, side), side))


def _array(image: Tensor) -> Picture:
    return image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
