"""Measure a set of generated images against real images: each set metric with its interval and its spec.

Everything here is in features of images quantised to 8 bits, real and generated alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from qa_hooks.evaluation.quality_diversity import score_spec
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import (
    METRICS,
    Sets,
    estimate_metrics,
    extractor_label,
    metric_name,
    metric_of,
)
from qa_hooks.features import FeatureExtractor


class Measurement(NamedTuple):
    """A value, its 95 % interval, how many generated images it comes from, how it was made, and its name in curves.

    Values with different specs cannot be compared. `settings` is the spec without what it says of the real images.
    `real` is how many real images these are compared with, 0 where there are none; `doubt` is what is to be said beside
    a value in untrained features, else "".
    """

    value: float
    low: float
    high: float
    n: int
    spec: str
    name: str
    settings: str
    real: int = 0
    doubt: str = ""


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
        metrics: some of "fd", "kid", "pr", "is", "qs", "ds" (`set_metrics`, which says how many of the real images
            each of them takes; `Measurement.real` says it of each value). "ds" fits a model: with several processes
            all of them must ask for it.
        extractor: for its name.
        logits: `(n, classes)`, for "is".
        scorer: fitted in this extractor's features, for "qs" and "ds".
        groups: of the jackknife; fewer cost less and give a rougher interval.

    Raises:
        ValueError: metrics that are unknown or lack what they need, features of another extractor, too few rows.

    Example:
        >>> import torch
        >>> from qa_hooks.features import create_extractor
        >>> from qa_hooks.evaluation.reference import make_reference
        >>> extractor = create_extractor("random", width=4)
        >>> images = (torch.rand(80, 3, 8, 8) * 255).byte()
        >>> reference = make_reference(extractor, images[:40])
        >>> found = measure(extractor(images[40:]), reference, ["kid"], extractor=extractor)
        >>> found["kid"].low < found["kid"].value < found["kid"].high, found["kid"].n
        (True, 40)
    """
    if extractor.fingerprint != reference.extractor:
        raise ValueError(f"the reference was made by an extractor {reference.extractor}, not by {extractor!r}")
    sets = Sets(reference, features, groups=groups, logits=logits, scorer=scorer)
    features_of = f"{extractor_label(extractor)}, {extractor.fingerprint[:4]}, uint8"
    found = {}
    for key, estimate in estimate_metrics(sets, metrics).items():
        name, own = _name(key, extractor, scorer), METRICS[metric_of(key)]
        if own.needs == "scorer":
            draw = sets.seed if key == "ds" else None
            spec, settings = (
                score_spec(key.upper(), scorer, estimate.n, seed=draw, fitted_on=whole) for whole in (True, False)
            )
        else:
            how, beside = ([text] if text else [] for text in (own.settings(sets), _beside(estimate.real)))
            n = f"n={estimate.n}"
            spec = f"{name}[{', '.join([features_of, f'ref={reference.data[:4]}', *how, *beside, n])}]"
            # Of metrics of equally many images n depends on the real ones.
            settings = f"{name}[{', '.join([features_of, *how, *([] if own.equal else [n])])}]"
        doubt = "" if own.needs == "classifier" else extractor.doubt
        found[key] = Measurement(*estimate.interval(), estimate.n, spec, name, settings, estimate.real, doubt)
    return found


def real_images_used(
    metrics: Sequence[str], extractor: FeatureExtractor, n: int, real: Reference, *, scorer: Any = None
) -> str:
    """How many real images each value of n generated ones is measured with, in words.

    Example:
        >>> import torch
        >>> from qa_hooks.features import create_extractor
        >>> extractor, real = create_extractor("random"), Reference.of(torch.rand(600, 448))
        >>> real_images_used(["fd", "kid", "is"], extractor, 60, real)
        '600 for fd_random, kd_random'
        >>> real_images_used(["fd", "pr"], extractor, 60, real)
        '600 for fd_random; 60 for precision_random, recall_random, density_random, coverage_random'
    """
    names: dict[int, list[str]] = {}
    for metric in metrics:
        if count := METRICS[metric].real(n, real):
            names.setdefault(count, []).extend(_name(value, extractor, scorer) for value in METRICS[metric].values)
    return "; ".join(f"{count} for {', '.join(part)}" for count, part in names.items())


def _name(value: str, extractor: FeatureExtractor, scorer: Any) -> str:
    if METRICS[metric_of(value)].needs == "scorer":
        return f"{value}_{scorer.name}_{extractor.name}"
    return metric_name(value, extractor)


def _beside(real: int) -> str:
    return f"real={real}" if real else ""
