"""The yardstick of an alarm rule: what real images measure, and one look of a run in the same numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qa_hooks._base.random import permutation
from qa_hooks.functional.precision_and_recall import precision_recall
from qa_hooks.rewards.measures import CHANGE, Rows, mean_distance, nearest_distance

Values = dict[str, float]

ODD = 0.9  # the quantile of single real images
SUBSETS = 50  # of the real images, each as large as a look
NEIGHBOURS = 3  # of recall, as published


@dataclass
class Levels:
    """The yardstick: what real images measure. `Levels.of(rows, n)` makes it.

    Attributes:
        level: the mean by kind.
        width: from it to the worst tenth, of single images; of "spread" and "recall" of sets as large as a look.
        deviation: of single images; of scores, as the unit of gains.
        features: `(m, d)`, for recall.
        error: of the difference between the means of a look and of the real images, in deviations.
        source: "real", or "start" where the first look of the run has to do: then a score has no real level.
    """

    level: Values
    width: Values
    deviation: Values
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float32, device="cpu"), repr=False)
    source: str = "real"
    error: float = 0.0

    @classmethod
    def of(cls, rows: Rows, n: int, *, source: str = "real") -> Levels:
        """Measured real images: rows of `measure_images` and `measure_tones`; goodness as "score" and "heldout/{name}".

        Args:
            rows: of at least 8 images.
            n: how many images a look has.
            source: "real" or "start".

        Example:
            >>> levels = Levels.of({"dark": torch.rand(200), "features": torch.randn(200, 4)}, n=50)
            >>> sorted(levels.level)
            ['dark', 'nearest', 'recall', 'spread']
        """
        features = rows["features"]
        count = len(features)
        if count < 2 * (NEIGHBOURS + 1):
            raise ValueError(f"levels need at least {2 * (NEIGHBOURS + 1)} images, got {count}")
        single = {key: row[torch.isfinite(row)] for key, row in rows.items() if row.ndim == 1}
        single = {key: row for key, row in single.items() if len(row) > 1}
        level = {key: float(row.mean()) for key, row in single.items()}
        width = {key: float(row.quantile(ODD)) - level[key] for key, row in single.items()}
        size = max(min(n, count // 2), NEIGHBOURS + 1)
        looks = [permutation(count, i) for i in range(SUBSETS)]
        sets = {
            "spread": [mean_distance(features[look[:size]]) for look in looks],
            "nearest": [nearest_distance(features[look[:n]]) for look in looks],  # it falls with the number of images
            "recall": [_recall(features[look[size:]], features[look[:size]]) for look in looks[: SUBSETS // 5]],
        }
        for key, values in sets.items():
            found = torch.tensor(values, dtype=torch.float32, device="cpu")
            level[key] = float(found.mean())
            width[key] = level[key] - float(found.quantile(1 - ODD))
        deviation = {key: float(row.std()) for key, row in single.items()}
        return cls(level, width, deviation, features, source, math.sqrt(1 / n + 1 / count))


def look_values(rows: Rows, levels: Levels) -> Values:
    """One look in numbers: means of the rows, "spread", "nearest", "recall", and "drift" in distances of real images.

    Scores that are not finite are left out of their mean. With "base_features", those of the base's images, there is
    "change/nearest" as well.
    """
    values = {key: float(row[torch.isfinite(row)].mean()) for key, row in rows.items() if row.ndim == 1}
    if len(rows["features"]) > NEIGHBOURS:
        values["spread"] = mean_distance(rows["features"])
        values["nearest"] = nearest_distance(rows["features"])
        values["recall"] = _recall(levels.features, rows["features"])
        if "base_features" in rows:
            values[CHANGE + "nearest"] = values["nearest"] - nearest_distance(rows["base_features"])
    if "drift" in values:
        values["drift"] /= max(levels.level["spread"], 1e-12)
    return values


def _recall(real: Tensor, fake: Tensor) -> float:
    return precision_recall(real, fake, k=NEIGHBOURS).recall
