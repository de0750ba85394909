"""When a run exploits its reward: which measurements of its images (`rewards.measures`) together make an alarm.

No single number will do. In toy runs held-out scores *rose* while the fidelity collapsed, precision and inception score
rose while the diversity fell, and an honest run may pass one limit for a while. So each measurement has a limit, and

    severity   1 + (value - limit) / width       (for what is bad when low: of the negatives)
    suspicion  a severity of 2 in a kind that may stand alone, or of 1 in two families
    alarm      suspicion on `patience` looks in a row

Limits and widths come from the real images. The width is how far the worst tenth of *single* images lies from their
mean, and the limit is that far from their mean: where the mean sample is as odd as one real image in ten, however many
there are. A model that never looked like the real images is compared with its own best look instead. The table `KINDS`
says what is measured; how often all this errs and how late it is, `RewardGuard` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.precision_and_recall import precision_recall
from qa_hooks.rewards.measures import Rows, mean_distance

Values = dict[str, float]

ODD = 0.9  # the quantile of single real images
SUBSETS = 50  # of the real images, each as large as a look
NEIGHBOURS = 3  # of recall, as published
DRIFT = 0.25  # of the distance of two real images
GAIN = 0.5  # deviations of the real images' scores, and the share of it that held-out scores must gain, too:
FOLLOWS = 0.1
WITNESSES = 2  # held-out scores that stay behind; one alone has been seen to err
HELD_OUT = "heldout/"


class Kind(NamedTuple):
    """A measurement that may betray an exploited reward.

    Attributes:
        words: for messages.
        family: kinds of one family move together and have one vote.
        low: low values are the bad ones.
        least: the smallest width; with `relative` in units of the real level.
        alone: a severity of 2 is enough.
        like: the kind that has the real images' level and width, where this one cannot be measured on them.
    """

    words: str
    family: str
    low: bool = False
    least: float = 0.0
    relative: bool = False
    alone: bool = True
    like: str = ""


KINDS = {
    "nonfinite": Kind("share of images that are not finite", "finite", least=1e-4),
    "score": Kind("score", "reward"),
    "gain": Kind("gain of the score", "held-out", alone=False),
    "high_frequency": Kind("high-frequency share", "spectrum", least=0.02),
    "peak": Kind("spectral peak over its ring", "spectrum", least=1.0, relative=True),
    "change_peak": Kind("spectral peak of the change over its ring", "change", least=2.0, relative=True, alone=False,
                        like="peak"),
    "dark": Kind("dark share", "tones", least=0.01),
    "saturated": Kind("saturated share", "tones", least=0.01),
    "spread": Kind("mean distance of the samples' features", "diversity", low=True, least=0.2, relative=True),
    "recall": Kind("recall of the real images", "diversity", low=True, least=0.2),
    "drift": Kind("drift, in distances of two real images,", "change", alone=False),
}  # fmt: skip


class Finding(NamedTuple):
    """A measurement beyond its limit; `level` is the real images' (or the start's: `against`)."""

    kind: str
    value: float
    level: float
    limit: float
    severity: float
    against: str = "real"

    def __str__(self) -> str:
        if self.kind == "score":
            return f"score {self.value:.3g} above the real level {self.level:.3g}"
        if self.kind == "gain":
            return f"the score gained {self.value:.3g} deviations, {WITNESSES} held-out ones at most {self.level:.3g}"
        if self.kind in ("drift", "nonfinite"):
            return f"{KINDS[self.kind].words} {self.value:.3g}, limit {self.limit:.3g}"
        return f"{KINDS[self.kind].words} {self.value:.3g}, {self.against} {self.level:.3g}, limit {self.limit:.3g}"


@dataclass
class Levels:
    """The yardstick: what real images measure. `Levels.of(rows, n)` makes it.

    Attributes:
        level: the mean by kind.
        width: from it to the worst tenth, of single images; of "spread" and "recall" of sets as large as a look.
        deviation: of single images; of scores, as the unit of gains.
        features: `(m, d)`, for recall.
        source: "real", or "start" where the first look of the run has to do: then a score has no real level.
    """

    level: Values
    width: Values
    deviation: Values
    features: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float32, device="cpu"), repr=False)
    source: str = "real"

    @classmethod
    def of(cls, rows: Rows, n: int, *, source: str = "real") -> Levels:
        """Measured real images: rows of `measure_images` and, under "score" and "heldout/{name}", goodness.

        Args:
            rows: of at least 8 images.
            n: how many images a look has.
            source: "real" or "start".

        Example:
            >>> levels = Levels.of({"dark": torch.rand(200), "features": torch.randn(200, 4)}, n=50)
            >>> sorted(levels.level)
            ['dark', 'recall', 'spread']
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
        looks = [
            torch.randperm(count, generator=torch.Generator().manual_seed(i), device="cpu") for i in range(SUBSETS)
        ]
        sets = {
            "spread": [mean_distance(features[look[:size]]) for look in looks],
            "recall": [_recall(features[look[size:]], features[look[:size]]) for look in looks[: SUBSETS // 5]],
        }
        for key, values in sets.items():
            found = torch.tensor(values, dtype=torch.float32, device="cpu")
            level[key] = float(found.mean())
            width[key] = level[key] - float(found.quantile(1 - ODD))
        return cls(level, width, {key: float(row.std()) for key, row in single.items()}, features, source)


def look_values(rows: Rows, levels: Levels) -> Values:
    """One look in numbers: the means of the rows, "spread", "recall", and "drift" in distances of real images.

    Scores that are not finite are left out of their mean.
    """
    values = {key: float(row[torch.isfinite(row)].mean()) for key, row in rows.items() if row.ndim == 1}
    if len(rows["features"]) > NEIGHBOURS:
        values["spread"] = mean_distance(rows["features"])
        values["recall"] = _recall(levels.features, rows["features"])
    if "drift" in values:
        values["drift"] /= max(levels.level["spread"], 1e-12)
    return values


def _recall(real: Tensor, fake: Tensor) -> float:
    return precision_recall(real, fake, k=NEIGHBOURS).recall


class AlarmRule:
    """Takes the looks of a run in their order, and says when they make an alarm.

    Args:
        levels: of real images, or of the run's first look where there are none.
        real_level: of the score, as goodness; None takes that of real images, and without them has no rule for it.
        patience: suspicious looks in a row that make an alarm.
        unjudged: kinds that are not looked at.

    Attributes:
        found: what the last look had beyond its limits, the worst first.

    Example:
        >>> images = torch.rand(40, generator=torch.Generator().manual_seed(0)) / 100
        >>> rule = AlarmRule(Levels.of({"dark": images, "features": torch.randn(40, 4)}, n=20), patience=2)
        >>> [len(rule.look({"dark": value})) for value in (0.005, 0.5, 0.5)]
        [0, 0, 1]
    """

    def __init__(
        self,
        levels: Levels,
        *,
        real_level: float | None = None,
        patience: int = 2,
        unjudged: Collection[str] = (),
    ) -> None:
        self.levels, self.patience = levels, check_count("patience", patience)
        self.judged = frozenset(KINDS) - frozenset(unjudged)
        known = levels.level.get("score", math.nan) if levels.source == "real" else math.nan
        self.real_level = known if real_level is None else float(real_level)
        self.found: list[Finding] = []
        self.best: Values = {}
        self.start: Values = {}
        self.waited = 0

    def look(self, values: Values) -> list[Finding]:
        """What makes an alarm at this look; [] where nothing does, or not for long enough."""
        self.start = self.start or {key: value for key, value in values.items() if math.isfinite(value)}
        for key, value in values.items():
            if key in KINDS and math.isfinite(value):
                self.best[key] = (max if KINDS[key].low else min)(value, self.best.get(key, value))
        judged = [self._judged(key, value) for key, value in values.items() if key in self.judged]
        found = [finding for finding in (*judged, self._gain(values)) if finding is not None and finding.severity >= 1]
        self.found = sorted(found, key=lambda finding: -finding.severity)
        self.waited = self.waited + 1 if is_suspicious(self.found) else 0
        return self.found if self.waited >= self.patience else []

    def _judged(self, key: str, value: float) -> Finding | None:
        level, limit, width = self._limit(key)
        beyond = limit - value if KINDS[key].low else value - limit
        severity = 1 + beyond / max(width, 1e-12)
        return Finding(key, value, level, limit, severity, self.levels.source) if severity >= 1 else None

    def _limit(self, key: str) -> tuple[float, float, float]:
        """Level, limit and width of a kind; nan where it has none."""
        if key == "drift":
            return 0.0, DRIFT, DRIFT
        kind = KINDS[key]
        level, width = (of.get(kind.like or key, math.nan) for of in (self.levels.level, self.levels.width))
        width = max(width, kind.least * (abs(level) if kind.relative else 1))
        own = math.nan if kind.like else self.best.get(key, math.nan)
        if key == "score":  # to reach the real level is an end of its own: no width is granted beyond it
            return self.real_level, max(self.real_level, own + width / 2), width
        if kind.low:
            return level, min(level, own) - width, width
        return level, max(level, own) + width, width

    def _gain(self, values: Values) -> Finding | None:
        """The score rises, and at least two held-out ones do not: each in deviations of the real images' scores."""
        gains = {
            key: (values[key] - self.start[key]) / max(self.levels.deviation[key], 1e-12)
            for key in values
            if (key == "score" or key.startswith(HELD_OUT)) and key in self.start and key in self.levels.deviation
        }
        own = gains.pop("score", math.nan)
        behind = [gain for gain in gains.values() if gain <= FOLLOWS * own]
        if not own >= GAIN or len(behind) < WITNESSES:
            return None
        return Finding("gain", own, max(behind), GAIN, 1 + (own - GAIN) / GAIN)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"best": dict(self.best), "start": dict(self.start), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.best, self.start, self.waited = dict(state["best"]), dict(state["start"]), int(state["waited"])


def is_suspicious(found: list[Finding]) -> bool:
    """One kind far beyond its limit, or two families beyond theirs."""
    alone = any(finding.severity >= 2 and KINDS[finding.kind].alone for finding in found)
    return alone or len({KINDS[finding.kind].family for finding in found if finding.severity >= 1}) >= 2
