"""What a set of generated images is worth: its distances to real images in a feature space, each with its interval.

    fd                 Frechet distance to the Gaussian of all real images
    kid                kernel distance to `rows` real images
    precision_recall   precision, recall, density, coverage against equally many real images
    is                 inception score of a classifier's logits
    qs, ds             quality and diversity score of a fitted scorer (GIQA)

The 95 % intervals are about chance, not about bias: they hold the value that other samples of this size would have on
average, against the same real images. A Frechet distance of n images is too large by about c / n, so compare equal n.
Sets of features leave groups out in turn (`group_jackknife`); precision, a share of independent images, has Wilson's
interval; those of recall and coverage are conservative; the kernel distance brings its own error; means have theirs,
which for the diversity score leaves out how its model varies with the generated images.

Everything here is in features of images quantised to 8 bits, real and generated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks.evaluation.quality_diversity import diversity_score, quality_score
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import (
    NEIGHBOURS,
    check_metrics,
    extractor_label,
    frechet_to,
    is_canonical,
    metric_name,
    resampled_metrics,
    set_interval,
)
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.functional.frechet import inception_score
from qa_hooks.functional.intervals import Interval, group_jackknife, t_interval
from qa_hooks.functional.kid import kernel_distance

METRICS = {
    "fd": ("fd",),
    "kid": ("kid",),
    "precision_recall": ("precision", "recall", "density", "coverage"),
    "is": ("is",),
    "qs": ("qs",),
    "ds": ("ds",),
}
INFINITY = float("inf")
LIMITS = {"fd": (0.0, INFINITY), "kid": (-INFINITY, INFINITY), "is": (1.0, INFINITY), "density": (0.0, INFINITY)}


class Measurement(NamedTuple):
    """A value, its 95 % interval, how many generated images it comes from, and how it was made.

    Values with different specs cannot be compared.
    """

    value: float
    low: float
    high: float
    n: int
    spec: str


def measure(
    features: Tensor,
    reference: Reference,
    metrics: Sequence[str],
    *,
    extractor: FeatureExtractor,
    logits: Tensor | None = None,
    scorer: Any = None,
    groups: int = 10,
) -> dict[str, Measurement]:
    """Each metric of one set of generated images.

    Args:
        features: `(n, d)` of the generated images, from images quantised to 8 bits.
        reference: from `make_reference` with the same extractor.
        metrics: some of `METRICS`. "ds" fits a model: with several processes all of them must ask for it.
        extractor: for its name.
        logits: `(n, classes)`, for "is".
        scorer: fitted in this extractor's features, for "qs" and "ds".
        groups: of the jackknife; fewer cost less and give a rougher interval.

    Raises:
        ValueError: metrics that are unknown or lack what they need, features of another extractor, too few rows.

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> from qa_hooks.evaluation.reference import make_reference
        >>> extractor = create_extractor("random", width=4)
        >>> images = (torch.rand(80, 3, 8, 8) * 255).byte()
        >>> reference = make_reference(extractor, images[:40])
        >>> found = measure(extractor(images[40:]), reference, ["kid"], extractor=extractor)
        >>> found["kid"].low < found["kid"].value < found["kid"].high, found["kid"].n
        (True, 40)
    """
    metrics = check_needs(metrics, classifier=logits, scorer=scorer)
    if extractor.fingerprint != reference.extractor:
        raise ValueError(f"the reference was made by an extractor {reference.extractor}, not by {extractor!r}")
    found: dict[str, Measurement] = {}
    n, rows = len(features), reference.rows
    facts = f"{extractor_label(extractor)}, {extractor.fingerprint[:4]}, uint8, ref={reference.data[:4]}"

    def add(key: str, interval: Interval, count: int, *more: str) -> None:
        low, high = LIMITS.get(key, (0.0, 1.0))
        ends = max(interval.low, low), min(interval.high, high)
        spec = f"{metric_name(key, extractor)}[{', '.join([facts, *more, f'n={count}'])}]"
        found[key] = Measurement(interval.value, *ends, count, spec)

    if "fd" in metrics:
        gaussian = reference.mean, reference.covariance, reference.factor
        value, error = group_jackknife(lambda chosen: frechet_to(*gaussian, features[chosen]), n, groups=groups)
        add("fd", t_interval(value, error, degrees=groups - 1), n, f"real={reference.count}")
    if "kid" in metrics:
        value, error = kernel_distance(rows, features, fixed_real=True)
        add("kid", t_interval(value, error, degrees=n - 1), n, "degree=3", f"real={len(rows)}")
    if "precision_recall" in metrics:
        equal = min(n, len(rows))
        resampled = resampled_metrics(rows[:equal], features[:equal], ["pr"], groups=groups)
        for key, row in resampled.items():
            add(key, set_interval(key, row, n=n), equal, f"k={NEIGHBOURS}", f"real={equal}")
    if "is" in metrics and logits is not None:
        value, error = group_jackknife(lambda chosen: _inception(logits[chosen]), n, groups=groups)
        add("is", t_interval(value, error, degrees=groups - 1), n, f"classes={logits.shape[1]}", "splits=1")
    for key in ("qs", "ds"):
        if key in metrics:
            generated, real = (Features(r.cpu(), extractor.fingerprint, torch.arange(len(r))) for r in (features, rows))
            equal = min(n, len(rows))
            score = quality_score(scorer, generated)
            if key == "ds":
                score = diversity_score(scorer, generated[:equal], real[:equal], progress=False)
            interval = t_interval(score.value, score.error, degrees=score.n - 1)
            found[key] = Measurement(score.value, max(interval.low, 0.0), min(interval.high, 1.0), score.n, score.spec)
    return found


def check_comparable(extractor: FeatureExtractor, real: Sequence[int], generated: Sequence[int]) -> None:
    """Refuse images of other sizes or channels, (C, H, W), whose features would differ for that reason alone.

    Raises:
        ValueError: channels that differ; or sizes that differ where the extractor does not resize.
    """
    resizes = extractor.size is not None or is_canonical(extractor)
    if real[0] != generated[0] or (tuple(real[1:]) != tuple(generated[1:]) and not resizes):
        shapes = ["x".join(map(str, shape)) for shape in (real, generated)]
        raise ValueError(
            f"real images are {shapes[0]} and generated ones {shapes[1]} (channels x height x width), and that is what "
            f"the features of {extractor.name} would measure; bring them to one size, or give the extractor a size="
        )


def check_needs(metrics: Sequence[str], *, classifier: Any = None, scorer: Any = None) -> tuple[str, ...]:
    """The metrics once each; `ValueError` for none, unknown ones and for what they lack."""
    metrics = check_metrics(metrics, METRICS)
    if not metrics:
        raise ValueError(f"metrics must be some of {tuple(METRICS)}, got none")
    if "is" in metrics and classifier is None:
        raise ValueError(
            'the metric "is" needs the logits of a classifier: pass classifier=, a callable that takes images '
            "(N, C, H, W) in [0, 1] and gives (N, classes)"
        )
    for metric in ("qs", "ds"):
        if metric in metrics and (scorer is None or scorer.calibration is None or not hasattr(scorer, "refit")):
            raise ValueError(
                f'the metric "{metric}" needs scorer=, a GMMScorer or KNNScorer fitted on real images and calibrated'
            )
    return metrics


def _inception(logits: Tensor) -> Tensor:
    return inception_score(logits, splits=1)[0]
