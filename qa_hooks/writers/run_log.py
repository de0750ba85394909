"""A run's values as lines of JSON: `metrics.jsonl`, beside the files of TensorBoard.

    {"step": 500, "tag": "qa_eval/fd_random_n=64/value", "value": 12.5, "low": 11.0, "high": 14.1}
    {"step": 500, "tag": "qa_loss/ssim/mean", "value": 0.25}

`low` and `high` are the ends of the 95 % interval, where a value has one. A value that is not finite is null.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from qa_hooks._base.files import whole_file

NAME = "metrics.jsonl"
Line = dict[str, Any]


class RunLog:
    """Appends to a run's `metrics.jsonl`; a run that goes on drops the lines that it makes again.

    Args:
        folder: of the run; it exists when the first value arrives.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / NAME
        self._begun = False
        self._pending: Line = {}  # a value whose interval may follow

    def scalar(self, tag: str, value: float, step: int) -> None:
        """A number; `.../low` and `.../high` join the value that came just before them."""
        base, _, stat = tag.rpartition("/")
        number = value if math.isfinite(value) else None
        if stat in ("low", "high") and (self._pending.get("step"), _base(self._pending)) == (step, base):
            self._pending[stat] = number
            return
        self._write()
        self._pending = {"step": step, "tag": tag, "value": number}

    def flush(self) -> None:
        """Put on disk what is pending."""
        self._write()

    def _write(self) -> None:
        if not self._pending:
            return
        line, self._pending = self._pending, {}
        if not self._begun:
            self._begun = True
            self._drop_from(line["step"])
        with self.path.open("a", encoding="utf-8") as file:  # a line is on disk when the run is killed
            file.write(json.dumps(line) + "\n")

    def _drop_from(self, step: int) -> None:
        """Leave out what this run makes again, and a line that was left half-written."""
        kept = [line for line in _lines(self.path) if line["step"] < step] if self.path.exists() else []
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")


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
    for line in sorted(_lines(path), key=lambda line: int(line["step"])):
        found.setdefault(line.pop("tag"), []).append(line)
    return found


def _base(line: Line) -> str:
    return str(line.get("tag", "")).rpartition("/")[0]


def _lines(path: Path) -> list[Line]:
    """The whole lines; a line that a killed run left half-written is none."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("tag"), str):
            lines.append(line)
    return lines
