"""What was found of two sets of images, and how they compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from qa_hooks.evaluation.set_metrics import (
    compare_sets,
    higher_is_better,
    metric_name,
    resampled_metrics,
    set_interval,
)
from qa_hooks.features import FeatureExtractor
from qa_hooks.functional.intervals import Comparison, Interval, bootstrap_interval, paired_difference
from qa_hooks.scorers.scorer import Scorer


class Found:
    """Gathers what each metric says of A and B."""

    def __init__(self, confidence: float, seed: int) -> None:
        self.confidence, self.seed = confidence, seed
        self.comparisons: dict[str, Comparison] = {}
        self.values: dict[str, tuple[Interval, Interval]] = {}
        self.higher_is_better: dict[str, bool] = {}

    def add_scores(self, scorer: Scorer, a: Tensor, b: Tensor) -> None:
        """Scores `(n,)` of the same seeds: the mean of their differences."""
        _check_finite(scorer.name, a, b)
        options: dict[str, Any] = {"confidence": self.confidence, "seed": self.seed}
        self.higher_is_better[scorer.name] = scorer.higher_is_better
        self.comparisons[scorer.name] = paired_difference(a, b, higher_is_better=scorer.higher_is_better, **options)
        self.values[scorer.name] = bootstrap_interval(a, **options), bootstrap_interval(b, **options)

    def add_sets(
        self, extractor: FeatureExtractor, real: Tensor, a: Tensor, b: Tensor, *, metrics: Sequence[str], groups: int
    ) -> None:
        """Features `(n, d)` of the same seeds: the difference of their distances to the real ones."""
        of_a, of_b = (resampled_metrics(real, part, metrics, groups=groups, seed=self.seed) for part in (a, b))
        for key, row_a in of_a.items():
            name, row_b = metric_name(key, extractor), of_b[key]
            options: dict[str, Any] = {"n": len(a), "confidence": self.confidence}
            self.higher_is_better[name] = higher_is_better(key)
            self.comparisons[name] = compare_sets(key, row_a, row_b, paired=True, **options)
            self.values[name] = set_interval(key, row_a, **options), set_interval(key, row_b, **options)


def _check_finite(name: str, a: Tensor, b: Tensor) -> None:
    for model, scores in (("A", a), ("B", b)):
        lost = int((~scores.isfinite()).sum())
        if lost:
            raise ValueError(f"{lost} of {len(scores)} scores ({name}) of {model} are not finite")
