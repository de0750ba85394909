"""What `examples/quality_dial.py` trains on: crops of photographs degraded to known levels, and a small UNet of them.

The UNet has cross-attention over class tokens, as a text-to-image model has over words. It works on 16 x 16 squares of
2 x 2 pixels (`pixel_unshuffle`), which loses nothing and costs a quarter.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.demo.super_resolution import load_photographs
from qa_hooks.functional import niqe_features
from qa_hooks.functional.degradations import LEVELS, degrade
from qa_hooks.images import list_images, load_image, to_grey
from qa_hooks.scorers import FunctionScorer

SIDE, CLASSES, WIDTH = 32, 3, 32  # pixels; classes by brightness where the folder names none; width of a token
KINDS = ("blur", "noise")


@dataclass
class GradedCrops:
    """`(N, 3, 32, 32)` in [0, 1], with level of degradation (0 is none) and class; and clean crops for scorers.

    Attributes:
        images, levels, labels: what the model is trained on.
        clean: undegraded crops of other photographs, for fitting scorers.
        held_out: undegraded crops of still others, for checking scorers.
        classes: how many.
    """

    images: Tensor
    levels: Tensor
    labels: Tensor
    clean: Tensor
    held_out: Tensor
    classes: int


def load_graded_crops(folder: str | Path | None = None, *, count: int = 3000) -> GradedCrops:
    """Crops of scikit-image's photographs or of a folder's, one in five at each level of blur or noise.

    Args:
        folder: of photographs (at least 10, halved in size before they are cropped); or with a subfolder for each class
            of 32 x 32 images, such as CIFAR-10, which are taken as they are.
        count: of the crops to train on.

    Raises:
        ValueError: a folder with too few images.
    """
    generator = torch.Generator().manual_seed(0)
    labels: Tensor | None = None
    if folder is not None and any(path.is_dir() for path in Path(folder).iterdir()):
        clean, labels = _of_classes(Path(folder), count + 2 * count // 3, generator)
        parts = list(clean.split([count, count // 3, len(clean) - count - count // 3]))
    else:
        photographs = load_photographs(folder)
        groups = (photographs.train, photographs.fit, photographs.held_out)
        parts = [_crops(g, n, generator) for g, n in zip(groups, (count, count // 3, count // 6), strict=True)]
    images = parts[0]
    levels = torch.randint(LEVELS, (len(images),), generator=generator, device="cpu")
    kinds = torch.randint(len(KINDS), (len(images),), generator=generator, device="cpu")
    graded = images.clone()
    for kind, name in enumerate(KINDS):
        for level in range(1, LEVELS):
            rows = (levels == level) & (kinds == kind)
            if rows.any():
                graded[rows] = degrade(images[rows], name, level, generator=generator)
    if labels is None:
        brightness = images.mean((1, 2, 3))
        labels = torch.bucketize(brightness, torch.quantile(brightness, brightness.new_tensor([1 / 3, 2 / 3])))
        return GradedCrops(graded, levels, labels, parts[1], parts[2], CLASSES)
    return GradedCrops(graded, levels, labels[: len(images)], parts[1], parts[2], int(labels.max()) + 1)


def naturalness_of(clean: Tensor) -> FunctionScorer:
    """Distance of an image's NIQE features from the features of clean crops, `sqrt((f - mu)^T (S + e)^-1 (f - mu))`.

    It knows nothing of degradations, and so is another kind of judge than a scorer that was trained on them.
    """

    def features(images: Tensor) -> Tensor:
        enlarged = F.interpolate(images, size=2 * SIDE, mode="bicubic")
        rows: Tensor = niqe_features(255 * to_grey(enlarged)).flatten(1).double()
        return rows

    rows = torch.cat([features(part) for part in clean.split(256)])
    ridge = 1e-3 * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    mean, inverse = rows.mean(0), torch.linalg.inv(rows.T.cov() + ridge)

    def distance(images: Tensor) -> Tensor:
        centred = features(images) - mean
        squared: Tensor = (centred @ inverse * centred).sum(1)
        return squared.clamp_min(1e-12).sqrt().float()

    return FunctionScorer(distance, name="naturalness", higher_is_better=False)


class ClassModel(nn.Module):
    """A UNet of Diffusers with cross-attention over a token for each class, and the tokens."""

    def __init__(self, classes: int, width: int = 24) -> None:
        super().__init__()
        diffusers: Any = importlib.import_module("diffusers")
        self.unet = diffusers.UNet2DConditionModel(
            sample_size=SIDE // 2,
            in_channels=12,
            out_channels=12,
            layers_per_block=1,
            block_out_channels=(width, 2 * width),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            mid_block_type="UNetMidBlock2DCrossAttn",
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        self.classes = nn.Embedding(classes, WIDTH)
        self.words: nn.Embedding | None = None  # of quality, for the rival that has some

    def context(self, labels: Tensor, words: Tensor | None = None) -> Tensor:
        """`(N, 1 or 2, d)`: the token of the class, and of the quality word where there is one."""
        tokens = [self.classes(labels)] + ([] if words is None or self.words is None else [self.words(words)])
        return torch.stack(tokens, 1)


def pack(images: Tensor) -> Tensor:
    """`(N, 3, 32, 32)` in [0, 1] -> `(N, 12, 16, 16)` in [-1, 1]."""
    return F.pixel_unshuffle(2 * images - 1, 2)


def unpack(squares: Tensor) -> Tensor:
    """The inverse of `pack`, but for the range: `(N, 3, 32, 32)` in [-1, 1]."""
    return F.pixel_shuffle(squares, 2)


def _crops(photographs: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Random crops with something in them, of photographs at half their size."""
    halves = [
        F.interpolate(image[None], scale_factor=0.5, mode="bicubic", antialias=True)[0].clamp(0, 1)
        for image in photographs
        if min(image.shape[1:]) >= 2 * SIDE
    ]
    found: list[Tensor] = []
    for _ in range(20 * count):
        image = halves[int(torch.randint(len(halves), (), generator=generator, device="cpu"))]
        y, x = (int(torch.randint(side - SIDE + 1, (), generator=generator, device="cpu")) for side in image.shape[1:])
        crop = image[:, y : y + SIDE, x : x + SIDE]
        if float(crop.std()) > 0.05:
            found.append(crop)
        if len(found) == count:
            break
    return torch.stack(found)


def _of_classes(folder: Path, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of the subfolders, evenly, mixed, with the number of their class."""
    names = sorted(path for path in folder.iterdir() if path.is_dir())
    images, labels = [], []
    for label, name in enumerate(names):
        paths = list_images(name)
        order = torch.randperm(len(paths), generator=generator, device="cpu")
        for index in order[: math.ceil(count / len(names))].tolist():
            images.append(load_image(paths[index]).float().expand(3, -1, -1) / 255)
            labels.append(label)
    if any(image.shape[1:] != (SIDE, SIDE) for image in images) or len(images) < 10:
        raise ValueError(f"{folder} must have subfolders of images of {SIDE} x {SIDE} pixels, at least 10 of them")
    order = torch.randperm(len(images), generator=generator, device="cpu")
    return torch.stack(images)[order], torch.tensor(labels, dtype=torch.int64, device="cpu")[order]
