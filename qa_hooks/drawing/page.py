"""A page of words, tables and pictures below each other, in one width and one font."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks.drawing.contact_sheet import GROUND, INK, PADDING
from qa_hooks.drawing.font import load_font

MARGIN, GAP = 2 * PADDING, 24  # pixels around the page, and between the columns of a table
RULE = (200,) * 3
Table = Sequence[Sequence[str]]


def page(parts: Sequence[str | Table | Tensor], *, width: int) -> Tensor:
    """Draw the parts from the top to the bottom.

    Args:
        parts: words, which are wrapped; tables, whose first row is a heading; uint8 pictures `(3, h, w)`.
        width: of the page in pixels; a wider table or picture makes it wider.

    Returns:
        uint8 `(3, h, w)`.

    Example:
        >>> page(["n 60", [["", "a"], ["fd", "1.5"]], torch.zeros(3, 8, 8, dtype=torch.uint8)], width=200).shape[2]
        200
    """
    from PIL import Image

    tables = [part for part in parts if not isinstance(part, (str, Tensor))]
    pictures = [part for part in parts if isinstance(part, Tensor)]
    inside = max(
        width - 2 * MARGIN, *(sum(_widths(table)) for table in tables), *(part.shape[2] for part in pictures), 1
    )
    blocks = []
    for part in parts:
        if isinstance(part, str):
            blocks.append(_words(part, inside))
        elif isinstance(part, Tensor):
            blocks.append(Image.fromarray(part.permute(1, 2, 0).contiguous().numpy()))
        else:
            blocks.append(_table(part, inside))
    size = (inside + 2 * MARGIN, sum(block.height + MARGIN for block in blocks) + MARGIN)
    sheet, top = Image.new("RGB", size, GROUND), MARGIN
    for block in blocks:
        sheet.paste(block, (MARGIN, top))
        top += block.height + MARGIN
    return torch.from_numpy(np.asarray(sheet).transpose(2, 0, 1).copy())


def _widths(table: Table) -> list[int]:
    font = load_font()
    columns = zip(*table, strict=True)
    return [max(font.width(font.plain(cell)) for cell in column) + GAP for column in columns]


def _words(text: str, width: int) -> Any:
    from PIL import Image, ImageDraw

    font = load_font()
    lines = [line for part in text.split("\n") for line in font.wrapped(font.plain(part), width)]
    block = Image.new("RGB", (width, font.line * len(lines)), GROUND)
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, font.line * number), line, font=font.face, fill=INK)
    return block


def _table(table: Table, width: int) -> Any:
    """The first column to the left, the others to the right; a line under the heading."""
    from PIL import Image, ImageDraw

    font, widths = load_font(), _widths(table)
    block = Image.new("RGB", (width, font.line * len(table) + PADDING), GROUND)
    draw = ImageDraw.Draw(block)
    draw.line((0, font.line + 1, sum(widths), font.line + 1), fill=RULE)
    for number, row in enumerate(table):
        left, top = 0, font.line * number + (PADDING if number else 0)
        for place, (cell, room) in enumerate(zip(row, widths, strict=True)):
            text = font.plain(cell)
            shift = room - font.width(text) if place else 0
            draw.text((left + shift, top), text, font=font.face, fill=INK)
            left += room
    return block
