"""Values with their intervals, one below the other, drawn by matplotlib where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from qa_hooks.drawing.chart import BLUE, GREY, LETTERS, drawn, empty_axes, plain

WIDTH, ROW = 760, 34  # pixels


class Measured(NamedTuple):
    """A row: its label, the value, the ends of its interval (NaN where there is none), and whether it stands out."""

    label: str
    value: float
    low: float
    high: float
    strong: bool = True


def forest_plot(rows: Sequence[Measured], *, title: str = "", x_label: str = "") -> Tensor | None:
    """Draw the rows from the top to the bottom; those that do not stand out are grey.

    Returns:
        uint8 `(3, height, width)`; None, with one warning, where matplotlib is not installed.

    Raises:
        ValueError: no row with a finite value.

    Example:
        >>> forest_plot([Measured("psnr", 0.7, 0.6, 0.8), Measured("ssim", 0.5, 0.4, 0.6, False)]).shape[0]
        3
    """
    known = [row for row in rows if np.isfinite(row.value)]
    if not known:
        raise ValueError("a chart needs at least one finite value")
    if (axes := empty_axes(WIDTH, 110 + ROW * len(known))) is None:
        return None
    for place, row in enumerate(known):
        color = tuple(part / 255 for part in (BLUE if row.strong else GREY))
        if np.isfinite([row.low, row.high]).all():
            axes.plot([row.low, row.high], [place, place], color=color, linewidth=2, marker="|")
        axes.plot([row.value], [place], color=color, marker="o")
    axes.set_yticks(range(len(known)), [plain(row.label) for row in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.set_title(plain(title), fontsize=LETTERS)
    axes.set_xlabel(plain(x_label), fontsize=LETTERS)
    axes.tick_params(labelsize=LETTERS - 1)
    axes.grid(alpha=0.3, axis="x")
    return drawn(axes)
