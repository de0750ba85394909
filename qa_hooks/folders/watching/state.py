"""What a watcher remembers: the values of each step and the best one; from its file a watcher that was killed goes on.

LOG_DIR/watch.json     every step's values
LOG_DIR/best.json      the best step and its files
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qa_hooks._base.files import write_text
from qa_hooks._base.headers import parse_header

FORMAT, VERSION = "qa_hooks.watch", 1


class Goal(NamedTuple):
    """What makes a step the best: the value that counts, its direction, and whether it depends on the number of images
    (a distance does), so that steps of different numbers cannot be compared by it."""

    key: str
    higher: bool
    of_a_set: bool


class State:
    """Values by step, and the best step by a goal.

    Args:
        log_dir: where the files are.
        settings: what the values depend on; a state of other settings is refused.
        goal: see there.
        tell: takes a message to be said once.

    Raises:
        ValueError: the folder holds the state of a watch with other settings, or something else.
    """

    def __init__(self, log_dir: Path, settings: Mapping[str, Any], goal: Goal, tell: Callable[[str], None]) -> None:
        self.path, self.best_path = log_dir / "watch.json", log_dir / "best.json"
        self.settings, self.goal, self.tell = dict(settings), goal, tell
        self.steps: dict[int, dict[str, float]] = {}
        self.best: dict[str, Any] | None = None
        if self.path.is_file():
            self._load()

    def add(self, step: int, values: dict[str, float], files: list[str]) -> None:
        """Remember a step; when it is the best so far, best.json says so."""
        before, self.steps[step] = self.best, values
        steps = {
            step: {key: value if math.isfinite(value) else None for key, value in values.items()}
            for step, values in sorted(self.steps.items())
        }
        state = {"format": FORMAT, "version": VERSION, "settings": self.settings, "steps": steps}
        try:
            if self._consider(step):
                self.write_best(files)
            write_text(self.path, json.dumps(state, indent=1))
        except OSError:  # a full disk: what is not on it is not remembered, and is tried again
            del self.steps[step]
            self.best = before
            raise

    def best_is_written(self) -> bool:
        """Whether best.json says the same: it does not after a change of the goal, or when it got lost."""
        try:
            written = parse_header(self.best_path.read_text(encoding="utf-8"))
            return all(written.get(key) == value for key, value in (self.best or {}).items())
        except (OSError, ValueError, AttributeError):
            return False

    def write_best(self, files: list[str]) -> None:
        """best.json, with the files of the step."""
        write_text(self.best_path, json.dumps({**(self.best or {}), "files": files}, indent=1))

    def _load(self) -> None:
        try:
            state = parse_header(self.path.read_text(encoding="utf-8"))
            known = state["format"] == FORMAT and state["version"] == VERSION
            settings, steps = state["settings"], {int(step): dict(v) for step, v in state["steps"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path} is not the state of a watch: {error}") from error
        different = sorted(k for k in {*settings, *self.settings} if settings.get(k) != self.settings.get(k))
        if not known or different:
            raise ValueError(
                f"{self.path} belongs to a watch with other settings ({', '.join(different) or 'another version'}): "
                "choose another log_dir, values of two settings cannot be compared"
            )
        for step in sorted(steps):
            self.steps[step] = {key: math.nan if value is None else value for key, value in steps[step].items()}
            self._consider(step)

    def _consider(self, step: int) -> bool:
        """Whether the step is the best so far. Distances depend on n, so they are compared at the largest n only."""
        values, best, goal = self.steps[step], self.best, self.goal
        value, n = values.get(goal.key, math.nan), int(values["n"])
        if not math.isfinite(value):
            return False
        if best is not None and goal.of_a_set and best["n"] != n:
            self.tell(f"steps of other than {max(best['n'], n)} images are not compared by {goal.key}")
            if n < best["n"]:
                return False
            best = None
        better = best is None or (value > best["value"] if goal.higher else value < best["value"])
        if better:
            mode = "max" if goal.higher else "min"
            self.best = {"key": goal.key, "mode": mode, "step": step, "value": value, "n": n}
        return better
