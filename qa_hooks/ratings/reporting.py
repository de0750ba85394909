"""How well several metrics agree with people: every statistic, of all images and by type, level and content."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from qa_hooks._base.progress import Progress
from qa_hooks.functional.clusters import FEWEST_CLUSTERS
from qa_hooks.ratings.agreeing import Agreement, MetricDifference, agreement, compare_metrics
from qa_hooks.ratings.joining import scored_by_all
from qa_hooks.ratings.preference_reporting import report_preferences, together
from qa_hooks.ratings.report import POOLED, AgreementReport, AgreementRow
from qa_hooks.ratings.rows import is_number
from qa_hooks.ratings.statistics import CORRELATIONS, STATISTICS, Rows, credits, logistic
from qa_hooks.ratings.tables import Preferences, Ratings

COLUMNS = ("content", "kind", "level", "split", "rater", "reference", "prompt")  # that group rows of ratings
BY = ("kind", "level", "content")  # by which the agreement is told
FEWEST_OF_A_CURVE = 10  # images that a logistic curve of four parameters is fitted on


def report_agreement(
    opinions: Ratings | Preferences,
    scores: Mapping[str, Rows],
    *,
    statistics: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    cluster: str = "content",
    confidence: float = 0.95,
    progress: bool = True,
) -> AgreementReport:
    """Agreement of several metrics with people, on the images that all of them have scored.

    Args:
        opinions: ratings, or preferences (of which there is one statistic, the accuracy).
        scores: goodness by metric, NaN where there is none: `(n,)` for the rows of ratings, or for the `names` of
            preferences.
        statistics: which; the first one decides which metric is best. By default all that there are. Preferences take
            no other choice than the accuracy, and none of `by` or of `cluster`.
        by: the columns by whose values the agreement is also told; those that the ratings lack are left out. By default
            kind, level and content.
        cluster: the column whose values belong together: "content", "prompt", "rater"; "" where every image is on its
            own, as an image with a blank value always is. Ratings by several raters are averaged first, unless the
            cluster is the rater.
        confidence: of the intervals.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError: a metric without spread or without scores for most images, fewer than five clusters, scores of
            another length, a column that ratings do not have, or a choice that preferences have no use for.

    Example:
        >>> import torch
        >>> ratings = Ratings([f"{i}.png" for i in range(40)], torch.arange(40.0), True, "1 to 40", "made up",
        ...     content=[str(i // 4) for i in range(40)])
        >>> report = report_agreement(ratings, {"good": np.arange(40.0), "bad": np.sin(np.arange(40.0))})
        >>> report.best, report.value("good").value
        (['good'], 1.0)
    """
    if not scores:
        raise ValueError("there is no metric to compare with people")
    statistics, by = check_choice(opinions, statistics, by, cluster)
    for metric, given in scores.items():
        if np.shape(given) != (len(opinions.names),):
            raise ValueError(
                f"{metric} has scores of the shape {np.shape(given)} for {len(opinions.names)} images, wanted "
                f"({len(opinions.names)},)"
            )
    check_enough(opinions, cluster)
    if isinstance(opinions, Preferences):
        return report_preferences(opinions, scores, confidence=confidence)
    if opinions.rater and cluster != "rater":
        opinions, scores = opinions.mean_opinion(), _of_first(opinions, scores)
    mask, lacking = scored_by_all(scores, opinions.names)
    kept = opinions.select(mask)
    if not len(kept):
        raise ValueError("no image has a score of every metric")
    scores = {name: values[mask.numpy()] for name, values in scores.items()}
    told = cluster and any(value.strip() for value in getattr(kept, cluster))
    if cluster and not told and cluster != "content":
        raise ValueError(f"these ratings have no {cluster}")
    labels = kept.together(cluster) if told else None  # a blank value is no cluster: the image is on its own
    wanted = [s for s in statistics if s != "accuracy" or labels is not None]
    if not wanted:
        raise ValueError("accuracy compares images of one content, which these ratings do not tell")
    pooled = wanted if kept.across_contents else [s for s in wanted if s == "accuracy"]
    columns = [name for name in by if getattr(kept, name)]
    cells: list[tuple[str, str | None, str]] = [(POOLED, None, statistic) for statistic in pooled]
    for column in columns:
        values = _in_order([value for value in getattr(kept, column) if column != "content" or value.strip()])
        inside = [s for s in wanted if column == "content" or s in pooled]
        cells += [(column, group, s) for group in [*values, None] if len(values) > 1 for s in inside]
    decides = (pooled or [s for s in wanted if "content" in columns] or [""])[0]
    if not decides:
        raise ValueError(f"{kept.scale}: ask for accuracy, or with by=['content'] for means within contents")
    truth = kept.goodness.numpy()
    rows: list[AgreementRow] = []
    with Progress("agreement", len(scores) * len(cells), unit="number", shown=progress) as bar:
        for metric, of_metric in scores.items():
            for column, group, statistic in cells:
                own = kept.together() if column == "content" else getattr(kept, column) if column else None
                rows.append(
                    AgreementRow(metric, column, group, statistic, *_found(
                        metric, of_metric, truth, labels, own, group, statistic, confidence
                    ))
                )  # fmt: skip
                bar.update(1)
    compared: list[MetricDifference] = []
    if len(scores) > 1:
        within = None if pooled else kept.together()
        compared = compare_metrics(
            scores, truth, statistic=decides, clusters=labels, groups=within, confidence=confidence
        )
    best = [compared[0].a if compared else next(iter(scores))]
    best += [row.b for row in compared if row.p > 1 - confidence]
    where = POOLED if pooled else "content"
    said = str(kept).splitlines()[0]
    over = f"{len(set(labels))} {cluster}s" if labels else "images, each on its own"
    return AgreementReport(rows, compared, best, decides, where, len(kept), said, confidence, lacking, over=over)


def _in_order(values: Sequence[str]) -> list[str]:
    """Each value once: levels from 1 to 10 as numbers, names as names."""
    once = set(values)
    return sorted(once, key=float) if all(is_number(value) for value in once) else sorted(once)


def _of_first(ratings: Ratings, scores: Mapping[str, Rows]) -> dict[str, Rows]:
    """The scores of the images in the order in which `mean_opinion` has them."""
    first: dict[str, int] = {}
    for row, name in enumerate(ratings.names):
        first.setdefault(name, row)
    return {metric: values[list(first.values())] for metric, values in scores.items()}


def check_choice(
    opinions: Ratings | Preferences, statistics: Sequence[str] | None, by: Sequence[str] | None, cluster: str
) -> tuple[Sequence[str], Sequence[str]]:
    """Statistics and columns, with what None stands for; `ValueError` for a choice that these opinions do not have."""
    if statistics is not None and not statistics:
        raise ValueError(f"name at least one statistic of {', '.join(STATISTICS)}")
    if unknown := [name for name in statistics or () if name not in STATISTICS]:
        raise ValueError(f"statistics must be of {', '.join(STATISTICS)}, got {', '.join(unknown)}")
    if isinstance(opinions, Preferences):
        needless = []
        if others := [name for name in statistics or () if name != "accuracy"]:
            needless.append(f"statistics ({', '.join(others)}): their one statistic is accuracy")
        if by:
            needless.append(f"by ({', '.join(by)}): they have no such columns")
        if cluster != "content":
            needless.append(
                f"cluster ({cluster or 'none'}): pairs of one content or with a common image belong together"
            )
        if needless:
            raise ValueError(f"preferences have no use for {'; nor for '.join(needless)}")
    if unknown := [name for name in by or () if name not in COLUMNS]:
        raise ValueError(f"by must be of {', '.join(COLUMNS)}, got {', '.join(map(repr, unknown))}")
    if cluster not in ("", *COLUMNS):
        raise ValueError(f"cluster must be of {', '.join(COLUMNS)}, or '' for none, got {cluster!r}")
    return STATISTICS if statistics is None else statistics, BY if by is None else by


def check_enough(opinions: Ratings | Preferences, cluster: str) -> None:
    """`ValueError` where no metric can be judged by these opinions, which is known before any image is scored."""
    if isinstance(opinions, Preferences):
        labels = together([pair for pair in opinions if pair.better])
    else:
        if len(opinions) and float(opinions.rating.min()) == float(opinions.rating.max()):
            raise ValueError(
                f"all {len(opinions)} ratings are {float(opinions.rating[0]):g}: no metric can agree with them, or not"
            )
        known = bool(cluster) and any(value.strip() for value in getattr(opinions, cluster))
        labels = opinions.together(cluster) if known else [*opinions.names]
        cluster = cluster if known else "image"
    if len(set(labels)) < FEWEST_CLUSTERS:
        raise ValueError(f"an interval needs at least {FEWEST_CLUSTERS} {cluster}s, got {len(set(labels))}")


def _found(
    metric: str,
    values: Rows,
    truth: Rows,
    labels: Sequence[Hashable] | None,
    own: Sequence[Hashable] | None,
    group: str | None,
    statistic: str,
    confidence: float,
) -> tuple[Agreement, str]:
    """The number of one cell, and why there is none."""
    rows = np.arange(len(truth))
    if own is not None and group is not None:
        rows = np.array([row for row, label in enumerate(own) if label == group])
    clusters = [labels[row] for row in rows.tolist()] if labels is not None else None
    count = len(rows) if clusters is None else len(set(clusters))
    groups = own if group is None else None
    try:
        if statistic == "plcc_logistic" and len(rows) < FEWEST_OF_A_CURVE:
            raise ValueError(
                f"a logistic curve needs {FEWEST_OF_A_CURVE} images, got {len(rows)}: leave plcc_logistic out of "
                "statistics="
            )
        if count < FEWEST_CLUSTERS and own is not None:
            return _value_only(values[rows], truth[rows], statistic, clusters, count), ""
        return agreement(
            values[rows], truth[rows], statistic=statistic, clusters=clusters, groups=groups, confidence=confidence
        ), ""
    except ValueError as error:
        if own is None:
            raise ValueError(f"{metric}: {error}") from error
        return Agreement(float("nan"), float("nan"), float("nan"), len(rows), count), str(error)


def _value_only(
    values: Rows, truth: Rows, statistic: str, clusters: Sequence[Hashable] | None, count: int
) -> Agreement:
    """Too few clusters for an interval."""
    unknown = float("nan")
    if len(values) < 2 or np.ptp(truth) == 0:
        raise ValueError("fewer than two different ratings")
    if statistic == "accuracy":
        rows: dict[Hashable, list[int]] = {}
        for row, label in enumerate(clusters or []):
            rows.setdefault(label, []).append(row)
        members = [np.array(own) for own in rows.values()]
        correct, decided, ties = credits(values, truth, members)
        value = float(correct.sum() / decided.sum())
        return Agreement(value, unknown, unknown, len(values), count, ties)
    if np.ptp(values) == 0:
        raise ValueError(f"the metric is {values[0]:g} everywhere")
    fitted = logistic(values, truth) if statistic == "plcc_logistic" else values
    return Agreement(CORRELATIONS[statistic](fitted, truth), unknown, unknown, len(values), count)
