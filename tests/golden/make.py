"""Make the golden files again: `python tests/golden/make.py FOLDER`.

One file of each format that the package saves, with the numbers that it gives for a fixed input beside it in
`scores.json`. The committed files were written by version 0.1.0 before its first release: a file of today must load in
every later version and give the same numbers, so they are made again only for a new format, under a new name.

The files are compressed (xz). The networks in them are trained for two steps and then get weights that repeat, so that
they take a few KB and still give every image a score of its own.
"""

from __future__ import annotations

import json
import lzma
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.evaluation.reference import Reference, make_reference
from qa_hooks.features import Features, create_extractor, extract_features
from qa_hooks.functional.niqe import FeatureConfig
from qa_hooks.scorers import (
    AFINE,
    MSSSIM,
    NIQE,
    PSNR,
    SSIM,
    BCScorer,
    FittedAFINE,
    GMMScorer,
    IRScorer,
    KNNScorer,
    MBCScorer,
    NaturalnessModel,
    OpinionScorer,
    RankScorer,
    Scorer,
    SnapshotScorer,
    ladder_comparisons,
    load_scorer,
)
from qa_hooks.scorers.afine.checkpoint import random_checkpoint
from qa_hooks.scorers.opinions.targets import RatingTargets
from qa_hooks.sources.fingerprint import data_fingerprint

EXTRACTOR = {"type": "random", "width": 1}


def pictures(count: int, side: int, *, channels: int = 3) -> Tensor:
    """uint8 `(count, channels, side, side)`, by whole numbers alone: the same with every version of torch."""
    image, channel, row, column = torch.meshgrid(
        *(torch.arange(n, dtype=torch.int64, device="cpu") for n in (count, channels, side, side)), indexing="ij"
    )
    waves = (row * (3 + image % 5) + column * (2 + channel + image % 3)) * 256 // side
    state = (((image * 7 + channel) * 65537 + row * side + column) * 1103515245 + 12345) % 2**31
    state = (state * 1103515245 + 12345) % 2**31
    noise = (state >> 16) % (16 + 8 * (image % 9))
    return ((waves % 192 + noise) % 256).to(torch.uint8)


def given() -> Tensor:
    """The fixed input."""
    return pictures(6, 64)[1:]


def scores_of(path: Path) -> Tensor:
    """What a saved scorer gives for the fixed input; the calibrated scores follow the raw ones where there are any."""
    scorer = load_scorer(path)
    reference = {"reference": given().flip(-1)} if "reference" in scorer.inputs else {}
    with torch.no_grad():
        parts = [scorer(given(), **reference)]
        if scorer.calibration is not None:
            parts.append(scorer.calibrated()(given(), **reference))
    return torch.cat(parts)


def statistics_of(path: Path) -> Tensor:
    """A few numbers of saved features or of a saved reference."""
    if "features" in path.name:
        features = Features.load(path)
        return torch.cat([features.values.mean(0), features.indices.float()])
    reference = Reference.load(path)
    return torch.cat([reference.mean, reference.covariance.diagonal(), reference.rows.double().mean(0)]).float()


def readings(path: Path) -> Tensor:
    """The numbers that a golden file gives."""
    return statistics_of(path) if path.name.startswith(("features", "reference")) else scores_of(path)


def fingerprints() -> dict[str, str]:
    """Of an extractor, of data and of a scorer: what is on disk under one of these must be found again."""
    extractor = create_extractor(EXTRACTOR)
    rows = (pictures(60, 64)[:, 0, 0, :14].float() / 255 - 0.5) * 3  # by whole numbers alone, too
    knn = KNNScorer(extractor).fit_features(rows, calibration="minmax")
    return {
        "extractor": extractor.fingerprint,
        "tensor": data_fingerprint(given()),
        "scorer": knn.fingerprint,
    }


def _features() -> Features:
    return extract_features(create_extractor(EXTRACTOR), pictures(80, 64)[20:], progress=False)


def _repeat_weights(network: nn.Module) -> None:
    """The large tensors of a network get their first 97 numbers again and again."""
    for value in network.state_dict().values():
        if value.numel() > 512:
            flat = value.flatten()
            value.copy_(flat[torch.arange(flat.numel()) % 97].view_as(value))


def _snapshots(scorer: SnapshotScorer) -> SnapshotScorer:
    generated = pictures(30, 16, channels=1), torch.arange(30, device="cpu") * 100
    scorer.fit_snapshots(generated, 255 - pictures(60, 16, channels=1), steps=2, progress=False, calibration=None)
    _repeat_weights(scorer.network)
    return scorer


def _rank() -> RankScorer:
    fitting: dict[str, Any] = {"steps": 2, "crop": 16, "crops": 4, "progress": False, "warn_below": 0}
    scorer = RankScorer().fit(pictures(20, 32), calibration=None, **fitting)
    _repeat_weights(scorer.network)
    return scorer


def _opinion(*, spread: bool) -> OpinionScorer:
    features = _features()
    rating = features.values[:, 0].double()
    targets = RatingTargets(rating, rating.abs() + 0.1 if spread else None)
    agreement = {"value": 0.5, "low": 0.1, "high": 0.8, "n": 12, "clusters": 6}
    facts = {"kind": "ratings", "images": 60, "opinions": 60, "contents": 30, "held_out": {"srcc": agreement}}
    scorer = OpinionScorer(EXTRACTOR, scale="stars", facts=facts)
    return scorer.fit(features, targets, [row // 2 for row in range(len(features))])


def _afine() -> AFINE:
    scorer = AFINE(random_checkpoint(depth=1, patch=8, positions=5, hidden=2), part="distance")
    _repeat_weights(scorer.clip)
    return scorer


def _fitted_afine() -> FittedAFINE:
    made = ladder_comparisons(list(pictures(3, 32)))
    scorer = FittedAFINE(EXTRACTOR).fit_comparisons(made, steps=2, warn_below=0, progress=False)
    _repeat_weights(scorer.network)
    return scorer


def _naturalness() -> NaturalnessModel:
    grey = pictures(40, 64, channels=1).double()
    return NaturalnessModel.fit(grey.split(4), FeatureConfig.niqe(32), sharpness=0, shrink=0.1, progress=False)


def _calibrated(scorer: Scorer, method: str) -> Scorer:
    images = torch.cat([given(), given() // 2, given().flip(-2) // 2 + 64])
    inputs = {"reference": images.flip(-1)} if "reference" in scorer.inputs else {}
    with torch.no_grad():
        return scorer.fit_calibration(scorer.goodness(images, **inputs), method=method)


def makers() -> dict[str, Callable[[], Any]]:
    """What makes each file, by its name: each class of scorers calibrated and not."""
    return {
        "psnr": lambda: PSNR(crop_border=2, channel="y"),
        "psnr-calibrated": lambda: _calibrated(PSNR(), "sigmoid"),
        "ssim": lambda: SSIM(channel="y"),
        "ssim-calibrated": lambda: _calibrated(SSIM(), "minmax"),
        "ms_ssim": MSSSIM,
        "ms_ssim-calibrated": lambda: _calibrated(MSSSIM(), "ecdf"),
        "naturalness": _naturalness,
        "niqe": lambda: NIQE(_naturalness()),
        "niqe-calibrated": lambda: _calibrated(NIQE(_naturalness()), "ecdf"),
        "gmm": lambda: GMMScorer(EXTRACTOR, 2, pca=4).fit_features(_features(), calibration=None),
        "gmm-calibrated": lambda: _calibrated(
            GMMScorer(EXTRACTOR, 1, pca=None, covariance="diag").fit_features(_features(), calibration=None), "sigmoid"
        ),
        "knn": lambda: KNNScorer(EXTRACTOR, 2, variant="official_code").fit_features(_features(), calibration=None),
        "knn-calibrated": lambda: _calibrated(
            KNNScorer(EXTRACTOR).fit_features(_features()[::2], calibration=None), "ecdf"
        ),
        "mbc": lambda: _snapshots(MBCScorer(3)),
        "mbc-calibrated": lambda: _calibrated(_snapshots(MBCScorer(4)), "sigmoid"),
        "bc": lambda: _snapshots(BCScorer()),
        "bc-calibrated": lambda: _calibrated(_snapshots(BCScorer()), "minmax"),
        "ir": lambda: _snapshots(IRScorer()),
        "ir-calibrated": lambda: _calibrated(_snapshots(IRScorer()), "ecdf"),
        "snapshot": lambda: _snapshots(SnapshotScorer(thresholds=[0.3, 1.0], size=(16, 24))),
        "snapshot-calibrated": lambda: _calibrated(_snapshots(SnapshotScorer("binary", channels=3)), "sigmoid"),
        "rank": _rank,
        "rank-calibrated": lambda: _calibrated(_rank(), "ecdf"),
        "opinion": lambda: _opinion(spread=False),
        "opinion-calibrated": lambda: _calibrated(_opinion(spread=True), "ecdf"),
        "afine": _afine,
        "afine-fitted": _fitted_afine,
        "features": lambda: extract_features(create_extractor(EXTRACTOR), pictures(7, 32), progress=False),
        "reference": lambda: make_reference(create_extractor(EXTRACTOR), pictures(20, 32), progress=False, rows=8),
    }


def main(folder: Path) -> None:
    """Write all files and `scores.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in makers().items():
            path = Path(temporary, f"{name}.safetensors")
            make().save(path)
            (folder / f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes(), preset=9))
            scores[name] = [float(f"{value:.8g}") for value in readings(path).tolist()]
    text = json.dumps({"fingerprints": fingerprints(), "scores": scores}, indent=1)
    (folder / "scores.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
