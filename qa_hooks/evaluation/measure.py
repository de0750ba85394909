"""What a set of generated images is worth beside real ones: each metric of the table, with its interval and its spec.

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
    is_canonical,
    metric_name,
    metric_of,
)
from qa_hooks.features import FeatureExtractor


class Measurement(NamedTuple):
    """A value, its 95 % interval, how many generated images it comes from, how it was made, and its name in curves.

    Values with different specs cannot be compared.
    """

    value: float
    low: float
    high: float
    n: int
    spec: str
    name: str


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
        metrics: some of "fd", "kid", "pr", "is", "qs", "ds" (`set_metrics`). "ds" fits a model: with several processes
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
    facts = f"{extractor_label(extractor)}, {extractor.fingerprint[:4]}, uint8, ref={reference.data[:4]}"
    found = {}
    for key, estimate in estimate_metrics(sets, metrics).items():
        name, own = metric_name(key, extractor), METRICS[metric_of(key)]
        spec = f"{name}[{facts}, {own.facts(sets)}, n={estimate.n}]"
        if own.needs == "scorer":
            name = f"{key}_{scorer.name}_{extractor.name}"
            spec = score_spec(key.upper(), scorer, estimate.n, seed=sets.seed if key == "ds" else None)
        found[key] = Measurement(*estimate.interval(), estimate.n, spec, name)
    return found


def check_comparable(extractor: FeatureExtractor, real: Sequence[int], generated: Sequence[int]) -> None:
    """Refuse images of another size, whose features would differ for that reason alone.

    Channels do not matter: an extractor sees a grey image as one of three equal channels.

    Args:
        extractor: of the features.
        real, generated: ..., height and width of the images.

    Raises:
        ValueError: sizes that differ where the extractor does not resize.
    """
    resizes = extractor.size is not None or is_canonical(extractor)
    if tuple(real[-2:]) != tuple(generated[-2:]) and not resizes:
        shapes = ["x".join(map(str, shape[-2:])) for shape in (real, generated)]
        raise ValueError(
            f"real images are {shapes[0]} and generated ones {shapes[1]} (height x width), and that is what "
            f"the features of {extractor.name} would measure; bring them to one size, or give the extractor a size="
        )
