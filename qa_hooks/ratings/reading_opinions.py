"""One file of opinions, whichever of the two tables it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from qa_hooks.ratings.reading import read_ratings
from qa_hooks.ratings.reading_preferences import read_preferences
from qa_hooks.ratings.rows import WORKBOOKS, is_image, read_table
from qa_hooks.ratings.tables import Preferences, Ratings


def read_opinions(
    path: str | Path,
    format: str = "auto",
    *,
    images: str | Path | None = None,
    rating: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    higher_is_better: bool | None = None,
    split: str | None = None,
) -> Ratings | Preferences:
    """Read ratings or, where the file holds judged pairs, preferences; several raters' preferences by majority.

    Args:
        path, format, images, rating, columns, higher_is_better: as in `read_ratings`.
        split: only the images of this split.

    Raises:
        ValueError: options that the file has no use for, a split that it does not have, and what `read_ratings` and
            `read_preferences` raise.
    """
    path = Path(path)
    if _holds_preferences(path) and columns is None:
        given = {"rating": rating, "higher_is_better": higher_is_better, "split": split}
        if needless := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{path} holds pairs, which have no {', '.join(needless)}: leave it out")
        return read_preferences(path, format, images=images, majority=True)
    ratings = read_ratings(
        path, format, images=images, rating=rating, columns=columns, higher_is_better=higher_is_better
    )
    if split is None:
        return ratings
    if split not in ratings.split:
        there = ", ".join(sorted(set(ratings.split))) or "none"
        raise ValueError(f"{path} has no split {split!r}; its splits are {there}")
    return ratings.select(torch.tensor([own == split for own in ratings.split], device="cpu", dtype=torch.bool))


def _holds_preferences(path: Path) -> bool:
    """By the suffix, or by the columns of a table."""
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        return bool(inside) and inside[0].suffix.lower() in (".json", ".parquet") and _holds_preferences(inside[0])
    if path.suffix.lower() in (".json", ".parquet"):
        return True
    if path.suffix.lower() not in (".csv", ".txt", ".tsv", *WORKBOOKS) or not path.is_file():
        return False
    table = read_table(path)
    three_images = len(table.rows[0]) == 6 and all(is_image(field) for field in table.rows[0][:3])
    return table.has("image_a", "image_b", "label") or (not table.header and three_images)
