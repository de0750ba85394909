"""Short names for folders that are shown side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def labels(roots: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart.

    Example:
        >>> labels([Path("runs/a/samples"), Path("runs/b/samples")])
        ['a/samples', 'b/samples']
    """
    parts = [root.resolve().parts for root in roots]
    if len(set(parts)) < len(parts):
        raise ValueError(f"one folder is given twice: {', '.join(map(str, roots))}")
    length = 1
    while len({part[-length:] for part in parts}) < len(parts):
        length += 1
    return ["/".join(part[-length:]) for part in parts]
