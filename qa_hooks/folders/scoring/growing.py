"""The files of one table of scores while it is made: what is there, what is appended, and the merge at the end."""

from __future__ import annotations

import csv
import glob
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from qa_hooks._base.files import whole_file, write_text
from qa_hooks.folders.scoring.score_table import TEXT, TILE_COLUMNS, read_spec, spec_path

Rows = dict[str, list[list[str]]]


class ScoreFile:
    """One table that is being made; `spec` is what its JSON says (`qa_hooks.folders.scoring.score_table`)."""

    def __init__(self, path: str | Path, spec: Mapping[str, Any]) -> None:
        self.path, self.spec = Path(path), dict(spec)
        self.tiled = bool(spec["tiles"])
        names = [name for s in spec["scorers"] for name in (s["name"], *[f"{s['name']}_calibrated"] * s["calibrated"])]
        self.header = ["path", *(TILE_COLUMNS if self.tiled else ()), *names]
        if len(set(self.header)) < len(self.header):
            raise ValueError(f"the columns of the table must differ, got {', '.join(self.header)}")

    def start(self, current: Mapping[str, float], *, started: float, resume: bool) -> None:
        """Take over what an earlier run has left, or begin; on rank 0, before the others look.

        Args:
            current: path -> when the image was last changed. Rows of images that are gone, or that have changed since
                the earlier run began, are dropped.
            started: the time of this run, by the same clock.
            resume: False deletes what is there.
        """
        old = read_spec(self.path) if resume else None
        if resume and old is None and self.path.exists() and self.path.stat().st_size:
            raise ValueError(
                f"{self.path} exists and is no table of qa_hooks (no {spec_path(self.path).name} beside it): choose "
                "another output, or replace it with --overwrite (resume=False)"
            )
        rows: Rows = {}
        if old is not None:
            self._compare(old)
            for part in [self.path, *self._others("part")]:
                rows.update(self._whole_rows(part))
            since = float(old["started"])
            rows = {name: kept for name, kept in rows.items() if current.get(name, math.inf) <= since}
        self._write_spec(started=started, complete=False)
        self._replace(rows)

    def done(self) -> set[str]:
        """The paths that need no scoring any more."""
        return set(self._whole_rows(self.path, trusted=True))

    def appender(self, rank: int) -> TextIO:
        """This rank's own file, open for appending; the caller flushes after each image."""
        path = self.path if rank == 0 else self._beside(f"part{rank}")
        file: TextIO = path.open("a", **TEXT)
        return file

    def leave_failures(self, rank: int, failures: Mapping[str, str]) -> None:
        """Hand this rank's failures to rank 0."""
        self._beside(f"failed{rank}").write_text(json.dumps(dict(failures)), encoding="utf-8")

    def finish(self, expected: Iterable[str]) -> None:
        """Merge the parts, sort by path, and say that the table is complete; on rank 0, when all have written."""
        rows: Rows = {}
        for part in [self.path, *self._others("part")]:
            rows.update(self._whole_rows(part, trusted=True))
        failures: dict[str, str] = {}
        for part in self._others("failed"):
            failures.update(json.loads(part.read_text(encoding="utf-8")))
        self._replace(dict(sorted(rows.items())))
        complete = all(name in rows or name in failures for name in expected)
        self._write_spec(complete=complete, failures=dict(sorted(failures.items())))

    def _compare(self, old: Mapping[str, Any]) -> None:
        def described(spec: Mapping[str, Any], key: str) -> Any:
            if key != "scorers":
                return spec.get(key)
            return [f"{s['name']} [{s['fingerprint']}]" for s in spec[key]]

        keys = ("folder", "scorers", "tiles", "overlap", "reference")
        differing = [key for key in keys if described(old, key) != described(self.spec, key)]
        if differing:
            told = "; ".join(
                f"{key} was {described(old, key)}, is now {described(self.spec, key)}" for key in differing
            )
            raise ValueError(
                f"{self.path} cannot be continued with other settings: {told}. Choose another output, "
                "or start anew with --overwrite (resume=False)"
            )

    def _whole_rows(self, path: Path, *, trusted: bool = False) -> Rows:
        """Rows by image, without those that a killed process left half-written.

        With tiles the last image may lack some, so it is dropped too, unless the file is `trusted` to be whole.
        """
        rows: list[list[str]] = []
        if not path.is_file():
            return {}
        with path.open(**TEXT) as file:
            try:
                rows.extend(csv.reader(file, strict=True))
            except csv.Error:  # the file ends, or was torn, inside quotes
                trusted = False
        with path.open("rb") as raw:
            raw.seek(0, io.SEEK_END)
            if raw.tell():
                raw.seek(-1, io.SEEK_END)
                if raw.read(1) != b"\n" and rows:
                    rows.pop()
        last = rows[-1][0] if rows and rows[-1] else ""
        found: Rows = {}
        torn = {last} if self.tiled and not trusted else set()
        for row in rows:
            if row == self.header:
                continue
            if self._is_whole(row):
                found.setdefault(row[0], []).append(row)
            elif row:
                torn.add(row[0])
        return {name: kept for name, kept in found.items() if name not in torn}

    def _is_whole(self, row: list[str]) -> bool:
        try:
            return len([float(value) for value in row[1:]]) == len(self.header) - 1
        except ValueError:
            return False

    def _replace(self, rows: Rows) -> None:
        """Write the whole table anew; it appears whole or not at all. The parts are in it and go."""
        with whole_file(self.path) as partial, partial.open("w", **TEXT) as file:
            file.write(line(self.header))
            file.writelines(line(row) for tiles in rows.values() for row in tiles)
        for part in [*self._others("part"), *self._others("failed")]:
            part.unlink()

    def _write_spec(self, **facts: Any) -> None:
        self.spec.update(facts)
        write_text(spec_path(self.path), json.dumps(self.spec, indent=1) + "\n")

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{suffix}")

    def _others(self, kind: str) -> list[Path]:
        pattern = f"{glob.escape(self.path.name)}.{kind}[0-9]*"
        return sorted(path for path in self.path.parent.glob(pattern) if path.suffix[len(kind) + 1 :].isdigit())


def line(row: Iterable[Any]) -> str:
    """One CSV record with its line end."""
    text, fields = io.StringIO(newline=""), list(row)
    # Older versions of Python leave a lone carriage return unquoted and stumble over it when they read.
    whole = any("\r" in str(value) for value in fields)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if whole else csv.QUOTE_MINIMAL).writerow(fields)
    return text.getvalue()


def number(value: float) -> str:
    """The shortest decimal that gives the float32 back.

    Example:
        >>> number(0.1), number(float("nan"))
        ('0.1', 'nan')
    """
    return str(np.float32(value))
