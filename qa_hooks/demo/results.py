"""Results that are on disk as soon as they are known: work that was stopped goes on where it was."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from qa_hooks._base.files import check_writable, write_text
from qa_hooks.images import load_image, save_image


class OtherResultsError(ValueError):
    """The folder has results of something else."""


class Results:
    """Named results in `folder/results.json`, to which several processes may add.

    Args:
        folder: made if it is not there.
        settings: what the results depend on, as JSON takes it; they are in the file before the first result.

    Raises:
        OtherResultsError: the folder holds results of other settings, or something else.
    """

    def __init__(self, folder: str | Path, settings: dict[str, Any]) -> None:
        check_writable(folder, name="--out")
        self.path, self.settings = Path(folder) / "results.json", json.loads(json.dumps(settings))
        self.found: dict[str, Any] = {}
        if self.path.exists():
            self.found = self._read()
        else:
            self._write({})

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def add(self, name: str, result: Any) -> None:
        """Keep a result, replacing one of this name; the file is never half written, nor loses what others added."""
        result = json.loads(json.dumps(result))  # as it will be read again
        with FileLock(self.path.with_name(".results.lock"), timeout=60):
            self._write({**(self._read() if self.path.exists() else {}), **self.found, name: result})

    def _write(self, found: dict[str, Any]) -> None:
        write_text(self.path, json.dumps({"settings": self.settings, "found": found}, indent=1) + "\n")
        self.found = found

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            before, found = dict(stored["settings"]), dict(stored["found"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OtherResultsError(
                f"{self.path} is no file of results of this kind: choose another --out, or remove it to begin anew"
            ) from error
        changed = sorted(key for key in {*before, *self.settings} if before.get(key) != self.settings.get(key))
        if changed:
            words = ", ".join(f"{key} {before.get(key)!r}, now {self.settings.get(key)!r}" for key in changed)
            raise OtherResultsError(f"{self.path} has results of other settings ({words}): choose another --out")
        return found


def results_of(args: argparse.Namespace, *, without: Sequence[str]) -> Results:
    """Results in `args.out` that depend on all arguments but some, and on the version of torch.

    Args:
        args: of a command; folders count by where they are, and by the number and the size of their files.
        without: what may differ between two calls of one experiment: which runs are wanted, how many at a time.

    Raises:
        SystemExit: as of a wrong argument, where the folder has results of others or cannot be written.
    """
    given = {key: value for key, value in vars(args).items() if key not in ("out", "jobs", *without)}
    settings = {key: _named(value, args.out) for key, value in given.items()}
    try:
        return Results(args.out, {**settings, "torch": torch.__version__})
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def _named(value: Any, out: Path) -> Any:
    """A folder with what tells its files from others, cheaply, less what lies in `out`; anything else for JSON."""
    if not isinstance(value, str | Path) or not Path(value).is_dir():
        return str(value) if isinstance(value, Path) else value
    files = [file for file in Path(value).resolve().rglob("*") if file.is_file()]
    sizes = [file.stat().st_size for file in files if not file.is_relative_to(out.resolve())]
    return f"{Path(value).resolve()} ({len(sizes)} files, {sum(sizes)} bytes)"


def run_example(main: Callable[[], None]) -> None:
    """Run an example's `main`; Ctrl-C ends it with a sentence, and so does a file of an earlier call that is gone."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on") from None
    except FileNotFoundError as error:
        raise SystemExit(
            f"error: {error.filename or error} is missing. If an earlier call wrote it, results.json counts on it: "
            "choose another --out, or remove results.json to begin anew"
        ) from error


def save_column(images: Sequence[Tensor], path: Path) -> None:
    """Images `(C, S, S)`, uint8, one above the other as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.cat(list(images), 1), path)


def load_column(path: Path) -> list[Tensor]:
    """What `save_column` wrote."""
    column = load_image(path)
    return list(column.split(column.shape[2], 1))
