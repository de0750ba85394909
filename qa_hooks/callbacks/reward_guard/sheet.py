"""The picture of an alarm: the worst samples of each kind that was found, and under them what they were before."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qa_hooks.drawing.contact_sheet import CARD_COLUMNS, card_sheet
from qa_hooks.rewards.alarm_rule import KINDS, Finding
from qa_hooks.rewards.measures import Rows

SHOWN = CARD_COLUMNS


def alarm_sheet(found: Sequence[Finding], rows: Rows, pictures: Tensor, before: Tensor | None = None) -> Tensor:
    """Draw the sheet of an alarm.

    Args:
        found: each is a heading.
        rows: what was measured, one row for each sample.
        pictures, before: `(n, C, h, w)` uint8; the samples and, if known, the base's images of the same inputs.

    Returns:
        uint8 `(3, H, W)`.
    """
    shown: list[Tensor | None] = []
    labels: list[str] = []
    for finding in found:
        values, chosen = worst_samples(finding.kind, rows, low=finding.low)
        shown += [None, *pictures[chosen]]
        order = "lowest first" if finding.low else "highest first"
        labels += [f"{finding}; {order}", *(f"#{i}\n{float(values[i]):.3g}" for i in chosen.tolist())]
        if before is not None:
            shown += [None, *before[chosen]]
            labels += ["the same inputs before", *(f"#{i}" for i in chosen.tolist())]
    return card_sheet(shown, labels)


def worst_samples(kind: str, rows: Rows, *, low: bool) -> tuple[Tensor, Tensor]:
    """Values by sample and the positions of the worst; for want of diversity, those nearest to another sample.

    Args:
        kind: what was found.
        rows: one for each sample.
        low: the low values are the bad ones.

    Example:
        >>> worst_samples("dark", {"dark": torch.tensor([0.1, 0.9, 0.5])}, low=False)[1]
        tensor([1, 2, 0])
    """
    if KINDS[kind].low:
        distances = torch.cdist(rows["features"], rows["features"]).fill_diagonal_(math.inf)
        values = distances.min(1).values
        return values, values.argsort()[:SHOWN]
    values = rows["score" if kind == "gain" else kind]
    last = math.inf if low else -math.inf
    return values, torch.nan_to_num(values, last).argsort(descending=not low)[:SHOWN]
