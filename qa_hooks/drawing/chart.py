"""A small line chart as a picture, for TensorBoard and files, drawn by matplotlib where that is installed.

The letters are large, because TensorBoard shows pictures small. Nothing of the caller's own figures is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn

Color = tuple[int, int, int]
BLUE, ORANGE, GREY = (31, 103, 190), (214, 98, 20), (110, 110, 110)
DPI, LETTERS = 100, 13  # dots per inch, and points


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
    height: int = 300,
    letters: float = LETTERS,
) -> Tensor | None:
    """Draw lines in one frame.

    Args:
        lines: in the order in which they are drawn.
        title, x_label, y_label: texts.
        notes: texts at points, `(x, y, text)`.
        from_zero: the y axis begins at 0.
        width, height: in pixels, at least 160.
        letters: size of the text in points, of which 72 are 100 pixels; the default is read on TensorBoard's cards.

    Returns:
        uint8 `(3, height, width)`; None, with one warning, where matplotlib is not installed.

    Raises:
        ValueError: no finite point, or points of another shape.

    Example:
        >>> chart([Line(torch.tensor([[0.0, 1.0], [1.0, 3.0]]))], x_label="step", y_label="score").shape
        torch.Size([3, 300, 480])
    """
    width, height = check_count("width", width, least=160), check_count("height", height, least=160)
    arrays = [_points(line.points) for line in lines]
    if not any(np.isfinite(array).all(1).any() for array in arrays):
        raise ValueError("a chart needs at least one finite point")
    if (axes := empty_axes(width, height)) is None:
        return None
    for line, array in zip(lines, arrays, strict=True):
        color = tuple(part / 255 for part in line.color)
        if line.fading:
            for end in range(1, len(array) + 1):
                part = array[max(0, end - 2) : end]
                axes.plot(*part.T, color=color, alpha=min(1.0, 0.2 + 0.8 * end / len(array)), marker="o" * line.dots)
        else:
            axes.plot(*array.T, color=color, label=line.label or None, marker="o" * line.dots, linewidth=2)
    for x, y, text in notes:
        axes.annotate(plain(text), (x, y), (6, 6), textcoords="offset points", fontsize=letters)
    axes.set_title(plain(title), fontsize=letters, wrap=True)
    axes.set_xlabel(plain(x_label), fontsize=letters, wrap=True)
    axes.set_ylabel(plain(y_label), fontsize=letters, wrap=True)
    axes.tick_params(labelsize=letters - 1)
    axes.grid(alpha=0.3)
    if from_zero:
        axes.set_ylim(bottom=0)
    if any(line.label for line in lines):
        axes.legend(fontsize=letters - 1)
    return drawn(axes)


def empty_axes(width: int, height: int) -> Any:
    """The axes of a new figure of so many pixels; None, with one warning, where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        warn("charts are left out: matplotlib draws them, pip install 'qa-hooks[plots]'")
        return None
    return FigureCanvasAgg(Figure((width / DPI, height / DPI), dpi=DPI, layout="constrained")).figure.subplots()


def drawn(axes: Any) -> Tensor:
    """The picture of the figure with these axes, uint8 `(3, height, width)`."""
    canvas = axes.figure.canvas
    canvas.draw()
    return torch.from_numpy(np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1).copy())


def plain(text: str) -> str:
    """Without the signs that begin a formula."""
    return text.replace("$", r"\$")


def _points(points: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 2:
        got = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        raise ValueError(f"points must be a tensor (n, 2), got {got}")
    return points.detach().cpu().double().numpy()
