"""In which direction a set's scores are better, told by the folders in the paths of its images.

A collection's table has one column of scores for every set. LIVE's and CSIQ's are differences to the reference (DMOS),
where lower is better; most other sets have mean opinions. Every folder of every path is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LOWER = ("live", "liveiqa", "liverelease2", "databaserelease2", "livemd", "csiq", "csiqiqa", "csiqdatabase")
HIGHER = (
    "livec", "clive", "livechallenge", "challengedb", "challengedbrelease", "livewild", "livefb", "flive", "paq2piq",
    "tid2008", "tid2013", "kadid", "kadid10k", "koniq", "koniq10k", "pipal", "spaq", "bid", "cid2013", "agiqa1k",
    "agiqa3k", "aigiqa20k", "aigciqa2023", "agin",
)  # fmt: skip
DIRECTIONS = {**dict.fromkeys(LOWER, False), **dict.fromkeys(HIGHER, True)}


def direction_of_paths(names: Sequence[str], references: Sequence[str], certain: bool = False) -> tuple[bool, str]:
    """Whether higher is better, and the names of the sets that the paths are of.

    Args:
        names: the paths of the images.
        references: the paths of their references, for each image.
        certain: the images' own names say that higher is better.

    Raises:
        ValueError: a path of no known set, or sets of both directions.

    Example:
        >>> direction_of_paths(["data/LIVE/jp2k/img1.bmp"], ["data/LIVE/refimgs/a.bmp"])
        (False, 'live')
    """
    sets: dict[str, bool] = {}
    unknown, first = [], ""
    for name, reference in zip(names, references, strict=True):
        folders = _folders(name) + _folders(reference)
        plain = {folder: re.sub("[^a-z0-9]", "", folder) for folder in folders}
        known = {folder: DIRECTIONS[key] for folder, key in plain.items() if key in DIRECTIONS}
        sets.update(known)
        first = first or (folders[0] if folders else "")
        if not known and not certain:
            unknown.append(name)
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is in the folder of no known set, and nothing says whether higher is better: say "
            "higher_is_better=True or False"
        )
    directions = {*sets.values(), True} if certain else set(sets.values())
    if len(directions) > 1:
        raise ValueError(
            f"scores of several directions in one table: of {', '.join(sets)} some are better lower. Divide the table, "
            "or say higher_is_better=True or False where the paths mislead"
        )
    return directions.pop(), " and ".join(sets) or first or "unknown folders"


def _folders(path: str) -> list[str]:
    parts = path.replace("\\", "/").lower().split("/")[:-1]
    return [part for part in parts if part not in ("", ".", "..")]
