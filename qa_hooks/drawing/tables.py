"""Tables for a terminal: columns that line up, and numbers with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qa_hooks.functional.intervals import Interval


def text_table(rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    """Rows of cells that line up, the first row a heading: all to the left, but `numbers` after the first column.

    Example:
        >>> print(text_table([["", "A"], ["fd", "1.5"]]))
              A
        fd  1.5
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [
            cell.rjust(width) if numbers else cell.ljust(width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def interval_text(interval: Interval | tuple[float, float, float]) -> str:
    """`value [low, high]`, as exact as the interval's width makes sense of; `value [unknown]` without an interval.

    Example:
        >>> interval_text(Interval(12.34567, 12.1, 12.6))
        '12.35 [12.10, 12.60]'
    """
    value, low, high = interval
    width = high - low
    if math.isnan(width):
        return f"{value:.4g} [unknown]"
    if not 0 < width < float("inf"):
        return f"{value:.4g} [{low:.4g}, {high:.4g}]"
    digits = 0
    while digits < 8 and width * 10**digits < 10:
        digits += 1
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
