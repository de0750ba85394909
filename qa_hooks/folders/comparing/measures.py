"""The numbers of a comparison of folders: values with intervals, and differences to the first folder with verdicts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from qa_hooks.evaluation.set_metrics import (
    SET_METRICS,
    compare_sets,
    higher_is_better,
    metric_name,
    resampled_metrics,
    set_interval,
)
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.folders.comparing.image_sets import ImageSet
from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    bootstrap_interval,
    compare_interval,
    paired_difference,
    t_interval,
)

METRICS = (*SET_METRICS, "qs", "ds")
GROUPS = 10  # of the jackknife


class Measured:
    """Collects the numbers of some folders; all processes compute the same ones from the same features and scores.

    Args:
        real: the real images.
        sets: the generated ones, equally many of each.
        paired: the i-th images of all sets belong together.
        seed, confidence: of the intervals.

    Attributes:
        values: by label, then by metric.
        comparisons: by label of each set but the first, then by metric.
        directions: whether higher is better, by metric.
        notes: what the reader has to know.
    """

    def __init__(self, real: ImageSet, sets: Sequence[ImageSet], *, paired: bool, seed: int, confidence: float) -> None:
        self.real, self.generated, self.paired = real, sets, paired
        self.seed, self.confidence = seed, confidence
        self.values: dict[str, dict[str, Interval]] = {part.label: {} for part in (real, *sets)}
        self.comparisons: dict[str, dict[str, Comparison]] = {part.label: {} for part in sets[1:]}
        self.directions: dict[str, bool] = {}
        self.notes: list[str] = []

    def scores(self, name: str, *, higher: bool) -> None:
        """Mean scores; the differences image by image where the sets are paired."""
        self.directions[name] = higher
        for part in (self.real, *self.generated):
            if name in part.scores:
                known = self._finite(part, name)
                self.values[part.label][name] = bootstrap_interval(known, confidence=self.confidence, seed=self.seed)
        first = self.generated[0].scores[name]
        for part in self.generated[1:]:
            self.comparisons[part.label][name] = self._difference(first, part.scores[name], higher)

    def sets(self, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
        """Metrics of sets, in features."""
        wanted = [metric for metric in metrics if metric in SET_METRICS]
        rows = [
            resampled_metrics(self.real.features, part.features, wanted, groups=GROUPS, seed=self.seed)
            for part in self.generated
        ]
        n, dim = self.generated[0].features.shape
        for key in rows[0]:
            name = metric_name(key, extractor)
            self.directions[name] = higher_is_better(key)
            for part, row in zip(self.generated, rows, strict=True):
                self.values[part.label][name] = set_interval(key, row[key], n=n, confidence=self.confidence)
            for part, row in zip(self.generated[1:], rows[1:], strict=True):
                self.comparisons[part.label][name] = compare_sets(
                    key, rows[0][key], row[key], paired=self.paired, n=n, confidence=self.confidence
                )
        if "fd" in wanted and n < 10 * dim:
            self.notes.append(
                f"{metric_name('fd', extractor)} is too large for want of images: n={n} is below ten times the "
                f"{dim} dimensions; compare it at this n only"
            )
        if {"qs", "ds"} & set(metrics):
            self._giqa(extractor, metrics)

    def _giqa(self, extractor: FeatureExtractor, metrics: Sequence[str]) -> None:
        from qa_hooks.evaluation.quality_diversity import diversity_score
        from qa_hooks.scorers.giqa.gmm import GMMScorer
        from qa_hooks.scorers.score_source import score_features

        model = GMMScorer(extractor)
        model.fit_features(_features(self.real, extractor), seed=self.seed)
        quality, diversity = (metric_name(key, extractor) for key in ("qs", "ds"))
        if "qs" in metrics:
            calibrated = model.calibrated()
            for part in self.generated:
                part.scores[quality] = score_features(calibrated, _features(part, extractor)).double()
            self.scores(quality, higher=True)
        if "ds" not in metrics:
            return
        n, errors = len(self.generated[0].paths), {}
        self.directions[diversity] = True
        for part in self.generated:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that of two unequal sets some images are drawn
                score = diversity_score(model, _features(part, extractor), _features(self.real, extractor)[:n])
            errors[part.label] = score.error
            self.values[part.label][diversity] = t_interval(
                score.value, score.error, degrees=score.n - 1, confidence=self.confidence
            )
        first = self.generated[0].label
        for label, found in self.comparisons.items():
            value = self.values[label][diversity].value - self.values[first][diversity].value
            error = math.hypot(errors[first], errors[label])
            interval = t_interval(value, error, degrees=2 * (n - 1), confidence=self.confidence)
            found[diversity] = compare_interval(interval, higher_is_better=True, n=n)

    def _finite(self, part: ImageSet, name: str) -> Tensor:
        scores = part.scores[name]
        known = scores[scores.isfinite()]
        if len(known) < 2:
            first = next(iter(part.refused.values()), "all scores are NaN or infinite")
            raise ValueError(f"{name} has a score for {len(known)} of {len(scores)} images of {part.folder}: {first}")
        if len(known) < len(scores):
            self.notes.append(f"{part.label}: {len(scores) - len(known)} of {len(scores)} images have no {name}")
        return known

    def _difference(self, a: Tensor, b: Tensor, higher: bool) -> Comparison:
        if self.paired:
            known = a.isfinite() & b.isfinite()
            return paired_difference(
                a[known], b[known], higher_is_better=higher, confidence=self.confidence, seed=self.seed
            )
        a, b = a[a.isfinite()], b[b.isfinite()]
        error = math.sqrt(float(a.var()) / len(a) + float(b.var()) / len(b))
        interval = t_interval(
            float(b.mean() - a.mean()), error, degrees=min(len(a), len(b)) - 1, confidence=self.confidence
        )
        return compare_interval(interval, higher_is_better=higher, n=min(len(a), len(b)))


def _features(part: ImageSet, extractor: FeatureExtractor) -> Features:
    return Features(part.features, extractor.fingerprint, torch.arange(len(part.features)))
