"""How often several metrics agree with people's preferences, with intervals over whole contents."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from qa_hooks._base.text import plural
from qa_hooks.ratings.agreeing import Agreement, differences
from qa_hooks.ratings.jackknife import Clusters
from qa_hooks.ratings.joining import scored_by_all
from qa_hooks.ratings.report import POOLED, AgreementReport, AgreementRow
from qa_hooks.ratings.statistics import Rows
from qa_hooks.ratings.tables import Preference, Preferences


def report_preferences(
    preferences: Preferences, scores: Mapping[str, Rows], *, confidence: float = 0.95
) -> AgreementReport:
    """The share of decided pairs that each metric orders as people do; a tie of the metric counts one half.

    Args:
        preferences: pairs; ties of people are left out. Pairs of one content belong together; where contents are not
            known, pairs that share an image do.
        scores: goodness by metric, `(n,)` for `preferences.names`, NaN where there is none.
        confidence: of the intervals.

    Raises:
        ValueError: no decided pair that every metric has scored, or fewer than five contents.
    """
    names = preferences.names
    mask, lacking = scored_by_all(scores, names)
    row = {name: place for place, (name, known) in enumerate(zip(names, mask.tolist(), strict=True)) if known}
    decided = [pair for pair in preferences if pair.better and pair.a in row and pair.b in row]
    if not decided:
        raise ValueError("no decided pair has scores of every metric")
    ties = sum(not pair.better for pair in preferences)
    first, second = (
        np.array([row[name] for name in side]) for side in zip(*[(p.a, p.b) for p in decided], strict=True)
    )
    people = np.array([pair.better for pair in decided])
    clusters = Clusters(together(decided), len(decided))
    measured, rows = {}, []
    for metric, values in scores.items():
        order = np.sign(values[first] - values[second])
        parts = np.bincount(clusters.of_row, 0.5 + 0.5 * people * order, clusters.count).astype(np.float64)
        counts = np.bincount(clusters.of_row, minlength=clusters.count).astype(np.float64)
        share = float((order == 0).mean())
        measured[metric] = clusters.ratio(parts, counts, pairs=float(len(decided)), ties=share)
        interval = measured[metric].interval(confidence)
        found = Agreement(*interval, len(decided), clusters.count, share)
        rows.append(AgreementRow(metric, POOLED, None, "accuracy", found))
    compared = differences(measured, confidence) if len(scores) > 1 else []
    best = [compared[0].a if compared else next(iter(scores))]
    best += [difference.b for difference in compared if difference.p > 1 - confidence]
    said = f"{plural(len(preferences), 'pair')} read as {preferences.format}, {ties} of them ties, which are left out"
    return AgreementReport(rows, compared, best, "accuracy", POOLED, len(decided), said, confidence, lacking, "pairs")


def together(pairs: Sequence[Preference]) -> list[Hashable]:
    """A label for each pair: its content; where contents are not known, one of the images that pairs connect it with.

    Where only some contents are known, a pair without one belongs to the pairs that it shares an image with.

    Example:
        >>> together([Preference("a", "b", 1), Preference("c", "d", 1), Preference("d", "e", -1)])
        ['b', 'e', 'e']
    """
    if all(pair.content.strip() for pair in pairs):
        return [pair.content for pair in pairs]
    leads_to: dict[Hashable, Hashable] = {}

    def root(name: Hashable) -> Hashable:
        while (above := leads_to.setdefault(name, name)) != name:
            leads_to[name] = name = leads_to[above]
        return name

    for pair in pairs:
        leads_to[root(pair.a)] = root(pair.b)
        if pair.content.strip():
            leads_to[root(pair.a)] = root(("content", pair.content))
    return [root(pair.a) for pair in pairs]
