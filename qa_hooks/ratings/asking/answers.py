"""The file of answers: a CSV to which each answer is added, and on disk before the next question is asked.

A row is written in one call and synchronised. A process that is killed in the middle of it leaves a part of a row,
which nobody was told had been kept: it is cut off when the file is opened again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from qa_hooks._base.checks import warn
from qa_hooks._base.files import check_writable, whole_file
from qa_hooks.ratings.preference_forms import from_text
from qa_hooks.ratings.tables import Preference, Preferences

COLUMNS = ("image_a", "image_b", "label", "content", "rater", "left", "seconds")


class AnswerFile:
    """Answers in a CSV that `read_preferences` reads.

    Args:
        path: an existing file goes on.

    Attributes:
        rows: what is in the file, in its order.

    Raises:
        ValueError: the file is another table, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_writable(self.path.parent, name="output")
        if self.path.is_dir():
            raise ValueError(f"output must be a file such as pairs.csv, got the folder {str(path)!r}")
        if not self.path.is_file() or not self.path.stat().st_size:
            self._replace([_line(COLUMNS)])
        with self.path.open("rb") as file:  # before anything is repaired: the file may be somebody else's
            first = file.readline(4096).decode("utf-8-sig", "replace")
        header = tuple(next(csv.reader([first]), []))
        if header != COLUMNS:
            raise ValueError(
                f"{path} is no file of answers, and is left as it is: its first line is {first.strip()[:80]!r}, "
                f"expected {','.join(COLUMNS)}; choose another name"
            )
        self._repair()
        lines = self.path.read_text(encoding="utf-8-sig").splitlines()
        self.rows: list[Preference] = list(from_text(self.path, "auto")) if len(lines) > 1 else []

    def add(self, row: Preference, *, left: str, seconds: float) -> None:
        """Add an answer; when this returns it is on disk."""
        fields = (row.a, row.b, f"{row.better:g}", row.content, row.rater, left, f"{seconds:.2f}")
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        try:
            data = _line(fields).encode()
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        finally:
            os.close(handle)
        self.rows.append(row)

    def take_back(self) -> None:
        """Remove the last answer; the file is replaced as a whole."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        self._replace(lines[:-1])
        self.rows.pop()

    def _repair(self) -> None:
        """End a last row that lacks its line end, or cut off one that is not whole."""
        data = self.path.read_bytes()
        if data.endswith(b"\n"):
            return
        whole = data[: data.rfind(b"\n") + 1]
        last = data[len(whole) :].decode(errors="replace")
        fields = next(csv.reader([last]), [])
        if len(fields) == len(COLUMNS) and fields[-1]:
            self._replace([data.decode("utf-8-sig"), "\n"])
            return
        warn(f"{self.path}: its last row was not whole and is cut off: {last!r}")
        self._replace([whole.decode("utf-8-sig")])

    def _replace(self, lines: Iterable[str]) -> None:
        with whole_file(self.path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())


def self_agreement(preferences: Preferences) -> tuple[int, int]:
    """How often people said the same when they judged a pair again, and how often they judged one again.

    Example:
        >>> twice = [Preference("a", "b", 1.0, rater="anna"), Preference("b", "a", -1.0, rater="anna")]
        >>> self_agreement(Preferences(twice, "pairs"))
        (1, 1)
    """
    last: dict[tuple[str, str, str], float] = {}
    same = again = 0
    for pair in preferences:
        turned = pair.a > pair.b
        key = (pair.rater, *sorted((pair.a, pair.b)))
        said = -pair.better if turned else pair.better
        if key in last:
            again, same = again + 1, same + (last[key] == said)
        last[key] = said  # type: ignore[index]
    return same, again


def _line(fields: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()
