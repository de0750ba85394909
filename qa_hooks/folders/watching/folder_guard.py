"""The alarm on reward hacking for a run that is watched from beside it: `RewardGuard` from image files alone.

Of each step it measures what `qa_hooks.rewards.alarm_rule` can tell without a scorer and without the base model, and
writes it beside the step's other values as "guard_{kind}"; the rule goes through the steps in their order, so
a watcher that was killed and goes on raises the alarms that it would have raised.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from qa_hooks._base.isolation import isolated
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import to_unit
from qa_hooks.rewards.alarm_rule import KINDS, AlarmRule
from qa_hooks.rewards.levels import Levels, look_values
from qa_hooks.rewards.measures import Rows, measure_images
from qa_hooks.sources.batches import image_batches
from qa_hooks.sources.windows import evenly

PREFIX = "guard_"
KEYS = tuple(PREFIX + kind for kind in ("nonfinite", "high_frequency", "peak", "dark", "saturated", "spread", "recall"))
REAL = 512


class FolderGuard:
    """Measures steps, and says which of them make an alarm.

    Args:
        real: files of real images of the samples' size; up to 512 of them are used, evenly.
        extractor: of the features for diversity.
        batch_size: images at a time.
    """

    def __init__(self, real: Sequence[Path], extractor: FeatureExtractor, *, batch_size: int = 32) -> None:
        self.extractor, self.batch_size = extractor, batch_size
        self._real = self._rows(evenly(real, REAL))
        self._levels: Levels | None = None

    def fresh(self) -> FolderGuard:
        """One for another run, with the same real images."""
        other = copy.copy(self)
        other._levels = None
        return other

    def measure(self, paths: Sequence[Path], history: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        """ "guard_{kind}" of a step's files."""
        if self._levels is None:  # sets as large as the first step's
            n = int(history[min(history)]["n"]) if history else len(paths)
            self._levels = Levels.of(self._real, n)
        found = look_values(self._rows(paths), self._levels)
        return {PREFIX + key: value for key, value in found.items() if PREFIX + key in KEYS}

    def alarms(
        self, step: int, values: Mapping[str, float], history: Mapping[int, Mapping[str, float]]
    ) -> list[tuple[str, str]]:
        """Keys and messages of a measured step, after the steps before it; [] where nothing is wrong."""
        if self._levels is None:
            return []
        rule = AlarmRule(self._levels)
        for other in sorted(other for other in history if other < step):
            rule.look(_own(history[other]))
        return [(PREFIX + finding.kind, str(finding)) for finding in rule.look(_own(values))]

    def _rows(self, paths: Sequence[Path]) -> Rows:
        device = self.extractor.mean.device
        with isolated(self.extractor):
            rows = [
                measure_images(to_unit(images.to(device), (0.0, 1.0)), self.extractor)
                for _, images in image_batches(list(paths), batch_size=self.batch_size)
            ]
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


def _own(values: Mapping[str, float]) -> dict[str, float]:
    return {kind: values[PREFIX + kind] for kind in KINDS if PREFIX + kind in values}
