"""AIGCIQA2023 as it is published: a .mat file for each of three ratings, in the order of a picture index beside them.

mosz1.mat    quality           one column, 2400 numbers
mosz2.mat    authenticity
mosz3.mat    correspondence
index.txt    a row a picture, without a header: its name, and the prompt where the file has it (.txt, .csv, .xlsx)
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from qa_hooks.ratings.rows import is_image, is_number, read_table
from qa_hooks.ratings.tables import Ratings
from qa_hooks.ratings.workbooks import matlab_column

FILES = {"quality": "mosz1", "authenticity": "mosz2", "correspondence": "mosz3"}
TABLES = (".txt", ".csv", ".xlsx")


def is_aigciqa(path: Path) -> bool:
    """A .mat file, or a folder of them."""
    if path.is_dir():
        return any(file.suffix.lower() == ".mat" for file in path.iterdir())
    return path.suffix.lower() == ".mat"


def read_aigciqa(path: Path, rating: str | None) -> Ratings:
    """The ratings of one .mat file, or of the one that `rating` names in a folder ("quality" without it).

    Raises:
        ValueError: no such rating, a file that says another one, no index of as many pictures.
    """
    if rating is not None and rating not in FILES:
        raise ValueError(f"aigciqa-2023 has the ratings {', '.join(FILES)}, got rating={rating!r}")
    if path.is_dir():
        wanted = rating or "quality"
        found = [file for file in sorted(path.iterdir()) if _rating_of(file) == wanted]
        if len(found) != 1:
            raise ValueError(f"{path} must hold one {FILES[wanted]}.mat ({wanted}), it holds {len(found)}")
        path = found[0]
    which = _rating_of(path)
    if not which:
        raise ValueError(f"{path}: its name must say which rating it holds: {', '.join(FILES.values())}.mat")
    if rating is not None and rating != which:
        raise ValueError(f"{path} holds {which}, got rating={rating!r}")
    values = matlab_column(path)
    names, prompts = _index(path, len(values))
    return Ratings(
        names, torch.tensor(values, dtype=torch.float64, device="cpu"), True,
        f"mean opinion of {which}, z-scored and rescaled", "aigciqa-2023", prompt=prompts, content=prompts,
        kind=[PurePosixPath(name).parent.name for name in names] if all("/" in name for name in names) else [],
    )  # fmt: skip


def _rating_of(path: Path) -> str:
    if path.suffix.lower() != ".mat":
        return ""
    lowered = path.stem.lower()
    return next((name for name, file in FILES.items() if file in lowered or name in lowered), "")


def _index(path: Path, count: int) -> tuple[list[str], list[str]]:
    """Names and prompts from the one table beside the file that names so many pictures."""
    beside = [file for file in sorted(path.parent.iterdir()) if file.suffix.lower() in TABLES]
    fitting = {}
    for file in beside:
        table = read_table(file)
        if len(table.rows) == count and any(is_image(field) for field in table.rows[0]):
            fitting[file] = table
    if len(fitting) != 1:
        told = ", ".join(file.name for file in fitting or beside) or "nothing"
        raise ValueError(
            f"{path} has {count} ratings and no names: beside it must stand one index (.txt, .csv, .xlsx) of {count} "
            f"pictures, found {told}"
        )
    rows = next(iter(fitting.values())).rows
    place = next(place for place, field in enumerate(rows[0]) if is_image(field))
    texts = [p for p, field in enumerate(rows[0]) if p != place and not is_number(field)]
    names = [row[place].replace("\\", "/") for row in rows]
    return names, [row[texts[-1]] for row in rows] if texts else []
