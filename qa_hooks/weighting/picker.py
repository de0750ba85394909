"""Keep the best of many images, and say what that costs in diversity (GIQA's picker, Gu et al., ECCV 2020).

    picked = pick("samples/", scorer, keep=0.9)
    paths = [files[i] for i in picked.indices]

Dropping images of low score raises precision and lowers recall: a scorer likes the middle of its data. So the result
holds precision and recall of the kept images beside the values of as many images drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from qa_hooks._base.checks import check_share
from qa_hooks._base.processes import gather_rows, rank, world_size
from qa_hooks._base.random import permutation
from qa_hooks._base.text import plural
from qa_hooks.features import FeatureExtractor, Features, extract_features
from qa_hooks.functional.precision_and_recall import PrecisionRecall, precision_recall
from qa_hooks.images import Range
from qa_hooks.scorers.score_source import Scored, score_features, score_source
from qa_hooks.scorers.scorer import Scorer, uncalibrated
from qa_hooks.sources.batches import Source, count_images, is_shared

NEIGHBOURS = 3  # k of precision and recall


@dataclass(frozen=True, eq=False)
class Picked:
    """The kept images and their scores.

    For a loader under several processes, indices and scores are of this process's part.

    Attributes:
        indices: `(m,)` positions of the kept images, in the order of the source.
        scores: `(n,)` raw scores by position; NaN where there is none.
        order: positions from best to worst, without images that have no score.
        threshold: the raw score of the worst kept image.
        missing: how many images have no score: NaN or unreadable.
        failures: `{position: message}` of images that could not be read, of this process's share.
        before, after: precision and recall of as many images drawn at random, and of the kept ones, with respect to
            the real images, or without these to the whole set; None without features, or with 3 images and fewer.
    """

    indices: Tensor
    scores: Tensor
    order: Tensor
    threshold: float
    missing: int
    failures: dict[int, str]
    before: PrecisionRecall | None = None
    after: PrecisionRecall | None = None

    def __len__(self) -> int:
        return len(self.indices)


def pick(
    images: Source,
    scorer: Scorer | None = None,
    *,
    keep: float = 0.9,
    scores: Tensor | Sequence[float] | None = None,
    features: Features | Tensor | None = None,
    extractor: FeatureExtractor | None = None,
    real: Source | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Picked:
    """Keep the best share of the images that have a score. Of images with equal scores the earlier ones are kept.

    Under several processes the choice is made among all images. A folder, tensor or dataset is divided among the
    processes, and all return the same; of a loader each process picks from its own part, by the joint threshold.

    Args:
        images: anything that `image_batches` takes, in the scorer's `value_range` ([0, 1] without a scorer); None with
            `scores` or `features` of them.
        scorer: scores images alone. Not needed with `scores`, but says their direction; higher is better without it.
        keep: share in (0, 1], of the images that have a score; at least one image is kept.
        scores: raw scores `(n,)` by position, for example of a table; nothing is scored then.
        features: of the images, `Features` or `(n, dim)` by position, for precision and recall; a scorer that works in
            these `Features` takes its scores from them.
        extractor: makes the features otherwise; the scorer's own is the default.
        real: real images, or their features, that precision and recall refer to.
        batch_size: images at a time.
        seed: of the random draw that the kept images are compared with.
        progress: show bars (rank 0, terminals only).

    Raises:
        ValueError: neither scorer nor scores, options that do not fit, no image with a score.

    Example:
        >>> pick(None, scores=[0.3, 0.9, float("nan"), 0.5, 0.9], keep=0.5).indices
        tensor([1, 4])
    """
    check_share("keep", keep, one=True)
    shared = images is None or is_shared(images)
    fitted = uncalibrated(scorer)
    own = getattr(fitted, "extractor", None)
    if extractor is None and (scores is None or real is not None):
        extractor = own
    size = getattr(fitted, "size_asked_for", None) if extractor is own else None
    failures: dict[int, str] = {}
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    value_range = scorer.value_range if scorer is not None else (0.0, 1.0)
    if features is None and extractor is not None and images is not None:
        features = extract_features(
            extractor, images, value_range=value_range, generated=True, size=size, failures=failures, **options
        )
    total = count_images(images) if shared and images is not None else None
    if scores is not None:
        scored = _given(scores, shared, total)
    elif scorer is None:
        raise ValueError("give a scorer, or scores=")
    elif own is not None and _fits(features, own) and (shared or world_size() == 1):
        scored = Scored(score_features(scorer, features), torch.zeros_like(features.indices), features.indices)
    elif features is not None and isinstance(images, Iterator):
        raise ValueError("a one-time iterator cannot be read for scores and for features: give a loader, or scores=")
    else:
        scored = score_source(scorer, images, failures=failures, **options)
    ranking = _ranking(scored.scores, -1 if scorer is not None and not scorer.higher_is_better else 1)
    count = max(1, int(keep * len(ranking) + 0.5))
    before = after = None
    if features is not None:
        rows = _rows(features, scored, shared, ranking)
        reference = rows if real is None else _reference(real, features, extractor, value_range, size, **options)
        before, after = _cost(reference, rows, count, seed)
    elif real is not None:
        raise ValueError("precision and recall need features of the images: give features=, or images and extractor=")
    mine = scored.parts == (0 if shared else rank())
    kept, ranked = ranking[:count], ranking[mine[ranking]]
    positions = scored.positions[mine]
    size = total if total is not None else int(positions.max()) + 1 if len(positions) else 0
    by_position = torch.full((size,), torch.nan, dtype=torch.float32, device="cpu")
    by_position[positions] = scored.scores[mine]
    return Picked(
        indices=scored.positions[kept[mine[kept]]].sort().values,
        scores=by_position,
        order=scored.positions[ranked],
        threshold=float(scored.scores[kept[-1]]),
        missing=int(by_position.isnan().sum()),
        failures=failures,
        before=before,
        after=after,
    )


def _ranking(scores: Tensor, sign: int) -> Tensor:
    """Rows of the images that have a score, best first; ties in the order of the rows."""
    known = (~scores.isnan()).nonzero().flatten()
    if not len(known):
        raise ValueError(f"none of {plural(len(scores), 'image')} has a score: all are NaN")
    return known[(sign * scores[known]).argsort(descending=True, stable=True)]


def _given(scores: Tensor | Sequence[float], shared: bool, total: int | None) -> Scored:
    values = torch.as_tensor(scores, device="cpu", dtype=torch.float32).detach()
    if values.ndim != 1 or len(values) != (total or max(1, len(values))):
        raise ValueError(f"scores must be ({total or 'n'},), one for each image, got {tuple(values.shape)}")
    parts = torch.full((len(values),), 0 if shared else rank(), dtype=torch.int64, device="cpu")
    if shared:
        return Scored(values, parts, torch.arange(len(values), device="cpu"))
    return Scored(gather_rows(values), gather_rows(parts), gather_rows(torch.arange(len(values), device="cpu")))


def _fits(features: Features | Tensor | None, extractor: FeatureExtractor) -> TypeGuard[Features]:
    return isinstance(features, Features) and features.fingerprint == extractor.fingerprint


def _rows(features: Features | Tensor, scored: Scored, shared: bool, ranking: Tensor) -> Tensor:
    """The features of the ranked images, best first."""
    if isinstance(features, Features):
        values, have = features.values, features.indices
    else:
        values = (features if shared else gather_rows(features)).detach().cpu().float()
        have = torch.arange(len(values), device="cpu")
    wanted = (scored.positions if shared else torch.arange(len(scored.scores), device="cpu"))[ranking]
    rows = torch.searchsorted(have, wanted).clamp_max(len(have) - 1)
    if values.ndim != 2 or not torch.equal(have[rows], wanted) or len(values) > len(scored.scores):
        raise ValueError(
            f"features must have one row for each of {len(scored.scores)} scored images, got {tuple(values.shape)}"
        )
    return values[rows]


def _reference(
    real: Source,
    features: Features | Tensor,
    extractor: FeatureExtractor | None,
    value_range: Range,
    size: tuple[int, int] | None,
    *,
    batch_size: int,
    progress: bool,
) -> Tensor:
    if isinstance(real, Tensor) and real.ndim == 2:
        return real.detach().cpu().float()
    if not isinstance(real, Features):
        if extractor is None:
            raise ValueError("real images need an extractor: give extractor=, or real as Features")
        failures: dict[int, str] = {}
        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "size": size}
        real = extract_features(extractor, real, value_range=value_range, failures=failures, **options)
    if isinstance(features, Features) and features.fingerprint != real.fingerprint:
        raise ValueError(
            f"real images and the others have features of different extractors, {real.fingerprint} and "
            f"{features.fingerprint}"
        )
    values: Tensor = real.values
    return values


def _cost(
    reference: Tensor, rows: Tensor, count: int, seed: int
) -> tuple[PrecisionRecall | None, PrecisionRecall | None]:
    """Precision and recall of `count` random rows, and of the first ones."""
    if min(count, len(reference)) <= NEIGHBOURS:
        return None, None
    drawn = permutation(len(rows), seed)[:count]
    before, after = (precision_recall(reference, part, k=NEIGHBOURS) for part in (rows[drawn], rows[:count]))
    return before, after
