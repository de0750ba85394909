"""Results that are on disk as soon as they are known: work that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.files import check_writable, write_text
from qa_hooks.images import load_image, save_image


class Results:
    """Named results in `folder/results.json`.

    Args:
        folder: made if it is not there.
        settings: what the results depend on, as JSON takes it.

    Raises:
        ValueError: the folder holds results of other settings, or something else.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        check_writable(folder, name="--out")
        self.path, self.settings = Path(folder) / "results.json", json.loads(json.dumps(settings))
        self.found: dict[str, Any] = {}
        if not self.path.exists():
            return
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            before, self.found = stored["settings"], dict(stored["found"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is not a file of results as this command writes it: choose another --out"
            ) from error
        changed = [key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key)]
        if changed:
            words = ", ".join(f"{key} {before.get(key)!r}, now {self.settings.get(key)!r}" for key in sorted(changed))
            raise ValueError(f"{self.path} has results of other settings ({words}): choose another --out")

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, result: Any) -> None:
        """Keep a result, replacing one of this name; the file is never half written."""
        text = json.dumps({"settings": self.settings, "found": {**self.found, name: result}}, indent=1)
        self.found = json.loads(text)["found"]  # as it will be read again
        write_text(self.path, text + "\n")


def results_of(args: argparse.Namespace, *, without: Sequence[str]) -> Results:
    """Results in `args.out` that depend on all arguments but some, and on the version of torch.

    Args:
        without: what may differ between two calls of one experiment: which runs are wanted, how many at a time.

    Raises:
        SystemExit: as of a wrong argument, where the folder has results of others.
    """
    given = {key: value for key, value in vars(args).items() if key not in ("out", "jobs", *without)}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    try:
        return Results(args.out, {**settings, "torch": torch.__version__})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def save_column(images: Sequence[Tensor], path: Path) -> None:
    """Images `(C, S, S)`, uint8, one above the other as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat(list(images), 1), path)


def load_column(path: Path) -> list[Tensor]:
    """What `save_column` wrote."""
    column = load_image(path)
    return list(column.split(column.shape[2], 1))
