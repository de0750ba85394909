"""What a set of generated images is worth beside a set of real ones, in features, each value with its error.

The real set is held fixed: it is the yardstick. The group jackknife over the generated set (see `intervals`) gives one
row of values per metric, the whole set's and those without each group. Rows of two models that were made from the same
seeds, prompts or files can be subtracted: then what both share cancels, and the interval of the difference is that of
a paired comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_distance, frechet_factor
from qa_hooks.functional.intervals import (
    Comparison,
    Interval,
    compare_interval,
    jackknife_error,
    jackknife_subsets,
    t_interval,
    wilson_interval,
)
from qa_hooks.functional.kid import squared_mmd
from qa_hooks.functional.precision_and_recall import precision_recall


class SetMetric(NamedTuple):
    """Which direction is good, and the values that come of it, in their order."""

    higher_is_better: bool
    values: tuple[str, ...]


SET_METRICS = {
    "fd": SetMetric(False, ("fd",)),
    "kid": SetMetric(False, ("kid",)),
    "pr": SetMetric(True, ("precision", "recall", "density", "coverage")),
}
_OTHER_NAME = {"pr": "precision_recall", "precision_recall": "pr"}
NEIGHBOURS = 3  # k of precision and recall, as published


class Described(Protocol):
    """What names need to know of a `FeatureExtractor`."""

    name: str
    spec: Any


def is_canonical(extractor: Described) -> bool:
    """Whether it is the Inception of the published FID: made by `create_extractor`, not just called so."""
    return isinstance(extractor.spec, Mapping) and extractor.spec.get("type") == "inception"


def extractor_label(extractor: Described) -> str:
    """Its name; a network of the user's cannot take the canonical one's."""
    return "own-inception" if extractor.name == "inception" and not is_canonical(extractor) else extractor.name


def metric_name(key: str, extractor: Described) -> str:
    """The name that goes with a value: famous ones are for the canonical Inception alone (on uint8 images).

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> extractor = create_extractor("random")
        >>> metric_name("fd", extractor), metric_name("kid", extractor), metric_name("recall", extractor)
        ('fd_random', 'kd_random', 'recall_random')
    """
    if is_canonical(extractor) and key in ("fd", "kid"):
        return "fid" if key == "fd" else key
    return f"{'kd' if key == 'kid' else key}_{extractor_label(extractor)}"


def resampled_metrics(
    real: Tensor, fake: Tensor, metrics: Sequence[str], *, groups: int = 10, seed: int = 0
) -> dict[str, Tensor]:
    """Values of a generated set, and those without each of its groups.

    Args:
        real: `(m, d)` features; the same for all sets that are compared. Precision and recall take the first n of them
            where there are more, so let them be in random order.
        fake: `(n, d)`; rows in the order of the seeds or files where sets are paired.
        metrics: of `SET_METRICS`.
        groups, seed: of the jackknife.

    Returns:
        `(1 + groups,)` float64 by "fd", "kid", "precision", "recall", "density", "coverage".

    Raises:
        ValueError: an unknown metric, shapes that do not fit, too few rows, non-finite features.

    Example:
        >>> real, fake = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0))
        >>> resampled_metrics(real, fake, ["fd"])["fd"].shape
        torch.Size([11])
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (m, d) and (n, d), got {tuple(real.shape)} and {tuple(fake.shape)}")
    subsets = [torch.arange(len(fake)), *jackknife_subsets(len(fake), groups=groups, seed=seed)]
    rows: dict[str, Tensor] = {}
    for metric in check_metrics(metrics, SET_METRICS):
        values = _MEASURES[metric](real, fake, subsets)
        rows.update(zip(SET_METRICS[metric].values, values.T, strict=True))
    return rows


def check_metrics(metrics: Sequence[str], known: Iterable[str]) -> tuple[str, ...]:
    """The names once each, "pr" and "precision_recall" taken for the same; `ValueError` that lists what there is."""
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be some of {', '.join(known)}, as a list; got the text {metrics!r}")
    names = [metric if metric in known else _OTHER_NAME.get(metric, metric) for metric in metrics]
    unknown = [metric for metric in names if metric not in known]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known are {', '.join(known)}: metrics must be some of them")
    return tuple(dict.fromkeys(names))


def higher_is_better(value: str) -> bool:
    """The direction of one of the values."""
    return value not in ("fd", "kid")


def set_interval(key: str, row: Tensor, *, n: int, confidence: float = 0.95) -> Interval:
    """The interval of a row of `resampled_metrics`.

    Precision is a share of n independent images and has Wilson's interval. The others' is the jackknife's; for recall
    and coverage, which are no means over the generated images, it is conservative (about 99 % coverage for 95 %).

    Args:
        key: "fd", "kid", "precision", ...
        row: `(1 + groups,)`.
        n: generated images.
    """
    if key == "precision":
        return wilson_interval(float(row[0]), n, confidence=confidence)
    return t_interval(float(row[0]), jackknife_error(row[1:]), degrees=len(row) - 2, confidence=confidence)


def compare_sets(
    key: str, row_a: Tensor, row_b: Tensor, *, paired: bool, n: int, confidence: float = 0.95
) -> Comparison:
    """Is set B better than set A, by rows of `resampled_metrics` with the same groups and seed?

    A Frechet distance is too large by about c / n, where c grows with a model's variance, and with n below ten times
    the features' dimension that can decide the sign: the plain interval then is narrow around a wrong difference. So
    "fd" needs two agreeing verdicts, on the difference and on that after the jackknife's correction of the bias.

    Args:
        key: "fd", "kid", "precision", ...
        row_a, row_b: `(1 + groups,)`.
        paired: the i-th images of both sets belong together; otherwise the sets are independent.
        n: images in each set.

    Example:
        >>> a = torch.tensor([5.0, 5.1, 4.9, 5.0])
        >>> compare_sets("kid", a, a - 1, paired=True, n=100).verdict
        'B better'
    """
    rows = row_b - row_a
    error = jackknife_error(rows[1:]) if paired else math.hypot(*(jackknife_error(row[1:]) for row in (row_a, row_b)))
    groups = len(rows) - 1
    degrees = groups - 1 if paired else 2 * (groups - 1)
    options: dict[str, Any] = {"higher_is_better": higher_is_better(key), "n": n}
    value = float(rows[0])
    plain = compare_interval(t_interval(value, error, degrees=degrees, confidence=confidence), **options)
    if key != "fd":
        return plain
    unbiased = groups * value - (groups - 1) * float(rows[1:].mean())
    corrected = compare_interval(t_interval(unbiased, error, degrees=degrees, confidence=confidence), **options)
    return plain if corrected.verdict == plain.verdict else plain._replace(verdict="cannot tell")


def _frechet(real: Tensor, fake: Tensor, subsets: list[Tensor]) -> Tensor:
    if min(len(real), *map(len, subsets)) < 2:
        raise ValueError(f"a Frechet distance needs at least 2 images in each set, got {len(real)} and {len(fake)}")
    moments = Moments.of(real)
    mean, covariance = moments.mean(), moments.covariance()
    factor = frechet_factor(covariance)
    values = [frechet_to(mean, covariance, factor, fake[rows]) for rows in subsets]
    return torch.stack(values).cpu()[:, None]


def frechet_to(mean: Tensor, covariance: Tensor, factor: Tensor, rows: Tensor) -> Tensor:
    """The Frechet distance of rows of features to a Gaussian whose factor (`frechet_factor`) is known."""
    own = Moments.of(rows)
    return frechet_distance(mean, covariance, own.mean(), own.covariance(), factor_a=factor)


def _kernel(real: Tensor, fake: Tensor, subsets: list[Tensor]) -> Tensor:
    """All subsets in one pass over the kernel matrix."""
    if min(len(real), *map(len, subsets)) < 2:
        raise ValueError(f"a kernel distance needs at least 2 images in each set, got {len(real)} and {len(fake)}")
    members = torch.zeros(len(subsets), len(fake), dtype=torch.float64)
    for member, rows in zip(members, subsets, strict=True):
        member[rows] = 1
    return squared_mmd(real, fake, torch.ones(1, len(real), dtype=torch.float64), members)[0].cpu()[:, None]


def _precision_recall(real: Tensor, fake: Tensor, subsets: list[Tensor]) -> Tensor:
    found = [precision_recall(real[: len(fake)], fake[rows], k=NEIGHBOURS) for rows in subsets]
    return torch.tensor(found, dtype=torch.float64)


_MEASURES: dict[str, Callable[[Tensor, Tensor, list[Tensor]], Tensor]] = {
    "fd": _frechet,
    "kid": _kernel,
    "pr": _precision_recall,
}
