"""The scorers of `opinions`: those that are ready, those that are fitted on photographs, those of the literature."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.features import create_extractor
from qa_hooks.functional import ssim
from qa_hooks.images import list_images, load_image
from qa_hooks.ratings.opinion_features import rated_features
from qa_hooks.scorers import FunctionScorer, Scorer, create_scorer
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer
from qa_hooks.scorers.perceptual import unit

PLAIN = ("psnr", "ssim", "ms_ssim", "niqe_bsd100", "niqe", "lpips", "dists")
PIQ = ("piq:vsi", "piq:fsim", "piq:gmsd", "piq:haarpsi", "piq:mdsi", "piq:vif")
TINY = ("psnr", "ssim")
CROP = 128
GREY = (0.299, 0.587, 0.114)


def grey(images: Tensor) -> Tensor:
    return (images * images.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def published_psnr(images: Tensor, reference: Tensor) -> Tensor:
    """PSNR as the literature computes it: of the grey images."""
    return -10 * (grey(images) - grey(reference)).square().mean((1, 2, 3)).clamp_min(1e-12).log10()


def published_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM as the literature computes it: grey, the mean of 2 x 2 pixels, then SSIM."""
    return ssim(*(nn.functional.avg_pool2d(grey(x), 2) for x in (images, reference)))


def network_distance() -> Scorer:
    """Distance of unit-length maps of EfficientNet-Lite0's stages: LPIPS's form without its weights, nothing fitted."""
    extractor = create_extractor("efficientnet_lite0-stages")
    network: Any = extractor.network

    def distance(images: Tensor, reference: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        for a, b in zip(*(network.stages(extractor.prepare(x)) for x in (images, reference)), strict=True):
            a, b = (nn.functional.normalize(maps, dim=1) for maps in (a, b))
            total = total + (a - b).square().sum(1).mean((1, 2))
        return total

    return FunctionScorer(distance, name="distance in Lite0", higher_is_better=False, inputs={"reference"})


def hed_distance() -> Scorer:
    """`perceptual:hed` in a quarter of its time: in bfloat16, with one look at a reference that follows itself.

    On a blurred image the distance was .3979 for .3976.
    """
    extractor, known = create_extractor("hed-stages", amp=True), list[tuple[Tensor, list[Tensor]]]()

    def distance(images: Tensor, reference: Tensor) -> Tensor:
        found = []
        for image, other in zip(images[:, None], reference[:, None], strict=True):
            if not known or not torch.equal(known[0][0], other):
                known[:] = [(other, [unit(maps) for maps in extractor.stages(other)])]
            pairs = zip(extractor.stages(image), known[0][1], strict=True)
            found.append(torch.stack([(unit(x) - y).square().sum(1).mean() for x, y in pairs]).mean())
        return torch.stack(found)

    return FunctionScorer(distance, name="perceptual:hed", higher_is_better=False, inputs={"reference"})


AS_PUBLISHED = {"psnr as published": published_psnr, "ssim as published": published_ssim}
NETWORKS = {"distance in Lite0": network_distance, "perceptual:hed": hed_distance}


def crops_of(folder: Path) -> Tensor:
    """Crops `(n, 3, 128, 128)` uint8 that do not overlap, of all photographs of a folder."""
    found = []
    for path in list_images(folder):
        image = load_image(path)
        for top in range(0, image.shape[1] - CROP + 1, CROP):
            for left in range(0, image.shape[2] - CROP + 1, CROP):
                found.append(image[:, top : top + CROP, left : left + CROP].expand(3, -1, -1))
    return torch.stack(found)


def fitted(photos: Path, out: Path) -> dict[str, Scorer]:
    """The scorers that are fitted, on crops of other photographs; kept in `out/scorers`."""
    crops, cache = crops_of(photos).float() / 255, out / "scorers"
    stages, middle = "efficientnet_lite0-stages", "efficientnet_lite0-middle"
    specs: dict[str, dict[str, Any]] = {  # 600 crops are enough for three components of 64 dimensions
        "rank": {"type": "rank", "fit": photos},
        "giqa-knn (middle)": {"type": "giqa-knn", "extractor": middle, "k": 5},
        "giqa-sgm (middle)": {"type": "giqa-sgm", "extractor": middle},
        "giqa-gmm (middle)": {"type": "giqa-gmm", "extractor": middle, "components": 3, "pca": 32},
        "giqa-knn (stages)": {"type": "giqa-knn", "extractor": stages, "k": 1},
        "giqa-sgm (stages)": {"type": "giqa-sgm", "extractor": stages},
        "giqa-gmm (stages)": {"type": "giqa-gmm", "extractor": stages, "components": 3, "pca": 64},
        "giqa-knn (last layer)": {"type": "giqa-knn", "extractor": "efficientnet_lite0", "k": 1},
    }
    made = {}
    for name, spec in specs.items():
        print(f"fitting {name}", flush=True)
        try:
            made[name] = create_scorer({"fit": crops, "cache": cache, **spec})
        except (TypeError, ImportError, ValueError) as error:
            print(f"  left out: {error}", flush=True)
    return made


def scores_in_features(
    named: dict[str, FeatureScorer], files: list[Path], out: Path, known: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Goodness of the images; features that are not known by the extractor's name are taken, and kept in `out`."""
    found = {}
    for name, scorer in named.items():
        values = known.get(scorer.extractor.name)
        if values is None:
            values = rated_features(scorer.extractor, files, cache=out / "features", batch_size=8).values
        found[name] = scorer.score_features(values).double().numpy()
    return found


def named_scorers(options: argparse.Namespace) -> tuple[dict[str, Scorer], dict[str, FeatureScorer]]:
    """The scorers that look at images, and those that share an extractor's features."""
    named: dict[str, Scorer] = {}
    plain = TINY if options.tiny else (*PLAIN, *PIQ)
    for spec in (*plain, *options.scorers):
        try:
            scorer = create_scorer(spec)
            named[spec if spec in plain else scorer.name] = scorer
        except Exception as error:  # weights that cannot be had here, packages that are missing
            print(f"{spec} is left out: {str(error).splitlines()[0]}", flush=True)
    in_features: dict[str, FeatureScorer] = {}
    if options.photos is not None:
        for name, scorer in fitted(options.photos, options.out).items():
            if isinstance(scorer, FeatureScorer):
                in_features[name] = scorer
            else:
                named[name] = scorer
    for name, make in {} if options.tiny else NETWORKS.items():
        try:
            named[name] = make()
        except ImportError as error:
            print(f"{name} is left out: {error}", flush=True)
    named = {name: scorer for name, scorer in named.items() if name not in options.leave_out}
    return {**named, **as_published()}, in_features


def as_published() -> dict[str, Scorer]:
    """The two by which it is told whether a type is rebuilt."""
    how: dict[str, Any] = {"higher_is_better": True, "inputs": {"reference"}}
    return {name: FunctionScorer(function, name=name, **how) for name, function in AS_PUBLISHED.items()}
