"""Two numbers for a generator (GIQA, Gu, Bao, Chen, Wen, ECCV 2020): are its images good, and are they all there is?

    QS(G) = mean_i S(x_i)      S fitted on real images, x_i generated
    DS(G) = mean_j S'(r_j)     S' fitted on generated images, r_j real

S and S' are calibrated to [0, 1]. The paper does not say how; ours: S on held-out real images, once, and S' on a fifth
of the generated ones, which its model has not seen. So real images have QS 0.5, and a generator as diverse as reality
has DS 0.5; a collapsed one keeps its QS and loses DS. Values with different specs cannot be compared.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.features import Features, extract_features
from qa_hooks.scorers.calibration import Calibration
from qa_hooks.scorers.score_source import score_features, score_source
from qa_hooks.scorers.scorer import Scorer, uncalibrated
from qa_hooks.sources.batches import Source, warn_left_out

HELD_OUT = 5  # one in five generated images calibrates the model of the diversity score
FEWEST_FOR_DIVERSITY = 50  # images of each kind, so that the calibration has the ten values that it needs


class MeanScore(NamedTuple):
    """The mean score of a set, its standard error, the set's size and how it was made; `float()` gives the mean."""

    value: float
    error: float
    n: int
    spec: str

    def __float__(self) -> float:
        return self.value


def quality_score(scorer: Scorer, images: Source, *, batch_size: int = 64, progress: bool = True) -> MeanScore:
    """QS: the mean calibrated score of generated images; real ones have 0.5 with the "ecdf" calibration.

    Args:
        scorer: fitted on real images and calibrated.
        images: generated, in the scorer's `value_range`: anything that `image_batches` takes, or their `Features`.
        batch_size: images at a time.
        progress: show a bar (rank 0, terminals only).

    Raises:
        ValueError: a scorer without calibration, fewer than two images, scores that are not finite.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> brightness = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)
        >>> _ = brightness.fit_calibration(torch.linspace(0, 1, 101))
        >>> result = quality_score(brightness, torch.full((4, 3, 8, 8), 0.25))
        >>> round(float(result), 3), result.spec[:20]
        (0.25, 'QS[brightness, ecdf,')
    """
    if isinstance(images, Features):
        return _mean_score("QS", scorer, quality_scores(scorer, images))
    failures: dict[int, str] = {}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "failures": failures}
    scores = score_source(scorer.calibrated(), images, **options).scores
    warn_left_out(failures)
    return _mean_score("QS", scorer, scores)


def quality_scores(scorer: Scorer, generated: Features) -> Tensor:
    """`(n,)`: the calibrated scores whose mean is QS."""
    return score_features(scorer.calibrated(), generated)


def diversity_score(
    scorer: Scorer,
    generated: Source,
    real: Source,
    *,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> MeanScore:
    """DS: the mean score of real images under the scorer's model fitted on generated ones.

    Options and PCA basis are the given scorer's. 80 % of the generated images fit the model, 20 % its calibration. Both
    sets have n images; of the larger one n are drawn.

    Args:
        scorer: a fitted `GMMScorer` or `KNNScorer`.
        generated, real: in its `value_range`: anything that `image_batches` takes, or their `Features`. Real images
            that the scorer was not fitted on are best, though the model that scores them has seen none.
        batch_size: images at a time.
        seed: of the draws.
        progress: show bars (rank 0, terminals only).

    Raises:
        TypeError: a scorer that is not fitted in features.
        ValueError: fewer than 50 images in either set, or fewer than the model needs.
    """
    fitted = uncalibrated(scorer)
    if not hasattr(fitted, "refit"):
        raise TypeError(
            f"a diversity score fits the scorer's model anew, on features of generated images; {fitted.name} "
            f"({type(fitted).__name__}) has no such model: use a GMMScorer or a KNNScorer"
        )
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    made = _features_of(fitted, generated, generated=True, **options)
    photographs = _features_of(fitted, real, generated=False, **options)
    return _mean_score("DS", scorer, diversity_scores(scorer, made, photographs, seed=seed), seed=seed)


def diversity_scores(scorer: Scorer, generated: Features, real: Features, *, seed: int = 0) -> Tensor:
    """`(n,)`: the calibrated scores of n real images under a model of the generated ones, whose mean is DS.

    Args, raises: as `diversity_score`.
    """
    fitted, n = uncalibrated(scorer), min(len(generated), len(real))
    if n < FEWEST_FOR_DIVERSITY:
        raise ValueError(
            f"a diversity score needs at least {FEWEST_FOR_DIVERSITY} images of each kind, got {len(generated)} "
            f"generated and {len(real)} real: a fifth of the generated ones calibrates the model"
        )
    random, drawn = torch.Generator().manual_seed(seed), []
    for name, features in (("generated", generated), ("real", real)):
        if len(features) > n:
            warn(f"{len(features)} {name} images, but {n} of the other kind: {n} are drawn (seed {seed})")
        drawn.append(features[torch.randperm(len(features), generator=random, device="cpu")[:n]])
    held_out, fitting = drawn[0][: n // HELD_OUT], drawn[0][n // HELD_OUT :]
    model = fitted.refit(fitting)
    goodness, real_goodness = _goodness(model, held_out), _goodness(model, drawn[1])
    if float(goodness.max() - goodness.min()) == 0:  # a generator that makes one image only
        return (real_goodness > goodness[0]).float() + 0.5 * (real_goodness == goodness[0]).float()
    return Calibration.fit(goodness, method=_method(fitted))(real_goodness)


def _features_of(fitted: Any, source: Source, *, generated: bool, batch_size: int, progress: bool) -> Features:
    if isinstance(source, Features):
        return source
    failures: dict[int, str] = {}
    features = extract_features(
        fitted.extractor,
        source,
        batch_size=batch_size,
        value_range=fitted.value_range,
        generated=generated,
        size=getattr(fitted, "size_asked_for", None),
        progress=progress,
        failures=failures,
    )
    warn_left_out(failures)
    return features


def _goodness(model: Any, features: Features) -> Tensor:
    scores = score_features(model, features)
    return scores if model.higher_is_better else -scores


def _mean_score(kind: str, scorer: Scorer, scores: Tensor, *, seed: int | None = None) -> MeanScore:
    scores, n = scores.double(), len(scores)
    if n < 2:
        raise ValueError(f"a mean score needs at least 2 images, got {n}")
    check_finite(scores, uncalibrated(scorer).name)
    spec = score_spec(kind, scorer, n, seed=seed)
    return MeanScore(float(scores.mean()), float(scores.std()) / math.sqrt(n), n, spec)


def check_finite(scores: Tensor, what: str) -> None:
    """Raise a `ValueError` that counts the scores that are not finite."""
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise ValueError(f"{bad} of {plural(len(scores), 'score')} of {what} are not finite")


def score_spec(kind: str, scorer: Scorer, n: int, *, seed: int | None = None, fitted_on: bool = True) -> str:
    """The spec of a "QS" or a "DS": `seed` is of the draw, `fitted_on` adds the scorer's fingerprint."""
    fitted = uncalibrated(scorer)
    parts = [fitted.name]
    parts += [f"{name}={value}" for name, value in fitted.options().items() if isinstance(value, (int, float, str))]
    if hasattr(fitted, "extractor"):
        parts.append(fitted.extractor.name)
    parts += [_method(fitted), *([f"ref={fitted.fingerprint[:4]}"] if fitted_on else []), f"n={n}"]
    parts += [f"draw={seed}"] if seed is not None else []
    return f"{kind}[{', '.join(parts)}]"


def _method(fitted: Any) -> str:
    return str(fitted.calibration.method) if fitted.calibration is not None else "ecdf"
