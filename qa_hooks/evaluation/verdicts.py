"""What was found of some sets of images, and how each of them compares with the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qa_hooks.drawing.tables import interval_text, text_table
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import METRICS, Sets, estimate_metrics, metric_name
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    bootstrap_interval,
    independent_difference,
    paired_difference,
)
from qa_hooks.scorers.giqa.gmm import GMMScorer

REAL = "real"  # the label of the real images
COMPARED = [key for key, metric in METRICS.items() if metric.needs != "classifier"]  # the metrics of comparisons


@dataclass(eq=False, kw_only=True)
class Verdicts:
    """Values with intervals, and differences with verdicts; all processes compute the same from the same numbers.

    Attributes:
        labels: of the sets of generated images.
        paired: the i-th images of all sets belong together.
        seed, confidence: of the intervals.
        spec: how it was measured; values of other specs are not comparable.
        values: by label (and "real" for scores), then by metric: value and interval.
        comparisons: by label of each set but the first, then by metric: that set minus the first, with a verdict in
            which A is the first set and B the other.
        higher_is_better: the direction of each metric.
        notes: what the reader has to know.
        mixture: the scorer of "qs" and "ds", fitted on the real images; None before.
    """

    labels: Sequence[str]
    paired: bool
    seed: int
    confidence: float
    spec: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, Interval]] = field(init=False)
    comparisons: dict[str, dict[str, Comparison]] = field(init=False)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mixture: GMMScorer | None = None

    def __post_init__(self) -> None:
        self.values = {label: {} for label in (REAL, *self.labels)}
        self.comparisons = {label: {} for label in self.labels[1:]}

    def add_scores(self, name: str, scores: Mapping[str, Tensor], *, higher_is_better: bool) -> None:
        """Mean scores, `(n,)` by label, of the real images too where there are any; NaN is left out, of pairs both."""
        self.higher_is_better[name] = higher_is_better
        for label, values in scores.items():
            known = values[values.isfinite()]
            self.values[label][name] = bootstrap_interval(known, confidence=self.confidence, seed=self.seed)
        options: dict[str, Any] = {"higher_is_better": higher_is_better, "confidence": self.confidence}
        for label, found in self.comparisons.items():
            a, b = scores[self.labels[0]], scores[label]
            if self.paired:
                both = a.isfinite() & b.isfinite()
                found[name] = paired_difference(a[both], b[both], seed=self.seed, **options)
            else:
                found[name] = independent_difference(a[a.isfinite()], b[b.isfinite()], **options)

    def add_sets(
        self,
        extractor: FeatureExtractor,
        real: Tensor,
        features: Mapping[str, Tensor],
        metrics: Sequence[str],
        *,
        groups: int = 10,
    ) -> None:
        """Metrics of sets, from features `(n, d)` of the real images and of each set, by label."""
        reference = Reference.of(real, extractor=extractor.fingerprint)
        if {"qs", "ds"} & set(metrics):
            self.mixture = GMMScorer(extractor)
            self.mixture.fit_features(Features(real, extractor.fingerprint, torch.arange(len(real))), seed=self.seed)
        found = {
            label: estimate_metrics(Sets(reference, rows, groups, self.seed, scorer=self.mixture), metrics)
            for label, rows in features.items()
        }
        for key, first in found[self.labels[0]].items():
            name = metric_name(key, extractor)
            self.higher_is_better[name] = first.higher_is_better
            for label, estimates in found.items():
                self.values[label][name] = estimates[key].interval(self.confidence)
            for label, differences in self.comparisons.items():
                options: dict[str, Any] = {"paired": self.paired, "confidence": self.confidence}
                differences[name] = first.compare(found[label][key], **options)
        n, dim = features[self.labels[0]].shape
        if "fd" in metrics and n < 10 * dim:
            self.notes.append(
                f"{metric_name('fd', extractor)} is too large for want of images: n={n} is below ten times the "
                f"{dim} dimensions; compare it at this n only"
            )

    def __str__(self) -> str:
        """How it was measured, the values, the differences, and the notes."""
        columns = [label for label, found in self.values.items() if found]
        rows = [["", *columns]]
        for metric, higher in self.higher_is_better.items():
            cells = [self.values[label].get(metric) for label in columns]
            texts = ["" if cell is None else interval_text(cell) for cell in cells]
            rows.append([f"{metric} ({'higher' if higher else 'lower'} is better)", *texts])
        facts = ", ".join(f"{name} {value}" for name, value in self.spec.items() if value is not None)
        parts = [facts, text_table(rows)]
        if self.comparisons:
            rows = [["", *(f"{label} - {self.labels[0]}" for label in self.comparisons)]]
            for metric in self.higher_is_better:
                rows.append([metric, *(self._in_words(label, metric) for label in self.comparisons)])
            parts.append(text_table(rows))
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])

    def _in_words(self, label: str, metric: str) -> str:
        found = self.comparisons[label][metric]
        better = {"A better": f"{self.labels[0]} better", "B better": f"{label} better"}
        return f"{interval_text(found[:3])} {better.get(found.verdict, found.verdict)}"
