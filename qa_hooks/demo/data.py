"""Real images for the demo: handwritten digits, or a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks._base.progress import counted
from qa_hooks._base.random import permutation
from qa_hooks._base.text import plural
from qa_hooks.images import list_images, load_image


@dataclass
class Images:
    """Real images `(N, C, S, S)` in [-1, 1], a part to train on and one held out, with labels where there are any."""

    name: str
    train: Tensor
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None


def load_digits_images() -> Images:
    """scikit-learn's 1797 handwritten digits, 8x8 enlarged to 16x16: 1400 to train on, 397 held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False) * 2 - 1
    labels = torch.from_numpy(digits.target).long()
    order = permutation(len(images), 0)
    train, test = order[:1400], order[1400:]
    return Images("digits", images[train], images[test], labels[train], labels[test])


def load_folder_images(folder: str | Path, *, size: int = 32, limit: int = 10_000) -> Images:
    """Images of a folder, centre-cropped and resized to `size`; its subfolders are the classes where there are several.

    One in five is held out. `limit` images are taken evenly from the sorted list; unreadable files are skipped and
    counted.
    """
    paths = list_images(folder)
    paths = paths[:: max(1, len(paths) // limit)][:limit]
    images, kept = [], []
    for path in counted(paths, "reading"):
        try:
            image = load_image(path).float()[None] / 255
        except ValueError:
            continue
        side = min(image.shape[-2:])
        top, left = ((length - side) // 2 for length in image.shape[-2:])
        square = image.expand(1, 3, -1, -1)[..., top : top + side, left : left + side]
        images.append(F.interpolate(square, (size, size), mode="bicubic", antialias=True).clamp(0, 1)[0])
        kept.append(path)
    if len(kept) < len(paths):
        print(f"{len(paths) - len(kept)} of {plural(len(paths), 'file')} could not be read and were left out")
    if len(images) < 500:
        raise ValueError(f"{folder} has {len(images)} readable images; a GAN and its evaluation need at least 500")
    classes = sorted({path.parent for path in kept})
    labels = None
    if len(classes) > 1:
        labels = torch.tensor([classes.index(path.parent) for path in kept], device="cpu", dtype=torch.int64)
    order = permutation(len(images), 0)
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    stacked = torch.stack(images) * 2 - 1
    split = (labels[train], labels[test]) if labels is not None else (None, None)
    return Images(Path(folder).resolve().name, stacked[train], stacked[test], *split)
