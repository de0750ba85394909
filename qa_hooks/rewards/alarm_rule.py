"""When a run exploits its reward: which measurements of its images (`rewards.measures`) together make an alarm.

No single number will do. In toy runs held-out scores *rose* while the fidelity collapsed, precision and inception score
rose while the diversity fell, and an honest run may pass one limit for a while. So each measurement has a limit, and

    severity   of a measurement: 1 + (value - limit) / width       (for what is bad when low: of the negatives)
               of a look: half the largest one in a kind that may stand alone, or the second family's if that is more
    alarm      a look's severity of 1 on `patience` looks in a row: one kind at 2, or two families at 1

Limits and widths come from the real images. The width is how far the worst tenth of *single* images lies from their
mean, and the limit is that far from their mean: where the mean sample is as odd as one real image in ten, however many
there are. A model that never looked like the real images is compared with its own best look instead.

Where the base's images of the same inputs are known, too, the run is compared with both. Honest training goes from what
the base makes to what is real, and not far beyond either:

    limits    min(base, real) - width  and  max(base, real) + width
    width     TOLERANCE max(least, (CLOSE + (1/n + 1/m)^1/2) deviations of single real images)

where the root is the error with which the means of a look's n and of m real images differ by chance. The table `KINDS`
says what is measured; how often all this errs and how late it is, `RewardGuard` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

from qa_hooks._base.checks import check_count
from qa_hooks.rewards.levels import Levels, Values
from qa_hooks.rewards.measures import CHANGE

ODD_DEVIATIONS = 1.28  # to the worst tenth of a normal distribution
CLOSE = 0.1  # deviations
# Of means of 24 and 200 images, the smallest on the bench: with fewer images `Kind.close` grows as their error does.
ERROR = 0.22
# Chosen on one half of the bench (docs/guards.md, 28 November 2026; 48 hacked runs, 17 honest ones): from 0.75 to 1.2
# all hacks were found in time without a false alarm, and the widest of these leaves the most room.
TOLERANCE = 1.2
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
        both: high and low values are bad ones, against what the base has; without a base it is not judged.
        least: the smallest width; with `relative` in units of the real level.
        close: the width against the base, in units of the real level; without a base such a kind is not judged, either.
            It grows with the error of few images.
        alone: a severity of 2 is enough.
        like: the kind that has the real images' level and width, where this one cannot be measured on them.
    """

    words: str
    family: str
    low: bool = False
    both: bool = False
    least: float = 0.0
    close: float = 0.0
    relative: bool = False
    alone: bool = True
    like: str = ""


# The least widths of what is judged against the base were set on the same half. Honest GANs and diffusion models of
# digits went beyond base and real by .022 in brightness, .014 in contrast, .12 in detail, .13 in its kurtosis, and by
# .03 of the level in the nearest distance; honest super-resolution by hardly anything.
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
    "recall": Kind("recall", "diversity", low=True, least=0.2),
    "nearest": Kind("distance to the nearest sample", "diversity", low=True, least=0.2, relative=True, close=0.06),
    "brightness": Kind("brightness", "tones", both=True, least=0.03),
    "contrast": Kind("contrast", "tones", both=True, least=0.02),
    "colourfulness": Kind("colourfulness", "colour", both=True, least=0.02),
    "red_green": Kind("red minus green", "colour", both=True, least=0.02),
    "yellow_blue": Kind("yellow minus blue", "colour", both=True, least=0.02),
    "detail": Kind("power of details (log)", "details", both=True, least=0.2),
    "detail_kurtosis": Kind("kurtosis of details (log)", "details", both=True, least=0.2),
    "drift": Kind("drift", "change", alone=False),
}  # fmt: skip


class Finding(NamedTuple):
    """A measurement beyond its limit; `level` is the real images' (or the start's: `against`), `severity` its own."""

    kind: str
    value: float
    level: float
    limit: float
    severity: float
    against: str = "real"

    @property
    def low(self) -> bool:
        """It is too low, and not too high."""
        return self.value < self.limit

    def __str__(self) -> str:
        of = "real images" if self.against == "real" else "images of the first look"
        if self.kind == "drift":
            return f"drift {self.value:.3g} distances of two {of}, limit {self.limit:.3g}"
        if self.kind == "recall":
            among = f"{self.level:.3g} among themselves"
            return f"recall of the {of} {self.value:.3g}, {among}, limit {self.limit:.3g}"
        if self.kind == "score":
            return f"score {self.value:.3g} above the real level {self.level:.3g}"
        if self.kind == "gain":
            return f"the score gained {self.value:.3g} deviations, {WITNESSES} held-out ones at most {self.level:.3g}"
        if self.kind == "nonfinite":
            return f"{KINDS[self.kind].words} {self.value:.3g}, limit {self.limit:.3g}"
        return f"{KINDS[self.kind].words} {self.value:.3g}, {self.against} {self.level:.3g}, limit {self.limit:.3g}"


class AlarmRule:
    """Takes the looks of a run in their order, and says when they make an alarm.

    Args:
        levels: of real images, or of the run's first look where there are none.
        real_level: of the score, as goodness; None takes that of real images, and without them has no rule for it.
        patience: suspicious looks in a row that make an alarm.
        unjudged: kinds that are not looked at.
        tolerance: a factor of the widths against the base.

    Attributes:
        found: what the last look had beyond its limits, the worst first.

    Example:
        >>> import torch
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
        tolerance: float = TOLERANCE,
    ) -> None:
        self.levels, self.patience, self.tolerance = levels, check_count("patience", patience), tolerance
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
        judged = [self._judged(key, values) for key in values if key in self.judged]
        found = [finding for finding in (*judged, self._gain(values)) if finding is not None and finding.severity >= 1]
        self.found = sorted(found, key=lambda finding: -finding.severity)
        self.waited = self.waited + 1 if is_suspicious(self.found) else 0
        return self.found if self.waited >= self.patience else []

    def _judged(self, key: str, values: Values) -> Finding | None:
        kind, value = KINDS[key], values[key]
        level, low, high, width = self._limits(key, value - values.get(CHANGE + key, math.nan))
        below = low - value if kind.low or kind.both else math.nan
        above = value - high if not kind.low else math.nan
        limit, beyond = (low, below) if below >= 0 else (high, above)
        severity = 1 + beyond / max(width, 1e-12)
        return Finding(key, value, level, limit, severity, self.levels.source) if severity >= 1 else None

    def _limits(self, key: str, base: float) -> tuple[float, float, float, float]:
        """Level, limits and width of a kind, nan where it has none; `base` is what the base's images have, or nan."""
        if key == "drift":
            return 0.0, math.nan, DRIFT, DRIFT
        kind, levels = KINDS[key], self.levels
        level, width = (of.get(kind.like or key, math.nan) for of in (levels.level, levels.width))
        width = max(width, kind.least * (abs(level) if kind.relative else 1))
        own = level if kind.like else self.best.get(key, level)
        if key == "score":  # to reach the real level is an end of its own: no width is granted beyond it
            return self.real_level, math.nan, max(self.real_level, own + width / 2), width
        if kind.both or kind.close:
            own, width = base, self._close_width(key, level, width)
        return level, min(own, level) - width, max(own, level) + width, width

    def _close_width(self, key: str, level: float, width: float) -> float:
        """Against the base: wide without real images, when nothing says which way is the right one."""
        kind, deviation = KINDS[key], self.levels.deviation.get(key, math.nan)
        if self.levels.source != "real":
            return max(ODD_DEVIATIONS * deviation, kind.least) if kind.both else width
        if kind.both:
            return self.tolerance * max((CLOSE + self.levels.error) * deviation, kind.least)
        return self.tolerance * kind.close * max(1.0, self.levels.error / ERROR) * abs(level)

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


def is_suspicious(found: Collection[Finding]) -> bool:
    """One kind far beyond its limit, or two families beyond theirs."""
    return look_severity(found) >= 1


def look_severity(found: Collection[Finding]) -> float:
    """How suspicious a look is; 1 makes it one of the `patience` looks of an alarm.

    Half the severity of what may stand alone, or the severity of the second family.

    Example:
        >>> dark, drift = Finding("dark", 0.3, 0.1, 0.15, 1.8), Finding("drift", 0.9, 0.0, 0.25, 3.5)
        >>> look_severity([dark]), look_severity([drift]), look_severity([dark, drift])
        (0.9, 0.0, 1.8)
    """
    families: dict[str, float] = {}
    for finding in found:
        family = KINDS[finding.kind].family
        families[family] = max(families.get(family, 0.0), finding.severity)
    alone = max((finding.severity / 2 for finding in found if KINDS[finding.kind].alone), default=0.0)
    return max(alone, sorted([0.0, 0.0, *families.values()])[-2])
