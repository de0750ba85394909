"""Fit a scorer on more images than one process reads: each shard gives sums, and the sums are added."""

from __future__ import annotations

import copy
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.progress import Progress
from qa_hooks._base.text import plural
from qa_hooks.features import FeatureExtractor, FeatureSums
from qa_hooks.folders.scoring.tiles import PiecedImage
from qa_hooks.images import to_unit
from qa_hooks.integrations.ray.batches import own_gpu, read_item
from qa_hooks.integrations.ray.cluster import check_device, cluster, put, reason, remote
from qa_hooks.integrations.ray.shards import Shard, find_shards
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer
from qa_hooks.sources.windows import fitting, groups, read_ahead, windows

Fitted = TypeVar("Fitted", bound=FeatureScorer)


class Gathered(NamedTuple):
    """Of one shard: its sums, how many images had a problem, what the first was, whether files changed meanwhile."""

    sums: FeatureSums
    problems: int
    first: str
    changed: bool


def fit_dataset(
    source: str | Path,
    scorer: Fitted,
    *,
    column: str | None = None,
    shard_size: int = 4096,
    held_out: float = 0.2,
    sample: int = 10_000,
    calibration: str | None = "ecdf",
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    address: str | None = None,
    progress: bool = True,
) -> Fitted:
    """Fit a scorer of GIQA on a data set with Ray; the result does not depend on how the shards are cut.

    One Gaussian (`GMMScorer(components=1)`) is fitted on the moments of all images. Mixtures and neighbours are fitted
    on a sample that the names of the images and the seed decide, and so is the calibration. Differences that come from
    the batches in which the network saw the images remain: those of float32 rounding.

    Args:
        source, column, shard_size, device, address, progress: as in `score_dataset`.
        scorer: a `GMMScorer` or a `KNNScorer`, not fitted, whose extractor all machines can receive.
        held_out: the share of the images that calibrate and take no part in the fit.
        sample: how many images are kept of both sides, at most.
        calibration: "ecdf", "minmax", "sigmoid", or None, which fits on all images.
        seed: of the choice.
        batch_size: images at a time.

    Returns:
        The scorer itself. Images that could not be read are left out with a warning.

    Raises:
        TypeError: another scorer.
        ValueError: no images, too few of them, constant ones.
        RuntimeError: a shard that could not be read to its end, because its workers died again and again.
    """
    if not isinstance(scorer, FeatureScorer):
        raise TypeError(f"scorer must be a GMMScorer or a KNNScorer, got {type(scorer).__name__}")
    check_device(device)
    options = {"held_out": held_out if calibration is not None else 0.0, "sample": sample, "seed": seed}
    total = FeatureSums(scorer.extractor.dim, **options)  # type: ignore[arg-type]
    shards = find_shards(source, column=column, shard_size=check_count("shard_size", shard_size))
    batch_size = check_count("batch_size", batch_size)
    problems, first, changed = 0, "", list[Shard]()
    with cluster(address) as ray, Progress("shards", len(shards), unit="shard", shown=progress) as bar:
        task, room = remote(ray, shard_sums, device)
        extractor = put(ray, copy.deepcopy(scorer.extractor).cpu())
        waiting, running = deque(shards), deque[tuple[Shard, Any]]()
        while waiting or running:
            while waiting and len(running) < room():
                running.append(
                    (waiting[0], task.remote(extractor, waiting[0], scorer.value_range, batch_size, options))
                )
                waiting.popleft()
            shard, done = running.popleft()
            try:
                found = Gathered(*ray.get(done))
            except ray.exceptions.RayError as error:
                raise RuntimeError(f"{shard} could not be read to its end: {reason(error)}") from error
            total.merge(found.sums)  # in the order of the shards, so that two runs agree to the last bit
            problems, first = problems + found.problems, first or found.first
            changed += [shard] * found.changed
            bar.update(1, failed=problems)
    if problems:
        warn(f"{problems} images were left out; the first, {first}")
    if changed:
        warn(
            f"the files of {plural(len(changed), 'shard')} changed while they were read; the first, {changed[0]}. What "
            "was read is in the fit: fit again when the source stays as it is"
        )
    return scorer.fit_sums(total, calibration=calibration)


def shard_sums(
    extractor: FeatureExtractor,
    shard: Shard,
    value_range: tuple[float, float],
    batch_size: int,
    options: dict[str, Any],
) -> Gathered:
    """The sums over the features of one shard's images; what a worker does."""
    sums, problems, first = FeatureSums(extractor.dim, **options), 0, ""
    device = torch.device(own_gpu() or "cpu")
    extractor.to(device)

    def measure(image: PiecedImage) -> tuple[int, int]:
        return 1, sum(piece.shape[-2] * piece.shape[-1] for piece in image.pieces)

    with isolated(extractor), torch.no_grad():
        for window in windows(read_ahead(read_item, shard.images()), measure, batch_size):
            bad = [image for image in window if image.problem]
            problems += len(bad)
            first = first or next((f"{image.name}: {image.problem}" for image in bad), "")
            good = [image for image in window if not image.problem]
            for group in groups(good, lambda image: (image.pieces[0].shape, image.pieces[0].dtype)):
                height, width = group[0].pieces[0].shape[1:]
                step = fitting(batch_size, height, width)
                for start in range(0, len(group), step):
                    batch = group[start : start + step]
                    images: Tensor = torch.stack([image.pieces[0] for image in batch]).to(device)
                    rows = extractor(to_unit(images, value_range).clamp(0, 1))
                    sums.update([image.name for image in batch], rows, (height, width))
    return Gathered(sums, problems, first, shard.has_changed())
