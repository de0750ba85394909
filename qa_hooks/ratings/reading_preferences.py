"""Read people's preferences: which of two images is better."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.preference_forms import from_json, from_parquet, from_text
from qa_hooks.ratings.tables import Preferences

LOG = logging.getLogger("qa_hooks")
KINDS = (".json", ".csv", ".txt", ".parquet")


def read_preferences(
    path: str | Path, format: str = "auto", *, images: str | Path | None = None, majority: bool = False
) -> Preferences:
    """Read pairs that people judged; the first ones are logged with what they were taken for.

    Args:
        path: a file of ImageReward, HPD (v1, v2), Pick-a-Pic or DiffIQA; a CSV with the columns image_a, image_b and
            label (positive where a is better, negative where b is, 0 for a tie; `rater` and `content` where known); or
            a folder of such files.
        format: "auto", or "imagereward", "hpd", "diffiqa" for a JSON file, "pairs" or "diffiqa" for a table,
            "pick-a-pic" for Parquet.
        images: the folder that holds the images.
        majority: one row a pair: what most raters said; dropped where they cannot be told apart.

    Raises:
        ValueError: an unknown form, broken entries, images outside their folder or mostly missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "pairs.csv"
        >>> _ = path.write_text("image_a,image_b,label\\na.png,b.png,1\\nc.png,d.png,0\\n")
        >>> read_preferences(path).labels
        tensor([1., 0.])
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in KINDS and not p.name.startswith("."))
    if not files or not files[0].is_file():
        raise ValueError(f"{path} does not exist" if not path.is_dir() else f"{path} holds no {', '.join(KINDS)} files")
    parts = [_reader(file, format)(file) for file in files]
    if len({part.format for part in parts}) > 1:
        raise ValueError(f"{path} holds several forms: {', '.join(sorted({part.format for part in parts}))}")
    found = replace(parts[0], pairs=[pair for part in parts for pair in part.pairs])
    if not found.pairs:
        raise ValueError(f"{path} holds no pairs")
    if majority:
        found = found.majority()
    if images is not None:
        found = replace(found, images=dict(zip(found.names, find_images(found.names, images), strict=True)))
    LOG.warning("%s", found) if format == "auto" else LOG.info("%s", found)
    return found


def _reader(path: Path, format: str) -> Callable[[Path], Preferences]:
    if path.suffix.lower() == ".parquet":
        return lambda file: from_parquet(file, format)
    if path.suffix.lower() == ".json":
        return lambda file: from_json(file, format)
    return lambda file: from_text(file, format)
