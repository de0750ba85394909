"""A statistic of agreement without each cluster of rows in turn; `qa_hooks.functional.clusters` makes the interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from qa_hooks.functional.clusters import FEWEST_CLUSTERS, Measured, as_labels
from qa_hooks.functional.intervals import jackknife_subsets
from qa_hooks.ratings.statistics import CORRELATIONS, Rows, credits, logistic

BLOCKS = 200  # clusters that are more than so many are left out several at a time
Indices = NDArray[np.int64]


class Clusters:
    """Which rows belong together, and the blocks of clusters that are left out in turn.

    Args:
        labels: the cluster of each row; None: each row is one.
        n: how many rows.
        seed: of the division into blocks, where there are more clusters than `BLOCKS`.
    """

    def __init__(self, labels: Sequence[Hashable] | None, n: int, *, seed: int = 0) -> None:
        given = list(range(n)) if labels is None else as_labels(labels)
        if len(given) != n:
            raise ValueError(f"clusters has {len(given)} values for {n} images")
        numbers: dict[Hashable, int] = {}
        self.of_row = np.array([numbers.setdefault(label, len(numbers)) for label in given])
        self.count = len(numbers)
        if self.count < FEWEST_CLUSTERS:
            raise ValueError(f"an interval needs at least {FEWEST_CLUSTERS} contents, got {self.count}")
        order = np.argsort(self.of_row, kind="stable")
        self.members: list[Indices] = np.split(order, np.cumsum(np.bincount(self.of_row))[:-1])
        subsets = jackknife_subsets(self.count, groups=min(self.count, BLOCKS), seed=seed)
        self.kept = [subset.numpy() for subset in subsets]  # clusters

    def leave_out(self, statistic: Callable[[Indices], float]) -> Measured:
        """A statistic of rows at these positions."""
        everything, without = np.arange(len(self.of_row)), []
        for clusters in self.kept:
            mask = np.zeros(self.count, dtype=bool)
            mask[clusters] = True
            without.append(statistic(everything[mask[self.of_row]]))
        return Measured(statistic(everything), np.array(without), self.count)

    def ratio(self, parts: Rows, counts: Rows, *, pairs: float = 0.0, ties: float = 0.0) -> Measured:
        """The sum of each cluster's part over the sum of its counts."""
        without = [parts[kept].sum() / max(counts[kept].sum(), 1e-300) for kept in self.kept]
        return Measured(float(parts.sum() / counts.sum()), np.array(without), self.count, pairs, ties)


def measure(
    values: Rows, truth: Rows, statistic: str, clusters: Clusters, groups: Sequence[Hashable] | None = None
) -> Measured:
    """A statistic of agreement; with `groups` its mean over the groups, within each of which it is computed.

    A metric that is constant within a group agrees with nobody there and counts as 0 (of shares, half). Groups whose
    ratings are all alike say nothing and are left out.
    """
    if statistic == "accuracy":
        return _accuracy(values, truth, clusters, groups)
    if statistic == "plcc_logistic":
        values = logistic(values, truth)
    correlate = CORRELATIONS[statistic]

    def of(rows: Indices) -> float:
        found = correlate(values[rows], truth[rows])
        return 0.0 if math.isnan(found) else found

    if groups is None:
        return clusters.leave_out(of)
    of_group = _numbered(groups)
    parts = [rows for rows in _split(of_group) if len(rows) > 1 and np.ptp(truth[rows]) > 0]
    if not parts:
        raise ValueError("no group holds two different ratings")
    if all(len(set(clusters.of_row[rows])) == 1 for rows in parts):  # each within a cluster: computed once
        sums, counts = np.zeros(clusters.count), np.zeros(clusters.count)
        for rows in parts:
            sums[clusters.of_row[rows[0]]] += of(rows)
            counts[clusters.of_row[rows[0]]] += 1
        return clusters.ratio(sums, counts)

    def mean(rows: Indices) -> float:
        kept = np.zeros(len(truth), dtype=bool)
        kept[rows] = True
        inside = [part[kept[part]] for part in parts]
        return float(np.mean([of(part) for part in inside if len(part) > 1 and np.ptp(truth[part]) > 0] or [0.0]))

    return clusters.leave_out(mean)


def _accuracy(values: Rows, truth: Rows, clusters: Clusters, groups: Sequence[Hashable] | None) -> Measured:
    if groups is None:
        correct, decided, ties = credits(values, truth, clusters.members)
        return clusters.ratio(correct, decided, pairs=float(decided.sum()), ties=ties)
    of_group, total = _numbered(groups), 0.0
    shares, known = np.zeros(clusters.count), np.zeros(clusters.count)
    for group in range(of_group.max() + 1):  # the mean of the groups' shares, each cluster with its part of each
        members = [rows[of_group[rows] == group] for rows in clusters.members]
        try:
            correct, decided, _ = credits(values, truth, members)
        except ValueError:
            continue
        shares += correct / decided.sum()
        known += decided / decided.sum()
        total += float(decided.sum())
    if not total:
        raise ValueError("no group holds two images of one content with different ratings")
    return clusters.ratio(shares, known, pairs=total)


def _numbered(labels: Sequence[Hashable]) -> Indices:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in as_labels(labels)])


def _split(codes: Indices) -> list[Indices]:
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
