"""A table of scores while it is made: lines of JSON that grow, and at the end the CSV with the JSON beside it.

    scores.csv.rows0   {"format": "qa_hooks.scores", "folder": ...}            the first line: what the table is of
                       {"path": "a.png", "file": [...], "rows": [["5.5"]]}     a line for each image, with all its tiles
                       {"path": "b.png", "file": [...], "rows": [], "problem": "..."}
    scores.csv.rows1   the lines of the second process, and so on

A line is whole or it is not, so a process may be killed at any time. The CSV appears at the end, whole; an older CSV
stays in its place until then. Beside it `scores.csv.begun0` names what a process is at work on
(`qa_hooks.folders.scoring.journal`); an image at which processes die gets a line with "left_out", and is not tried
again while its file stays as it is.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from qa_hooks._base.checks import warn
from qa_hooks._base.files import whole_file, write_text
from qa_hooks._base.headers import json_lines
from qa_hooks._base.text import plural, safe_cell, true_cell
from qa_hooks.folders.scoring.journal import DEATHS, LEFT_OUT, keep_suspects, left_behind
from qa_hooks.folders.scoring.score_table import (
    TEXT,
    TILE_COLUMNS,
    begun_path,
    column_names,
    growing_path,
    read_spec,
    spec_path,
)

Line = dict[str, Any]  # {"path", "file", "rows", maybe "problem", maybe "left_out"}
# What two runs on one table must agree in; the last three are of folders of Parquet files alone.
SAME = ("folder", "scorers", "tiles", "overlap", "reference", "grid", "column", "shard_size", "qa_hooks")


class GrowingTable:
    """One table that is being made; `spec` is what its JSON says (`qa_hooks.folders.scoring.score_table`)."""

    def __init__(self, path: str | Path, spec: Mapping[str, Any]) -> None:
        self.path, self.spec = Path(path), dict(spec)
        self.tiled = bool(spec["tiles"])
        self.header = ["path", *(TILE_COLUMNS if self.tiled else ()), *column_names(spec)]
        if len(set(self.header)) < len(self.header):
            raise ValueError(f"the columns of the table must differ, got {', '.join(self.header)}")

    def start(self, current: Mapping[str, Sequence[int]], *, resume: bool) -> None:
        """Take over what an earlier run has left, or begin; on rank 0, before the others look.

        Args:
            current: path -> size and times of its file (`file_state`), or nothing where the path is the content. Rows
                of images that are gone or have changed are dropped; no clock is asked.
            resume: False drops what is there.
        """
        old = left_spec(self.path) if resume else None
        if resume and old is None and self.path.exists() and self.path.stat().st_size:
            raise ValueError(
                f"{self.path} exists and is no table of qa_hooks (no {spec_path(self.path).name} beside it): choose "
                "another output, or replace it with resume=False"
            )
        lines = GrowingTable(self.path, old)._left() if old is not None else {}
        if old is not None and lines:
            refuse_other_settings(self.path, old, self.spec)
            since = float(old["started"])
            lines = {name: line for name, line in lines.items() if _is_same(line, current.get(name), since)}
        suspects = self._suspects(current, lines) if resume else {}
        self.spec["started"] = time.time()
        with whole_file(growing_path(self.path)) as partial, partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in (self.spec, *lines.values()))
        for part in (*self._beside("rows")[1:], *self._beside("part"), *self._beside("failed"), *self._beside("begun")):
            part.unlink()
        keep_suspects(begun_path(self.path), suspects)

    def _suspects(self, current: Mapping[str, Sequence[int]], lines: dict[str, Line]) -> dict[str, int]:
        """The images at one of which an earlier run may have died; those at which it did get their line."""
        deaths: dict[str, int] = {}
        for part in self._beside("begun"):
            deaths |= left_behind(part)
        suspects = {}
        for name in current if deaths else ():
            key = journal_key(name, current[name])
            if key not in deaths or (name in lines and _is_done(lines[name])):
                continue
            if deaths[key] < DEATHS:
                suspects[key] = deaths[key]
            else:
                rows = lines[name]["rows"] if name in lines else []
                lines[name] = json.loads(image_line(name, current[name], rows, LEFT_OUT)) | {"left_out": True}
        if suspects:
            warn(
                f"an earlier run of {self.path} was killed while it worked on {plural(len(suspects), 'image')}: they "
                f"are scored one by one, and one at which the process is killed {DEATHS} times is left out"
            )
        return suspects

    def done(self) -> set[str]:
        """The paths that need no scoring any more; an image that one of several scorers could not score is not one."""
        lines = {line["path"]: line for line in self._lines()}  # the last line of an image counts
        return {name for name, line in lines.items() if _is_done(line)}

    def suspects(self) -> set[str]:
        """The images that are to be scored one by one, by `journal_key`."""
        return set(left_behind(begun_path(self.path)))

    def appender(self, rank: int) -> TextIO:
        """This process's own file, open for lines of `image_line`; the caller flushes."""
        return growing_path(self.path, rank).open("a", encoding="utf-8")

    def finish(self, expected: Iterable[str]) -> None:
        """Write the table, sorted by path, and drop the lines; on rank 0, when all have written.

        Raises:
            ValueError: not one image could be scored; then nothing is written, and nothing is left behind.
        """
        lines = {line["path"]: line for line in self._lines()}
        failures = {name: line["problem"] for name, line in sorted(lines.items()) if "problem" in line}
        scored = [line for _, line in sorted(lines.items()) if line["rows"]]
        if scored:
            files = {line["path"]: " ".join(map(str, line["file"])) for line in scored if line.get("file")}
            self.spec.update(complete=all(name in lines for name in expected), failures=failures, files=files)
            left_out = {name: line["file"] for name, line in sorted(lines.items()) if line.get("left_out")}
            self.spec.pop("left_out", None)
            self.spec |= {"left_out": left_out} if left_out else {}
            with whole_file(self.path) as partial, partial.open("w", **TEXT) as file:
                file.write(csv_line(self.header))
                file.writelines(csv_line([line["path"], *row]) for line in scored for row in line["rows"])
            write_text(spec_path(self.path), json.dumps(self.spec, indent=1) + "\n")
        for part in (*self._beside("begun"), *reversed(self._beside("rows"))):
            part.unlink()
        if not scored:
            first = next(iter(failures.items()), ("", "no image was left"))
            raise ValueError(
                f"none of {plural(len(lines), 'image')} could be scored; the first, {first[0]}: {first[1]}"
            )

    def _lines(self) -> Iterator[Line]:
        """The images of all processes; the first line of the first file, which has no path, is the spec."""
        return (line for file in self._beside("rows") for line in json_lines(file) if "path" in line)

    def _left(self) -> dict[str, Line]:
        """The images that an earlier run with this spec has scored, by path."""
        if growing_path(self.path).is_file():
            return {line["path"]: line for line in self._lines() if line["rows"] or line.get("left_out")}
        complete, failures = self.spec.get("complete", False), self.spec.get("failures", {})
        files = self.spec.get("files", {})
        lines: dict[str, Line] = {}
        for part in (self.path, *self._beside("part")):
            for name, rows in self._csv_rows(part, whole=complete).items():
                lines[name] = {
                    "path": name,
                    "rows": rows,
                    "file": [int(number) for number in files.get(name, "").split()],
                }
                if name in failures:
                    lines[name]["problem"] = failures[name]
        for name, file in self.spec.get("left_out", {}).items():
            rows = lines[name]["rows"] if name in lines else []
            why = failures.get(name, LEFT_OUT)
            lines[name] = {"path": name, "file": file, "rows": rows, "problem": why, "left_out": True}
        return lines

    def _csv_rows(self, path: Path, *, whole: bool) -> dict[str, list[list[str]]]:
        """Rows by image of a CSV. Version 0.1 let the CSV itself grow: then the last image may be torn, and is left."""
        text = path.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff") if path.is_file() else ""
        text = text[: text.rfind("\n") + 1]
        rows: list[list[str]] = []
        try:
            rows.extend(csv.reader(io.StringIO(text, newline=""), strict=True))
        except csv.Error:  # the file ends inside quotes
            whole = False
        if path == self.path and rows and rows[0] != self.header:
            raise ValueError(
                f"{path} was changed by another program: its first line is {','.join(rows[0])[:80]!r}, expected "
                f"{','.join(self.header)[:80]!r}: choose another output, or replace it with resume=False"
            )
        torn = rows[-1][:1] if rows and self.tiled and not whole else None
        found: dict[str, list[list[str]]] = {}
        for row in rows:
            if (
                row != self.header
                and len(row) == len(self.header)
                and row[:1] != torn
                and all(map(_is_number, row[1:]))
            ):
                image = found.setdefault(true_cell(row[0]), [])
                image[:] = [*(image if self.tiled else ()), row[1:]]
        return found

    def _beside(self, kind: str) -> list[Path]:
        """`scores.csv.rows0`, `scores.csv.rows1`, ... that exist, in the order of their numbers."""
        pattern = f"{glob.escape(self.path.name)}.{kind}[0-9]*"
        numbered = {path.suffix[len(kind) + 1 :]: path for path in self.path.parent.glob(pattern)}
        return [numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)]


def refuse_other_settings(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """`ValueError` that names what differs, unless rows of both runs may stand in one table."""

    def described(spec: Mapping[str, Any], key: str) -> Any:
        if key != "scorers":
            return spec.get(key)
        return [f"{s['name']} [{s['fingerprint']}]" for s in spec[key]]

    differing = [key for key in SAME if described(old, key) != described(new, key)]
    if differing:
        told = "; ".join(f"{key} was {described(old, key)}, is now {described(new, key)}" for key in differing)
        raise ValueError(
            f"{path} cannot be continued with other settings: {told}. Choose another output, "
            "or start anew with resume=False"
        )


def left_spec(path: Path) -> Line | None:
    """The spec of the table at `path`, also while the table grows; None if there is no table."""
    growing = growing_path(path)
    first = next(json_lines(growing), None) if growing.is_file() else None
    return first if first is not None else read_spec(path)


def journal_key(name: str, file: Sequence[int]) -> str:
    """What a journal calls an image: another file of the same name is not what an earlier run died of.

    Example:
        >>> journal_key("a.png", [])
        'a.png'
    """
    return " ".join([name, *map(str, file)])


def _is_done(line: Line) -> bool:
    return bool(line.get("left_out") or (line["rows"] and "problem" not in line))


def _is_same(line: Line, now: Sequence[int] | None, since: float) -> bool:
    """Whether the image is there and as it was; version 0.1 noted no more than the time at which its run began."""
    if now is None:
        return False
    if line.get("file"):
        return bool(list(now) == line["file"])
    return max(now[1:], default=0) / 1e9 <= since


def image_line(name: str, file: Sequence[int], rows: Iterable[Iterable[Any]], problem: str = "") -> str:
    """The line of an image: the state of its file, its CSV rows without the path, and what went wrong with it."""
    line: Line = {"path": name, "file": list(file), "rows": [[str(cell) for cell in row] for row in rows]}
    return json.dumps({**line, "problem": problem} if problem else line) + "\n"


def csv_line(row: Iterable[Any]) -> str:
    """One CSV record with its line end."""
    text, fields = io.StringIO(newline=""), [cell if _is_number(cell) else safe_cell(str(cell)) for cell in row]
    # Older versions of Python leave a lone carriage return unquoted and stumble over it when they read.
    whole = any("\r" in str(value) for value in fields)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if whole else csv.QUOTE_MINIMAL).writerow(fields)
    return text.getvalue()


def _is_number(cell: Any) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def number(value: float) -> str:
    """The shortest decimal that gives the float32 back.

    Example:
        >>> number(0.1), number(float("nan"))
        ('0.1', 'nan')
    """
    return str(np.float32(value))
