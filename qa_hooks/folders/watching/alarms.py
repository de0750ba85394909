"""When to raise the alarm on a run that is watched: a threshold, a value that is not finite, a collapse.

Images that are black or of one colour are named, whatever they score: `qa_hooks.rewards.broken`.

A collapse shows in two ways: the scores of one step's images lie closer together than those of earlier steps ever did
(all images look alike), or a distance to the real images is clearly worse than it has been.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from qa_hooks._base.text import plural
from qa_hooks.images import load_image
from qa_hooks.rewards.broken import broken_images, broken_message
from qa_hooks.sources.windows import evenly

SPREAD = 0.1  # of the median spread so far
WORSE = 2.0  # times the best distance so far
LOOKED_AT = 256  # images of a step, for whether they show anything
EARLIER = 3  # steps before there is a past to compare with

History = Mapping[int, Mapping[str, float]]


class Threshold(NamedTuple):
    """Alarm when the value of `key` is below, or above, the limit."""

    key: str
    sign: str
    limit: float

    def __str__(self) -> str:
        return f"{self.key}{self.sign}{self.limit:g}"


def parse_threshold(text: str) -> Threshold:
    """Read "KEY<VALUE" or "KEY>VALUE".

    Raises:
        ValueError: something else.

    Example:
        >>> parse_threshold("fd > 80")
        Threshold(key='fd', sign='>', limit=80.0)
    """
    found = re.fullmatch(r"\s*([^<>\s]+)\s*([<>])\s*(\S+)\s*", text)
    try:
        limit = float(found[3]) if found else math.nan
    except ValueError:
        limit = math.nan
    if found is None or math.isnan(limit):
        raise ValueError(f"an alarm is KEY<VALUE or KEY>VALUE, for example 'fd>80', got {text!r}")
    return Threshold(found[1], found[2], limit)


def broken_shares(paths: Sequence[Path]) -> dict[str, float]:
    """Which share of a step's images is black or of one colour, of at most `LOOKED_AT` of them, evenly taken."""
    taken = evenly(paths, LOOKED_AT)
    counts = {"black": 0, "constant": 0}
    for path in taken:
        which = broken_images(load_image(path)[None])
        counts = {kind: count + int(which[kind]) for kind, count in counts.items()}
    return {kind: count / len(taken) for kind, count in counts.items() if count}


def find_alarms(
    step: int, values: Mapping[str, float], history: History, thresholds: Sequence[Threshold], scorers: Sequence[str]
) -> list[tuple[str, str]]:
    """What is wrong with a step: keys and messages.

    Args:
        step: the step.
        values: its values by key: a scorer's name for its mean, with `_std` for the spread and `_nonfinite` for how
            many scores are not finite; "fd", "kid", ... with `_low` and `_high`.
        history: the values of other steps; the earlier steps count.
        thresholds: of the user.
        scorers: names of the scorers.

    Example:
        >>> history = {s: {"niqe": 5.0, "niqe_std": 1.0} for s in (1, 2, 3)}
        >>> find_alarms(4, {"niqe": 5.0, "niqe_std": 0.01, "n": 16}, history, [], ["niqe"])[0][0]
        'niqe_std'
    """
    found: list[tuple[str, str]] = []
    if message := broken_message(values, int(values.get("n", 0))):
        found.append(("broken", message))
    for name in scorers:
        lost = int(values.get(f"{name}_nonfinite", 0))
        if lost:
            found.append((name, f"{lost} of {plural(int(values['n']), 'score')} of {name} are not finite"))
    for threshold in thresholds:
        value = values.get(threshold.key, math.nan)
        if value < threshold.limit if threshold.sign == "<" else value > threshold.limit:
            found.append((threshold.key, f"{threshold}: it is {value:.4g}"))
    earlier = [past for other, past in sorted(history.items()) if other < step]
    for name in scorers:
        spreads = sorted(past[f"{name}_std"] for past in earlier if past.get(f"{name}_std", 0) > 0)
        spread = values.get(f"{name}_std", math.nan)
        if len(spreads) >= EARLIER and values.get("n", 0) > 1 and spread < SPREAD * spreads[len(spreads) // 2]:
            usual = spreads[len(spreads) // 2]
            found.append(
                (
                    f"{name}_std",
                    f"the scores of {name} have collapsed: their spread is {spread:.3g}, it was {usual:.3g}",
                )
            )
    same_n = [past for past in earlier if past.get("n") == values.get("n")]
    for key in ("fd", "kid"):
        best = min((past for past in same_n if key in past), key=lambda past: past[key], default=None)
        if len(same_n) < EARLIER or best is None or key not in values:
            continue
        # Both sides' errors count, so that a noisy small distance does not cry wolf.
        if values[f"{key}_low"] > max(WORSE * best[key], best[f"{key}_high"]):
            found.append((key, f"{key} has collapsed: it is {values[key]:.4g}, at best it was {best[key]:.4g}"))
    return found
