"""Markdown tables of results over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any


def mean_std(values: Sequence[float]) -> str:
    """Mean and sample deviation; the mean alone of one value.

    Example:
        >>> mean_std([1.0, 2.0, 3.0])
        '2.00 ± 1.00'
    """
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


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
