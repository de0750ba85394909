"""The words of a guard: what is known of the images and of the score, and no more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from qa_hooks._base.text import plural
from qa_hooks.rewards.alarm_rule import KINDS, Finding
from qa_hooks.scorers.scorer import Scorer


class ScorePath(NamedTuple):
    """Where the mean of the optimised score went; goodness, and nan where it is not known.

    Attributes:
        before: at the first look.
        now: at this one.
        real: of real images.
        deviation: of the scores of single real images.
    """

    before: float = math.nan
    now: float = math.nan
    real: float = math.nan
    deviation: float = 0.0


def alarm_words(
    found: Sequence[Finding], scorer: Scorer | None = None, path: ScorePath | None = None, *, base: Any = None,
    patience: int = 1,
) -> str:  # fmt: skip
    """One alarm in words. A score is called exploited where it has risen to what real images score, or above it.

    Args:
        found: measurements beyond their limits; they know whether they were compared with real images.
        scorer: of the optimised score; None where the guard has none.
        path: of the score.
        base: the guard's `base`.
        patience: looks in a row.

    Example:
        >>> found = [Finding("dark", 0.3, 0.1, 0.15, 2.0, "start")]
        >>> alarm_words(found)[:91]
        'the samples have moved away from the first look: dark share 0.3, start 0.1, limit 0.15; whe'
    """
    real = any(finding.against == "real" for finding in found)
    parts = ["the base (the first look)" if base == "start" else "the base"] if base is not None else []
    parts += ["the real images"] if real else []
    seen = f" on {patience} looks in a row" if patience > 1 else ""
    words = "; ".join(map(str, found))
    away = f"the samples have moved away from {' and '.join(parts) or 'the first look'}{seen}: {words}"
    return f"{away}; {_score_words(scorer, path or ScorePath(), _learning(base, real))}"


def _score_words(scorer: Scorer | None, path: ScorePath, learning: str) -> str:
    if scorer is None:
        return "whether a score is exploited by it is not known without scorer="
    if not (math.isfinite(path.before) and math.isfinite(path.now)):
        return f"{scorer.name} is not finite"
    sign = 1 if scorer.higher_is_better else -1
    went = f"{scorer.name} went from {sign * path.before:.4g} at the first look to {sign * path.now:.4g}"
    if math.isclose(path.now, path.before, rel_tol=1e-5) or abs(path.now - path.before) < 0.01 * path.deviation:
        return f"{went}, which is no change"
    if path.now < path.before:
        return f"{went}, which is worse: not a reward that is exploited, but damage by the training, or {learning}"
    if math.isnan(path.real):
        return (
            f"{went}, which is better. What real images score is not known (real= or real_level= says it), so it is "
            f"not known either whether a reward is being exploited. It may also be {learning}"
        )
    level = f"the {sign * path.real:.4g} of real images"
    if path.now < path.real - path.deviation:
        return f"{went}, which is better and still worse than {level}: the beginning of an exploit, or {learning}"
    near = "better than" if path.now > path.real else "near"
    return f"{went}, which is better and {near} {level}: the reward is being exploited"


def _learning(base: Any, real: bool) -> str:
    """The cause that is no fault of a reward, and what to write then."""
    change = ['leave base="start" out'] if base == "start" else []
    change += [] if real else ["give real="]
    if base not in (None, "start") or not change:
        return "a model that still learns something else than what it is compared with"
    return (
        "a model that is still learning, since the first look counts as what is sound here: for a run from random "
        f"weights {' and '.join(change)}"
    )


def quiet_words(found: Sequence[Finding], patience: int) -> str:
    """Why measurements beyond their limits make no alarm.

    Example:
        >>> quiet_words([Finding("drift", 0.885, 0.0, 0.25, 3.54)], patience=2)[:75]
        'no alarm by drift 0.885 distances of two real images, limit 0.25 (severity '
    """
    words = "; ".join(f"{finding} (severity {finding.severity:.3g})" for finding in found)
    never = [KINDS[finding.kind].words for finding in found if not KINDS[finding.kind].alone]
    why = f"; {' and '.join(never)} never rings alone, since honest training moves images, too" if never else ""
    return (
        f"no alarm by {words}: an alarm takes two families of measurements beyond their limits, or one at a severity "
        f"of 2, on {plural(patience, 'look')}{' in a row' if patience > 1 else ''}{why} (said once)"
    )
