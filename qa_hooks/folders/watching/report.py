"""What a watcher writes and says: curves for TensorBoard, a line for each step, alarms, and remarks, each once.

LOG_DIR/events...      the curves
LOG_DIR/alarms.jsonl   a line for each alarm
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.text import plural
from qa_hooks.folders.watching.folder_guard import KEYS
from qa_hooks.writers import Meaning, TensorBoardWriter, make_tag

LOG = logging.getLogger("qa_hooks.watch")


class Report:
    """The curves and the words of one watch.

    Args:
        log_dir: where they go.
        name: of the run, where there are several; its lines and alarms begin with it.
    """

    def __init__(self, log_dir: Path, name: str = "") -> None:
        self.log_dir, self.prefix = log_dir, f"{name}: " if name else ""
        self.alarms: list[dict[str, Any]] = []
        self.scorers: list[str] = []
        self.metrics: dict[str, str] = {}  # value -> the name it is printed by: "kid" -> "kd_random"
        self.about: dict[str, Meaning] = {}  # what the value of a scorer or of a metric is
        self._writer = TensorBoardWriter(log_dir)
        self._described: set[str] = set()
        self._told: set[str] = set()
        self._written = False

    def write(self, step: int, values: dict[str, float], scores: Mapping[str, Tensor], past: Mapping[int, Any]) -> None:
        """A step's curves; `scores` has the scores of its images, `past` the values of other steps."""
        for name in self.scorers:
            finite = scores[name][scores[name].isfinite()]
            if len(finite):
                self._writer.histogram(make_tag("eval", name, "histogram"), finite, step)
        # The writer of a run that goes on has TensorBoard forget what comes after its first point.
        later = {} if self._written else {other: old for other, old in sorted(past.items()) if other > step}
        for other, old in {step: values, **later}.items():
            for tag, value, key in self._scalars(old):
                if not math.isfinite(value):
                    continue
                if key in self.about and tag not in self._described:
                    self._described.add(tag)
                    self._writer.describe(tag, self.about[key])
                self._writer.scalar(tag, value, other)
        self._written = True
        self._writer.flush()

    def line(self, step: int, values: dict[str, float], *, left_out: int, seconds: float) -> str:
        """The line about a step: its values, with how many real images they are made, and the seconds it took."""
        spread = "" if values["n"] < 2 else " (std {:.3g})"
        parts = [f"{name} {values[name]:.4g}" + spread.format(values[f"{name}_std"]) for name in self.scorers]
        for value, name in self.metrics.items():
            if value in values:
                low, high = values[f"{value}_low"], values[f"{value}_high"]
                real = f"({int(values[f'{value}_real'])} real)"
                parts.append(f"{name} {values[value]:.4g} [{low:.4g}, {high:.4g}] {real}")
        without = f", {left_out} left out" if left_out else ""
        seen = plural(int(values["n"]), "image")
        return f"{self.prefix}step {step}: {', '.join(parts)} ({seen}{without}, {seconds:.1f} s)"

    def alarm(self, step: int, key: str, message: str) -> None:
        """Raise the alarm."""
        alarm = {"step": step, "key": key, "message": message}
        self.alarms.append(alarm)
        LOG.warning("%sALARM at step %d: %s", self.prefix, step, message)
        with (self.log_dir / "alarms.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(alarm) + "\n")

    def tell(self, message: str) -> None:
        """Say a thing once."""
        if message not in self._told:
            self._told.add(message)
            LOG.warning("%s%s", self.prefix, message)

    def close(self) -> None:
        """Finish the curves."""
        self._writer.close()

    @staticmethod
    def _tag(name: str, values: Mapping[str, float], stat: str) -> str:
        return make_tag("eval", f"{name}(n={int(values['n'])})", stat)

    def _scalars(self, values: Mapping[str, float]) -> Iterable[tuple[str, float, str]]:
        """Tags with their values, and with their keys in `values`."""
        for name in self.scorers:
            for end, stat in (("", "mean"), ("_low", "low"), ("_high", "high"), ("_std", "std")):
                yield make_tag("eval", name, stat), values.get(f"{name}{end}", math.nan), f"{name}{end}"
            lost = f"{name}_nonfinite"
            yield make_tag("eval", name, "nonfinite"), values[lost] or math.nan, lost  # 0 is no news
        for key in KEYS:
            yield make_tag("eval", "guard", key.removeprefix("guard_")), values.get(key, math.nan), key
        for value, name in self.metrics.items():
            for end, stat in (("", "value"), ("_low", "low"), ("_high", "high")):
                yield self._tag(name, values, stat), values.get(f"{value}{end}", math.nan), f"{value}{end}"
