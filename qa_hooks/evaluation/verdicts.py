"""Values of several sets of images, and the comparison of each set with the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qa_hooks.drawing.tables import interval_text, text_table
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import FEW, METRICS, Sets, estimate_metrics, few_images, metric_name
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    bootstrap_interval,
    independent_difference,
    paired_difference,
)
from qa_hooks.scorers.giqa.gmm import GMMScorer

NO_VERDICT = "no verdict"
FEW_SCORES = (
    f"fewer than {FEW} scores of a set: where they are skewed, the interval of their mean is too narrow, and a verdict "
    "on means whose interval ends near 0 is not safe"
)
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
            which A is the first set and B the other: "A better", "B better", "cannot tell" or "no verdict".
        higher_is_better: the direction of each metric.
        real_counts: how many real images each metric was measured with, as `print` says in each row; without metrics
            that take none.
        always_judge: give a verdict on sets also where it would mislead (see `add_sets`).
        notes: what the reader has to know.
        mixture: the scorer of "qs" and "ds", fitted on the real images; None before.
    """

    labels: Sequence[str]
    paired: bool
    seed: int
    confidence: float
    always_judge: bool = False
    spec: dict[str, Any] = field(default_factory=dict)
    values: dict[str, dict[str, Interval]] = field(init=False)
    comparisons: dict[str, dict[str, Comparison]] = field(init=False)
    higher_is_better: dict[str, bool] = field(default_factory=dict)
    real_counts: dict[str, int] = field(default_factory=dict)
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
            if label == REAL:
                self.real_counts[name] = len(known)
        options: dict[str, Any] = {"higher_is_better": higher_is_better, "confidence": self.confidence}
        fewest = min(int(scores[label].isfinite().sum()) for label in self.labels)
        if self.comparisons and fewest < FEW and FEW_SCORES not in self.notes:
            self.notes.append(FEW_SCORES)
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
        """Metrics of sets, from features `(n, d)` of the real images, in random order, and of each set, by label.

        Untrained features tell that images differ, but not which difference is worse: they rank a coarse JPEG above a
        light blur. And of few images the intervals themselves are rough. In both cases there are numbers and no
        verdict, unless `always_judge`, or one of the two sets is the real images themselves, which are the best set in
        any features.
        """
        reference = Reference.of(real, extractor=extractor.fingerprint)
        if {"qs", "ds"} & set(metrics):
            self.mixture = GMMScorer(extractor)
            rows = Features.of(real, extractor.fingerprint)
            self.mixture.fit_features(rows, seed=self.seed)
        found = {
            label: estimate_metrics(Sets(reference, rows, groups, self.seed, scorer=self.mixture), metrics)
            for label, rows in features.items()
        }
        n, dim = features[self.labels[0]].shape
        doubt = "" if self.always_judge or not self.comparisons else _doubt(extractor, min(n, len(real)))
        copies = {label for label, rows in features.items() if _is_copy(rows, real)}
        for key, first in found[self.labels[0]].items():
            name = metric_name(key, extractor)
            self.higher_is_better[name] = first.higher_is_better
            if first.real:
                self.real_counts[name] = first.real
            for label, estimates in found.items():
                self.values[label][name] = estimates[key].interval(self.confidence)
            for label, differences in self.comparisons.items():
                options: dict[str, Any] = {"paired": self.paired, "confidence": self.confidence}
                differences[name] = first.compare(found[label][key], **options)
                if doubt and not {self.labels[0], label} & copies:
                    differences[name] = differences[name]._replace(verdict=NO_VERDICT)
        if any(NO_VERDICT in (c.verdict for c in found.values()) for found in self.comparisons.values()):
            self.notes.append(f"{doubt}: numbers, but no verdict; always_judge=True gives one anyway")
        if "fd" in metrics and n < 10 * dim:
            self.notes.append(
                f"{metric_name('fd', extractor)} is too large for want of images: n={n} is below ten times the "
                f"{dim} dimensions; compare it at this n only"
            )

    def __str__(self) -> str:
        """How it was measured, the values, the differences, and the notes."""
        return "\n\n".join(part if isinstance(part, str) else text_table(part) for part in self.parts())

    def parts(self) -> list[str | list[list[str]]]:
        """What `print` shows: words, and tables as rows of cells, the first row a heading."""
        columns = [label for label, found in self.values.items() if found]
        rows = [["", *columns]]
        for metric, higher in self.higher_is_better.items():
            cells = [self.values[label].get(metric) for label in columns]
            texts = ["" if cell is None else interval_text(cell) for cell in cells]
            count = self.real_counts.get(metric)
            beside = "" if count is None else f", {count} real"
            rows.append([f"{metric} ({'higher' if higher else 'lower'} is better{beside})", *texts])
        facts = ", ".join(f"{name} {value}" for name, value in self.spec.items() if value is not None)
        parts: list[str | list[list[str]]] = [facts, rows]
        if self.comparisons:
            rows = [["", *(f"{label} - {self.labels[0]}" for label in self.comparisons)]]
            for metric in self.higher_is_better:
                rows.append([metric, *(self._in_words(label, metric) for label in self.comparisons)])
            parts.append(rows)
        return [*parts, *(["\n".join(self.notes)] if self.notes else [])]

    def _in_words(self, label: str, metric: str) -> str:
        found = self.comparisons[label][metric]
        better = {"A better": f"{self.labels[0]} better", "B better": f"{label} better"}
        return f"{interval_text(found[:3])} {better.get(found.verdict, found.verdict)}"


def _doubt(extractor: FeatureExtractor, n: int) -> str:
    """Why there should be no verdict, in words; "" where there may be one."""
    return extractor.doubt or few_images(n)


def _is_copy(rows: Tensor, real: Tensor) -> bool:
    """Whether features come from the same images, in any order, up to rounding."""
    if rows.shape != real.shape:
        return False
    a, b = (part.sort(0).values for part in (rows.to(real), real))
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
