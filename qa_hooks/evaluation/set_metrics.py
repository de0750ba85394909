"""The table of set metrics: what a set of generated images is worth beside a set of real ones, in features.

    fd    Frechet distance to the Gaussian of all real images
    kid   kernel distance (KID) to all real images; where these are more than 2,048 and more than the generated ones,
          to 2,048 of them, or to as many as there are generated ones
    pr    precision, recall, density and coverage against equally many real images
    is    inception score of a classifier's logits
    qs    quality score of a fitted scorer (GIQA)
    ds    diversity score of a fitted scorer (GIQA), against equally many real images

Where not all real images are taken they are the first rows of the reference, which lie in random order.

Monitors, comparisons and the command line ask for metrics by these keys. Each metric is one entry of `METRICS`, which
also says how many real images it takes: the same sets have the same numbers wherever they are measured.
Every value is an `Estimate`, which holds its interval. Two estimates can be compared.

The real set is held fixed: it is the yardstick. The intervals are about chance, not about bias: they hold the value
that other generated sets of this size would have on average. A Frechet distance of n images is too large by about
c / n, so compare equal n. The diversity score's interval leaves out how its model varies with the generated images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from qa_hooks._base.text import meant, plural
from qa_hooks.evaluation.estimate import Estimate
from qa_hooks.evaluation.quality_diversity import check_finite, diversity_scores, quality_scores
from qa_hooks.evaluation.reference import Reference, kept_rows
from qa_hooks.features import FeatureExtractor, Features
from qa_hooks.features.moments import Moments
from qa_hooks.functional.frechet import frechet_distance, inception_score
from qa_hooks.functional.intervals import jackknife_subsets
from qa_hooks.functional.kid import squared_mmd
from qa_hooks.functional.precision_and_recall import precision_recall

FEWEST_FOR_INTERVAL = 10  # real images, and generated ones
FEW = 50  # images of a set, below which values and their intervals are rough
NEIGHBOURS = 3  # k of precision and recall, as published
INFINITY = float("inf")
SHARE = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Sets:
    """What a metric is computed from: the real images' statistics and one set of generated images.

    Attributes:
        real: from `make_reference` or `Reference.of`.
        fake: `(n, d)` features; rows in the order of the seeds or files where sets are paired.
        groups, seed: number of groups and seed of the jackknife.
        logits: `(n, classes)`, for "is".
        scorer: fitted in these features, for "qs" and "ds".
    """

    real: Reference
    fake: Tensor
    groups: int = 10
    seed: int = 0
    logits: Tensor | None = None
    scorer: Any = None

    def without_groups(self, statistic: Callable[[Tensor], Any], count: int) -> Tensor:
        """`(values, 1 + groups)`: the statistic of all `count` rows, and without each group of them."""
        subsets = [torch.arange(count, device="cpu"), *jackknife_subsets(count, groups=self.groups, seed=self.seed)]
        values = [statistic(rows) for rows in subsets]
        return torch.tensor(values, dtype=torch.float64, device="cpu").reshape(1 + self.groups, -1).T

    @property
    def equal(self) -> int:
        """How many images there are of both kinds."""
        return min(len(self.fake), len(self.real.rows))

    def features(self, rows: Tensor) -> Features:
        """Rows as scorers take them."""
        return Features.of(rows, self.real.extractor)


class SetMetric(NamedTuple):
    """How a metric is computed, and what its numbers mean.

    Attributes:
        values: the names of its values, in order, with the limits of their ranges.
        higher_is_better: whether higher values are better, for all its values.
        rows: `(values, 1 + groups)`: the values of the whole set, and without each of some groups of images.
        settings: text for the spec about the method.
        real: how many real images n generated ones are compared with; 0 where there are none.
        equal: whether it takes equally many images of both kinds.
        needs: what else must be given: a "classifier" or a "scorer".
        most: the largest possible value for these sets, if it is below the limit.
    """

    values: Mapping[str, tuple[float, float]]
    higher_is_better: bool
    rows: Callable[[Sets], Tensor]
    settings: Callable[[Sets], str] = lambda sets: ""
    real: Callable[[int, Reference], int] = lambda n, reference: 0
    equal: bool = False
    needs: str = ""
    most: Callable[[Sets], float] = lambda sets: INFINITY


def estimate_metrics(sets: Sets, metrics: Sequence[str]) -> dict[str, Estimate]:
    """Each value of some metrics, by "fd", "kid", "precision", "recall", "density", "coverage", "is", "qs", "ds".

    Raises:
        ValueError: an unknown metric, shapes that do not fit, too few rows, non-finite features.

    Example:
        >>> real, fake = torch.randn(2, 200, 4, generator=torch.Generator().manual_seed(0))
        >>> list(estimate_metrics(Sets(Reference.of(real), fake), ["fd", "kid"]))
        ['fd', 'kid']
    """
    real, fake = sets.real.rows, sets.fake
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (m, d) and (n, d), got {tuple(real.shape)} and {tuple(fake.shape)}")
    if min(len(real), len(fake)) < (least := max(sets.groups, FEWEST_FOR_INTERVAL)):
        raise ValueError(
            f"{', '.join(metrics)} of {len(fake)} generated and {len(real)} real images: at least {least} images "
            "of each are needed, or the numbers would have no interval"
        )
    found: dict[str, Estimate] = {}
    for key in check_needs(metrics, classifier=sets.logits, scorer=sets.scorer):
        metric = METRICS[key]
        count = sets.equal if metric.equal else len(fake)
        for (value, (low, high)), row in zip(metric.values.items(), metric.rows(sets), strict=True):
            limits = low, min(high, metric.most(sets))
            beside = metric.real(count, sets.real)
            found[value] = Estimate(value, count, row, limits, metric.higher_is_better, beside)
    return found


def few_images(count: int, noun: str = "image") -> str:
    """Why values of so few images, and their intervals, say little, in words; "" where there are enough.

    Example:
        >>> few_images(12, "real image"), few_images(50)
        ('12 real images are few (a verdict needs 50 of each kind)', '')
    """
    return f"{plural(count, noun)} are few (a verdict needs {FEW} of each kind)" if count < FEW else ""


def check_metrics(metrics: Sequence[str], known: Iterable[str] | None = None) -> tuple[str, ...]:
    """The names once each; `ValueError` that lists what there is for an unknown one."""
    known = list(METRICS if known is None else known)
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be some of {', '.join(known)}, as a list; got the text {metrics!r}")
    unknown = [metric for metric in metrics if metric not in known]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}{_meant(unknown[0], known)}; known are {', '.join(known)}")
    return tuple(dict.fromkeys(metrics))


def _meant(name: str, known: Iterable[str]) -> str:
    """What somebody meant by a name that is no metric's: perhaps what is printed of one, such as "kd_random"."""
    values = {"kd": "kid"} | {value: metric for metric in known for value in METRICS[metric].values}
    value, _, extractor = name.partition("_")
    behind = f"; behind it stands the extractor, {extractor}" if extractor else ""
    return f" (it is a value of {values[value]!r}{behind})" if value in values else meant(name, known)


def check_needs(metrics: Sequence[str], *, classifier: Any = None, scorer: Any = None) -> tuple[str, ...]:
    """The metrics once each; `ValueError` for none, unknown ones and for what they lack."""
    metrics = check_metrics(metrics)
    if not metrics:
        raise ValueError(f"metrics must be some of {', '.join(METRICS)}, got none")
    for metric in metrics:
        needs = METRICS[metric].needs
        if needs == "classifier" and classifier is None:
            raise ValueError(
                f'the metric "{metric}" needs the logits of a classifier: pass classifier=, a callable that takes '
                "images (N, C, H, W) in [0, 1] and gives (N, classes)"
            )
        if needs == "scorer" and (scorer is None or scorer.calibration is None or not hasattr(scorer, "refit")):
            raise ValueError(
                f'the metric "{metric}" needs scorer=, a GMMScorer or KNNScorer fitted on real images and calibrated'
            )
    return metrics


def metric_of(value: str) -> str:
    """The metric that a value belongs to: "pr" for "recall"."""
    return next(metric for metric, entry in METRICS.items() if value in entry.values)


def higher_is_better(value: str) -> bool:
    """The direction of one of the values."""
    return METRICS[metric_of(value)].higher_is_better


def extractor_label(extractor: FeatureExtractor) -> str:
    """The extractor's name; a user's network named "inception" is called "own-inception"."""
    return "own-inception" if extractor.name == "inception" and not extractor.is_canonical else extractor.name


def metric_name(value: str, extractor: FeatureExtractor) -> str:
    """The name that goes with a value: famous ones are for the canonical Inception alone (on uint8 images).

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> extractor = create_extractor("random")
        >>> metric_name("fd", extractor), metric_name("kid", extractor), metric_name("recall", extractor)
        ('fd_random', 'kd_random', 'recall_random')
    """
    if extractor.is_canonical and value in ("fd", "kid"):
        return "fid" if value == "fd" else value
    return f"{'kd' if value == 'kid' else value}_{extractor_label(extractor)}"


def _frechet(sets: Sets) -> Tensor:
    real = sets.real

    def distance(rows: Tensor) -> float:
        own = Moments.of(sets.fake[rows])
        parts = real.mean, real.covariance, own.mean(), own.covariance()
        return float(frechet_distance(*parts, factor_a=real.factor))

    return sets.without_groups(distance, len(sets.fake))


def _kernel(sets: Sets) -> Tensor:
    """Each image is a group of its own, for which one pass over the kernel matrix is enough."""
    fake, count = sets.fake, _kernel_real(len(sets.fake), sets.real)
    real, sums = sets.real.rows[:count], sets.real.kernel_sums(count)
    everything = (torch.ones(1, len(rows), dtype=torch.float64, device="cpu") for rows in (real, fake))
    value, _, without = squared_mmd(real, fake, next(everything), next(everything), sums_x=sums)
    return torch.cat([value[:, None], without], 1).cpu()


def _kernel_real(n: int, reference: Reference) -> int:
    return min(kept_rows(n), len(reference.rows))


def _equal_real(n: int, reference: Reference) -> int:
    return min(n, len(reference.rows))


def _precision_recall(sets: Sets) -> Tensor:
    real, fake = sets.real.rows[: sets.equal], sets.fake[: sets.equal]
    return sets.without_groups(lambda rows: precision_recall(real, fake[rows], k=NEIGHBOURS), sets.equal)


def _inception(sets: Sets) -> Tensor:
    logits = cast(Tensor, sets.logits)
    return sets.without_groups(lambda rows: inception_score(logits[rows], splits=1)[0], len(logits))


def _quality(sets: Sets) -> Tensor:
    return _leave_one_out(quality_scores(sets.scorer, sets.features(sets.fake)), sets.scorer.name)


def _diversity(sets: Sets) -> Tensor:
    real, fake = (sets.features(rows[: sets.equal]) for rows in (sets.real.rows, sets.fake))
    return _leave_one_out(diversity_scores(sets.scorer, fake, real), sets.scorer.name)


def _leave_one_out(scores: Tensor, name: str) -> Tensor:
    check_finite(scores, name)
    scores = scores.double()
    mean, count = scores.mean(), len(scores)
    return torch.cat([mean[None], mean + (mean - scores) / (count - 1)])[None]


METRICS = {
    "fd": SetMetric({"fd": (0.0, INFINITY)}, False, _frechet, real=lambda n, reference: reference.count),
    "kid": SetMetric({"kid": (-INFINITY, INFINITY)}, False, _kernel, lambda s: "degree=3", _kernel_real),
    "pr": SetMetric(
        {"precision": SHARE, "recall": SHARE, "density": (0.0, INFINITY), "coverage": SHARE},
        True,
        _precision_recall,
        lambda s: f"k={NEIGHBOURS}",
        _equal_real,
        equal=True,
    ),
    "is": SetMetric(
        {"is": (1.0, INFINITY)},
        True,
        _inception,
        lambda s: f"classes={cast(Tensor, s.logits).shape[1]}, splits=1",
        needs="classifier",
        most=lambda s: float(cast(Tensor, s.logits).shape[1]),
    ),
    "qs": SetMetric({"qs": SHARE}, True, _quality, needs="scorer"),
    "ds": SetMetric({"ds": SHARE}, True, _diversity, real=_equal_real, equal=True, needs="scorer"),
}
