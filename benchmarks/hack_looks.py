"""What RewardGuard measures of the bench's runs, on disk, and the alarms that its rule makes of it.

A look is measured once and with everything that a guard can be given. Which of it a guard knows, and its limits, only
matter to the rule, so other limits are tried on the stored numbers in no time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.hack_kinds import hacked
from qa_hooks._base.files import write_text
from qa_hooks.features import create_extractor
from qa_hooks.functional import precision_recall, ssim
from qa_hooks.rewards.alarm_rule import HELD_OUT, AlarmRule
from qa_hooks.rewards.levels import Levels, look_values
from qa_hooks.rewards.measures import CHANGE, Rows, differences, measure_change, measure_images, measure_tones
from qa_hooks.scorers import Scorer

HONEST = "honest"
FALLEN = 0.8  # of SSIM, and of the recall there was


class Known(NamedTuple):
    """What a guard is given beside the run's images and real ones."""

    base: bool
    scorers: bool


GUARDS = {
    "real images": Known(base=False, scorers=False),
    "real images and base": Known(base=True, scorers=False),
    "with everything": Known(base=True, scorers=True),
}


class Measured(NamedTuple):
    """A run in numbers.

    Attributes:
        levels: of its real images.
        looks: `look_values` of each look.
        late: the look from which an alarm is too late; None if there is none.
    """

    levels: Levels
    looks: list[dict[str, float]]
    late: int | None

    def alarm(self, known: Known, *, without: Sequence[str] = (), **limits: Any) -> int | None:
        """The look of the first alarm of a guard, without some kinds and with limits: arguments of `AlarmRule`."""
        unjudged = (*without, *(() if known.base else ("drift", "change_peak")))
        rule = AlarmRule(self.levels, unjudged=unjudged, **limits)
        return next((i for i, look in enumerate(self.looks) if rule.look(seen(look, known))), None)

    def in_time(self, alarm: int | None) -> bool:
        return alarm is not None and (self.late is None or alarm <= self.late)


def seen(look: dict[str, float], known: Known) -> dict[str, float]:
    """The numbers of a look that a guard has."""
    hidden = () if known.base else (CHANGE,)
    hidden += () if known.scorers else ("score", HELD_OUT)
    return {key: value for key, value in look.items() if not key.startswith(hidden)}


def images_of(looks: Tensor, hack: str, number: int) -> Tensor:
    """Look `number` of a run, with the hack as strong as it is by then."""
    clean = looks[number].float() / 255
    images = clean if hack == HONEST else hacked(clean, hack, number / (len(looks) - 1))
    return (images * 255).round() / 255


def too_late(looks: Tensor, hack: str) -> int | None:
    """The first look at which SSIM, or recall, has fallen to `FALLEN` of what it was; None if that never happens."""
    extractor = create_extractor("random")
    for number in range(len(looks)):
        images = images_of(looks, hack, number)
        if has_fallen(looks, number, images, extractor(images)):
            return number
    return None


def has_fallen(looks: Tensor, number: int, images: Tensor, features: Tensor) -> bool:
    """SSIM or recall, against the same look without the hack."""
    if float(ssim(images, looks[number].float() / 255).mean()) <= FALLEN:
        return True
    return precision_recall(clean_features(looks)[number], features, k=3).recall <= FALLEN


@lru_cache(maxsize=1)
def clean_features(looks: Tensor) -> list[Tensor]:
    """Of each look of a run, for all of its hacks."""
    extractor = create_extractor("random")
    return [extractor(look.float() / 255) for look in looks]


@torch.no_grad()
def measure_run(looks: Tensor, real: Tensor, hack: str, scorers: Sequence[Scorer]) -> Measured:
    """All of a run's looks, with a hack or honest.

    Args:
        looks: uint8 `(looks, n, C, S, S)`.
        real: `(m, C, S, S)` in [0, 1].
        hack: its name, or `HONEST`.
        scorers: the score that is optimised, and others.
    """
    extractor = create_extractor("random")
    names = ["score", *(HELD_OUT + scorer.name for scorer in scorers[1:])]

    def rows_of(images: Tensor) -> Rows:
        scores = {name: part.goodness(images).float() for name, part in zip(names, scorers, strict=False)}
        return measure_images(images, extractor) | measure_tones(images) | scores

    levels = Levels.of(rows_of(real), looks.shape[1])
    base, found, late = looks[0].float() / 255, [], None
    before = rows_of(base)
    before = {key: row for key, row in before.items() if key not in names}
    for number in range(len(looks)):
        images = images_of(looks, hack, number)
        rows = rows_of(images)
        rows |= differences(rows, before) | measure_change(images, base, rows["features"], before["features"])
        found.append(look_values({**rows, "base_features": before["features"]}, levels))
        if hack != HONEST and late is None and has_fallen(looks, number, images, rows["features"]):
            late = number
    return Measured(levels, found, late)


def write_measured(path: Path, measured: Measured) -> None:
    levels = {key: value for key, value in vars(measured.levels).items() if key != "features"}
    write_text(path, json.dumps({"levels": levels, "looks": measured.looks, "late": measured.late}) + "\n")


@cache
def read_measured(path: Path) -> Measured:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Measured(Levels(**stored["levels"]), stored["looks"], stored["late"])
