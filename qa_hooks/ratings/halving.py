"""Successive halving: all metrics on few contents, the better half of them on more, and so on.

    phase p of P:  the metrics that are left, on C / 3^(P - 1 - p) contents;  the better half goes on

Each phase's contents are among the next phase's, so nothing is scored twice. Of 16 metrics in four phases about a fifth
of the scorings is made. What is lost: a metric can be unlucky on the first contents.

Source: Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", 2016; used in
two phases for no-reference metrics in super-resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from qa_hooks._base.checks import check_count
from qa_hooks.functional.clusters import FEWEST_CLUSTERS

GROWTH = 3


class Phase(NamedTuple):
    """The agreement of the metrics that took part, on so many contents, and the metrics that were dropped after it."""

    contents: int
    values: dict[str, float]
    dropped: list[str]


def successive_halving(
    metrics: Sequence[str],
    contents: Sequence[Hashable],
    judge: Callable[[list[str], set[Hashable]], Mapping[str, float]],
    *,
    phases: int,
    seed: int = 0,
) -> list[Phase]:
    """Drop the worse half of the metrics after each phase but the last.

    Args:
        metrics: their names.
        contents: all contents, each once.
        judge: `judge(metrics, contents)` gives the agreement of these metrics on these contents, higher is better.
        phases: how many; 1 judges every metric on everything.
        seed: of the order of the contents.

    Returns:
        The phases; the last one has the metrics that are left, on all contents.

    Example:
        >>> found = successive_halving(["a", "b", "c", "d"], range(90), lambda names, _: {n: ord(n) for n in names},
        ...     phases=3)
        >>> [(phase.contents, phase.dropped) for phase in found]
        [(10, ['b', 'a']), (30, ['c']), (90, [])]
    """
    check_count("phases", phases)
    order = np.random.default_rng(seed).permutation(len(contents))
    left, found = list(metrics), []
    for phase in range(phases):
        last = phase == phases - 1
        count = math.ceil(len(contents) / GROWTH ** (phases - 1 - phase))
        count = min(len(contents), max(FEWEST_CLUSTERS, count))
        some = {contents[place] for place in order[:count]}
        values = dict(judge(left, some))
        ranked = sorted(left, key=lambda name: -values[name])
        kept = ranked if last else ranked[: math.ceil(len(ranked) / 2)]
        found.append(Phase(count, values, [name for name in ranked if name not in kept]))
        left = [name for name in left if name in kept]
    return found
