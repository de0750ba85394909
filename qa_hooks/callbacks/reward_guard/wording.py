"""The words of an alarm: what is known of the images and of the score, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from qa_hooks.rewards.alarm_rule import Finding
from qa_hooks.scorers.scorer import Scorer


def alarm_words(
    found: Sequence[Finding], scorer: Scorer | None, before: float, now: float, *, base: Any = None, patience: int = 1
) -> str:
    """One alarm in words.

    Args:
        found: measurements beyond their limits; they know whether they were compared with real images.
        scorer: of the optimised score; None where the guard has none.
        before, now: the mean score as goodness, at the first look and at this one; nan where it is not known.
        base: the guard's `base`.
        patience: looks in a row.

    Example:
        >>> found = [Finding("dark", 0.3, 0.1, 0.15, 2.0, "start")]
        >>> alarm_words(found, None, math.nan, math.nan)[:91]
        'the samples have moved away from the first look: dark share 0.3, start 0.1, limit 0.15; whe'
    """
    real = any(finding.against == "real" for finding in found)
    parts = ["the base (the first look)" if base == "start" else "the base"] if base is not None else []
    parts += ["the real images"] if real else []
    seen = f" on {patience} looks in a row" if patience > 1 else ""
    words = "; ".join(map(str, found))
    away = f"the samples have moved away from {' and '.join(parts) or 'the first look'}{seen}: {words}"
    if scorer is None:
        return f"{away}; whether a score is exploited by it is not known without scorer="
    if not (math.isfinite(before) and math.isfinite(now)):
        return f"{away}; {scorer.name} is not finite"
    sign = 1 if scorer.higher_is_better else -1
    path = f"{scorer.name} went from {sign * before:.4g} at the first look to {sign * now:.4g}"
    if now > before:
        return f"{away}; {path}, which is better: the reward is being exploited"
    if now < before:
        return f"{away}; {path}, which is worse: this is damage, and not a reward that is exploited"
    return f"{away}; {path}"
