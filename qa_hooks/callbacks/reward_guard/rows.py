"""The rows of one look: of all processes, in their order, of several steps."""

from __future__ import annotations

import torch

from qa_hooks._base.processes import gather_rows, is_distributed, shared
from qa_hooks.rewards.measures import Rows


def gathered_rows(rows: Rows) -> Rows:
    """The rows of all processes, in rank order; a process without images does not know the shapes of its rows."""
    if not is_distributed():
        return dict(rows)
    described = {key: (row.dtype, row.shape[1:]) for key, row in rows.items()}
    found = {}
    for key, (kind, shape) in shared(described).items():  # rank 0 always has some
        found[key] = gather_rows(rows[key] if key in rows else torch.zeros(0, *shape, dtype=kind, device="cpu"))
    return found


def in_order(rows: Rows) -> Rows:
    """The rows sorted by position; where all processes begin at 0, the first rows of all processes come first."""
    if not rows:
        return {}
    order = rows.pop("position").argsort(stable=True)
    return {key: row[order] for key, row in rows.items()}


def joined_rows(before: Rows, rows: Rows) -> Rows:
    """One after the other; `ValueError` where their thumbnails differ in size."""
    if not (before and rows):
        return before or rows
    for key in ("pictures", "bases"):
        if key in rows and rows[key].shape[1:] != before[key].shape[1:]:
            got, expected = tuple(rows[key].shape[1:]), tuple(before[key].shape[1:])
            raise ValueError(f"images of one look must be of one size, got {got} after {expected} (thumbnails)")
    return {key: torch.cat([before[key], row]) for key, row in rows.items() if key in before}
