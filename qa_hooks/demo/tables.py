"""Markdown tables of results over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any


def mean_std(values: Sequence[float], places: int = 2) -> str:
    """Mean and sample deviation with so many places; the mean alone of one value.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        '2.00 ± 1.00'
    """
    spread = f" ± {stdev(values):.{places}f}" if len(values) > 1 else ""
    return f"{mean(values):.{places}f}{spread}"


def write_table(head: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Rows as a Markdown table.

    Example:
        >>> print(write_table(["a", "b"], [[1, 2]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = ["| " + " | ".join(str(cell) for cell in line) + " |" for line in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])
