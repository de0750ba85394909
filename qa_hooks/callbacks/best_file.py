"""`best.json`: which checkpoints of a folder are the best, and the names that checkpoints have there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from qa_hooks._base.headers import parse_header

PENDING = "partial_best.json"  # a best.json that is about to hold
CHECKPOINT = re.compile(r"step_\d{8}[^/\\]*")  # the names that we give, and that may be deleted
LEFT_OVER = re.compile(r"partial_(old_)?step_\d{8}[^/\\]*|partial_best\.json")


def read_json(path: Path) -> dict[str, Any]:
    """What a `best.json` says; {} where there is none, `ValueError` where it is not one of ours."""
    if not path.exists():
        return {}
    try:
        found = parse_header(path.read_text())
        if not isinstance(found, dict) or not all({"step", "value", "path"} <= set(entry) for entry in found["kept"]):
            raise ValueError("it lacks metric, step, value or path")
        names = [str(name) for name in (*(entry["path"] for entry in found["kept"]), *found.get("leaving", []))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by BestCheckpoint, or is damaged: {error}") from error
    strange = [name for name in names if not CHECKPOINT.fullmatch(name)]
    if strange:  # what it names would be deleted one day
        raise ValueError(f"{path} names {strange[0]!r}, which is no checkpoint of BestCheckpoint (step_00001000...)")
    return found


def read_best(folder: Path) -> dict[str, Any]:
    """What `best.json` says, without checkpoints that somebody has removed; {} where there is none."""
    found = read_json(folder / "best.json")
    if found:
        found["kept"] = [entry for entry in found["kept"] if (folder / entry["path"]).exists()]
    return found


def check_wrote(path: Path) -> None:
    """`ValueError` unless there is a checkpoint at the path that `save` was given."""
    if not path.exists():
        raise ValueError(f"save(path) wrote nothing at {path}; it must write to exactly the path it is given")


def remove(path: Path) -> None:
    """Remove a checkpoint, a file or a folder; one that is gone is no error."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
