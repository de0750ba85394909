"""A small line chart as a picture, for TensorBoard and files: axes with round numbers, lines, dots and a key.

Drawn with Pillow alone, because a monitor that runs in somebody else's training should not pull a plotting package in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count

Color = tuple[int, int, int]
BLUE, ORANGE, GREY = (31, 103, 190), (214, 98, 20), (110, 110, 110)
_GROUND, _INK, _GRID = (255, 255, 255), (40, 40, 40), (228, 228, 228)
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 16, 30, 46


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        points: `(n, 2)`, x and y; points that are not finite break the line.
        color: red, green and blue in [0, 255].
        label: in the key; "" leaves it out.
        dots: mark each point.
        fading: draw earlier points paler.
    """

    points: Tensor
    color: Color = BLUE
    label: str = ""
    dots: bool = False
    fading: bool = False


def chart(
    lines: Sequence[Line],
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    notes: Sequence[tuple[float, float, str]] = (),
    from_zero: bool = False,
    width: int = 480,
    height: int = 360,
) -> Tensor:
    """Draw lines in one frame.

    Args:
        lines: in the order in which they are drawn.
        title, x_label, y_label: texts, in ASCII.
        notes: texts at points, `(x, y, text)`.
        from_zero: the y axis begins at 0.
        width, height: in pixels, at least 160.

    Returns:
        uint8 `(3, height, width)`.

    Raises:
        ValueError: no finite point, or points of another shape.

    Example:
        >>> chart([Line(torch.tensor([[0.0, 1.0], [1.0, 3.0]]))], x_label="step", y_label="score").shape
        torch.Size([3, 360, 480])
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = check_count("width", width, least=160), check_count("height", height, least=160)
    arrays = [_points(line.points) for line in lines]
    finite = [array[np.isfinite(array).all(1)] for array in arrays]
    known = np.concatenate([np.zeros((0, 2)), *finite])
    if not len(known):
        raise ValueError("a chart needs at least one finite point")
    x_axis = _Axis(known[:, 0], _LEFT, width - _RIGHT)
    y_axis = _Axis(np.append(known[:, 1], 0.0) if from_zero else known[:, 1], height - _BOTTOM, _TOP, snug=from_zero)
    picture = Image.new("RGB", (width, height), _GROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default()

    for value in x_axis.ticks:
        x, text = x_axis(value), x_axis.text(value)
        draw.line([(x, _TOP), (x, height - _BOTTOM)], fill=_GRID)
        draw.text((x - draw.textlength(text, font=font) / 2, height - _BOTTOM + 5), text, font=font, fill=_INK)
    for value in y_axis.ticks:
        y, text = y_axis(value), y_axis.text(value)
        draw.line([(_LEFT, y), (width - _RIGHT, y)], fill=_GRID)
        draw.text((_LEFT - 6 - draw.textlength(text, font=font), y - 6), text, font=font, fill=_INK)
    draw.rectangle([(_LEFT, _TOP), (width - _RIGHT, height - _BOTTOM)], outline=GREY)
    for line, array in zip(lines, arrays, strict=True):
        _draw_line(draw, line, [(x_axis(x), y_axis(y)) if math.isfinite(x + y) else None for x, y in array])
    for x, y, text in notes:
        # On the side that has room for it.
        room = draw.textlength(text, font=font)
        left = x_axis(x) + 7 if x_axis(x) + 7 + room < width - _RIGHT else x_axis(x) - 7 - room
        draw.text((left, min(max(y_axis(y) - 13, _TOP + 2), height - _BOTTOM - 14)), text, font=font, fill=_INK)

    draw.text((_LEFT, 9), title, font=font, fill=_INK)
    right = width - _RIGHT
    for line in reversed([line for line in lines if line.label]):
        right -= math.ceil(draw.textlength(line.label, font=font))
        draw.text((right, 9), line.label, font=font, fill=_INK)
        draw.line([(right - 22, 15), (right - 6, 15)], fill=line.color, width=3)
        right -= 34
    middle = (_LEFT + width - _RIGHT - draw.textlength(x_label, font=font)) / 2
    draw.text((middle, height - 20), x_label, font=font, fill=_INK)
    if y_label:
        box = Image.new("RGB", (math.ceil(draw.textlength(y_label, font=font)) + 2, 14), _GROUND)
        ImageDraw.Draw(box).text((1, 0), y_label, font=font, fill=_INK)
        turned = box.rotate(90, expand=True)
        picture.paste(turned, (2, max(0, (_TOP + height - _BOTTOM - turned.height) // 2)))
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


class _Axis:
    """Maps values to pixels, with some air at both ends, and knows round numbers between them."""

    def __init__(self, values: np.ndarray[Any, Any], start: float, end: float, *, snug: bool = False) -> None:
        low, high = float(values.min()), float(values.max())
        if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value
            air = 0.5 * abs(low) or 0.5
        else:
            air = 0.06 * (high - low)
        self.low, self.high, self.start, self.end = (low if snug else low - air), high + air, start, end
        rough = (self.high - self.low) / 8
        power = 10.0 ** math.floor(math.log10(rough))
        self.step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        self.ticks = [k * self.step for k in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def text(self, value: float) -> str:
        if max(abs(self.low), abs(self.high)) >= 1e6 or self.step < 1e-5:
            return f"{value:.3g}"
        return f"{value:.{max(0, -math.floor(math.log10(self.step) + 1e-9))}f}"


def _points(points: Tensor) -> np.ndarray[Any, Any]:
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 2:
        got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"points must be a tensor (n, 2), got {got}")
    return points.detach().cpu().double().numpy()


def _draw_line(draw: Any, line: Line, places: list[tuple[float, float] | None]) -> None:
    count = len(places)
    for index, place in enumerate(places):
        if place is None:
            continue
        strength = 0.2 + 0.8 * (index + 1) / count if line.fading else 1.0
        color = tuple(round(255 + strength * (part - 255)) for part in line.color)
        before = places[index - 1] if index else None
        if before is not None:
            draw.line([before, place], fill=color, width=2)
        if line.dots:
            size = 5 if line.fading and index == count - 1 else 3
            draw.ellipse([place[0] - size, place[1] - size, place[0] + size, place[1] + size], fill=color)
