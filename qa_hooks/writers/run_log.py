"""A run's values as lines of JSON: `metrics.jsonl`, beside the files of TensorBoard.

    {"step": 500, "tag": "qa_eval/fd_random_n=64/value", "value": 12.5, "low": 11.0, "high": 14.1}
    {"step": 500, "tag": "qa_loss/ssim/mean", "value": 0.25}

`low` and `high` are the ends of the 95 % interval, where a value has one. A value that is not finite is null. A line
may have "about": what the tag's values are, from this step on (the fields of `Meaning` that are not empty). Lines are
only added: a run that goes on makes some steps again, and of a tag's lines a later one with the same or an earlier step
replaces those from that step on. `read_run_log` does that.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from qa_hooks._base.headers import json_lines
from qa_hooks.writers.meaning import Meaning

NAME = "metrics.jsonl"
Line = dict[str, Any]


class RunLog:
    """Appends to a run's `metrics.jsonl`. A value is written when it is known that no interval follows it.

    Args:
        folder: of the run; it exists when the first value arrives.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME
        self.has_earlier = self.path.is_file() and self.path.stat().st_size > 0  # values of a run before this one
        self._begun = False
        self._pending: Line = {}  # a value whose interval may follow

    def scalar(self, tag: str, value: float, step: int, about: Meaning | None = None) -> None:
        """A number, and what it is; `.../low` and `.../high` join the value that came just before them."""
        base, _, stat = tag.rpartition("/")
        number = value if math.isfinite(value) else None
        if stat in ("low", "high") and (self._pending.get("step"), _base(self._pending)) == (step, base):
            self._pending[stat] = number
            return
        self._write()
        self._pending = {"step": step, "tag": tag, "value": number}
        if about is not None:
            self._pending["about"] = about.to_json()

    def flush(self) -> None:
        """Put on disk what is pending."""
        self._write()

    def _write(self) -> None:
        if not self._pending:
            return
        line, self._pending = self._pending, {}
        with self.path.open("a+b") as file:
            if not self._begun and file.tell():
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # what a killed run left half-written stays a line of its own
                    file.write(b"\n")
            self._begun = True
            file.write((json.dumps(line) + "\n").encode())


def read_run_log(folder: str | Path) -> dict[str, list[Line]]:
    """The values of a run by tag, in the order of their steps.

    Args:
        folder: the run's, which holds `metrics.jsonl`.

    Raises:
        ValueError: there is no such file.

    Example:
        >>> import tempfile
        >>> run = tempfile.mkdtemp()
        >>> log = RunLog(run)
        >>> for tag, value in (("qa_eval/fd/value", 12.5), ("qa_eval/fd/low", 11.0), ("qa_eval/fd/high", 14.1)):
        ...     log.scalar(tag, value, 500)
        >>> log.flush()
        >>> read_run_log(run)
        {'qa_eval/fd/value': [{'step': 500, 'value': 12.5, 'low': 11.0, 'high': 14.1}]}
    """
    path = Path(folder) / NAME
    if not path.is_file():
        raise ValueError(f"{folder} holds no {NAME}: it is no folder that Hooks(log_dir=...) or qa-hooks watch wrote")
    found: dict[str, list[Line]] = {}
    for line in _lines(path):
        lines = found.setdefault(line.pop("tag"), [])
        while lines and lines[-1]["step"] >= line["step"]:
            lines.pop()
        lines.append(line)
    return found


def _base(line: Line) -> str:
    return str(line.get("tag", "")).rpartition("/")[0]


def _lines(path: Path) -> list[Line]:
    lines = []
    for line in json_lines(path):
        numbers = isinstance(line, dict) and all(
            isinstance(line.get(key), int | float | None) for key in ("value", "low", "high")
        )
        if numbers and isinstance(line.get("step"), int) and isinstance(line.get("tag"), str):
            about = Meaning.from_json(line.pop("about", None))
            lines.append(line if about is None else {**line, "about": about})
    return lines
