"""Fit a scorer on a folder of images and save it: what `qa-hooks fit` calls. Unreadable files are left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import rank
from qa_hooks.features import FeatureExtractor, create_extractor, extract_features
from qa_hooks.images import list_images
from qa_hooks.scorers import Scorer
from qa_hooks.sources.batches import Source

if TYPE_CHECKING:
    from qa_hooks.scorers.rank.scorer import RankScorer


def fit_gmm(
    folder: str | Path,
    output: str | Path,
    *,
    extractor: str | Mapping[str, Any] | FeatureExtractor = "random",
    components: int = 7,
    pca: float | int | None = 0.95,
    covariance: str = "full",
    seed: int = 0,
    **options: Any,
) -> Scorer:
    """Fit `GMMScorer` on a folder and save it; under a process group the folder is divided among the processes.

    Args:
        folder: image files, sub-folders included; unreadable ones are left out with a warning.
        output: the `.safetensors` file to write.
        extractor: for `create_extractor`.
        components, pca, covariance, seed: of `GMMScorer`.
        options: `limit` (use at most so many files, taken evenly), `held_out`, `calibration`, `batch_size`, `device`,
            `progress`.

    Returns:
        The fitted scorer.

    Raises:
        ValueError: no images, fewer than the model needs, an output that cannot be written.
    """
    from qa_hooks.scorers.giqa.gmm import GMMScorer

    _check_output(output)
    scorer = GMMScorer(create_extractor(extractor), components, pca=pca, covariance=covariance, seed=seed)
    return _fit(scorer, folder, output, seed=seed, **options)


def fit_knn(
    folder: str | Path,
    output: str | Path,
    *,
    extractor: str | Mapping[str, Any] | FeatureExtractor = "random",
    k: int = 1,
    variant: str = "paper",
    seed: int = 0,
    **options: Any,
) -> Scorer:
    """Fit `KNNScorer` on a folder and save it; `k` and `variant` are the scorer's, the rest is as in `fit_gmm`."""
    from qa_hooks.scorers.giqa.knn import KNNScorer

    _check_output(output)
    return _fit(KNNScorer(create_extractor(extractor), k, variant=variant), folder, output, seed=seed, **options)


def _fit(
    scorer: Any,
    folder: str | Path,
    output: str | Path,
    *,
    seed: int,
    limit: int | None = None,
    held_out: float = 0.2,
    calibration: str = "ecdf",
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Scorer:
    paths = list_images(folder)
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if limit is not None and limit < len(paths):
        paths = [paths[i * len(paths) // limit] for i in range(limit)]
    if device is not None:
        scorer.to(device)
    failures: dict[int, str] = {}
    features = extract_features(scorer.extractor, paths, batch_size=batch_size, failures=failures, progress=progress)
    if failures:
        first = next(iter(failures.values()))
        warnings.warn(f"{len(failures)} of {len(paths)} files could not be read and are left out; the first: {first}")
    scorer.fit_features(features, held_out=held_out, calibration=calibration, seed=seed)
    if rank() == 0:
        scorer.save(output)
    fitted: Scorer = scorer
    return fitted


def fit_snapshot(
    snapshots: str | Path,
    output: str | Path,
    *,
    real: Source,
    targets: str = "ordinal",
    classifiers: int = 8,
    backbone: str = "small",
    pretrained: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    **options: Any,
) -> Scorer:
    """Fit `SnapshotScorer` on a folder of snapshots and save it.

    Args:
        snapshots: a folder of images with their training step in the names (`qa_hooks.sources.snapshots.step_of`).
        output: the `.safetensors` file to write.
        real: a folder of real images, prepared like the run's own data.
        targets, classifiers, backbone, pretrained, seed: of `SnapshotScorer`.
        device: where it trains.
        options: of `SnapshotScorer.fit_snapshots`.
    """
    from qa_hooks.scorers.giqa.snapshot import SnapshotScorer

    _check_output(output)
    scorer = SnapshotScorer(targets, classifiers, backbone=backbone, pretrained=pretrained, seed=seed)
    if device is not None:
        scorer.to(device)
    scorer.fit_snapshots(snapshots, real, **options)
    if rank() == 0:
        scorer.save(output)
    return scorer


def fit_rank(
    folder: str | Path, output: str | Path, *, seed: int = 0, device: str | torch.device | None = None, **options: Any
) -> RankScorer:
    """Fit `RankScorer` on a folder of good images and save it.

    Args:
        folder: image files, sub-folders included; unreadable ones are left out with a warning.
        output: the `.safetensors` file to write.
        seed: of `RankScorer`.
        device: where it trains.
        options: of `RankScorer.fit`.
    """
    from qa_hooks.scorers.rank.scorer import RankScorer

    _check_output(output)
    scorer = RankScorer(seed=seed)
    if device is not None:
        scorer.to(device)
    scorer.fit(folder, **options)
    if rank() == 0:
        scorer.save(output)
    return scorer


def _check_output(output: str | Path) -> None:
    """Before the long work, not after it."""
    if Path(output).suffix != ".safetensors" or Path(output).is_dir():
        raise ValueError(f"output must be a file ending in .safetensors, got {str(output)!r}")
    check_writable(Path(output).parent, name="output")
