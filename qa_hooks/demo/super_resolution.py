"""What the super-resolution examples share: photographs, a net of 40 thousand parameters, L1 training, evaluation.

The photographs are scikit-image's and scikit-learn's, or a folder's. They come in three parts that never meet: to train
on, to fit scorers on, and held out; so no scorer has seen an image that it judges.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.callbacks import Hooks
from qa_hooks.data.low_resolution import bicubic_degradation
from qa_hooks.images import list_images, load_image
from qa_hooks.scorers import PSNR, SSIM, Scorer, create_scorer

TRAIN = ("china", "coffee", "motorcycle")
FIT = ("camera", "rocket", "flower", "brick", "coins", "grass", "gravel", "moon")
HELD_OUT = ("astronaut", "chelsea")


@dataclass
class Photographs:
    """`(3, H, W)` in [0, 1] each: a part to train on, one to fit scorers on, and one held out."""

    name: str
    train: list[Tensor]
    fit: list[Tensor]
    held_out: list[Tensor]


def load_photographs(folder: str | Path | None = None, *, least: int = 1) -> Photographs:
    """Photographs of scikit-image and scikit-learn, or of a folder.

    Args:
        folder: of a folder's images, by name, the last fifth is held out; of the others every second one is for
            scorers.
        least: pixels of the shorter side.

    Raises:
        ValueError: a folder with fewer than 10 images, or with one that is smaller or broken.
    """
    if folder is None:
        parts = [[_packaged(name) for name in names] for names in (TRAIN, FIT, HELD_OUT)]
        name = "scikit-image"
    else:
        paths = list_images(folder)
        if len(paths) < 10:
            raise ValueError(f"{folder} has {len(paths)} images; training, scorers and evaluation need at least 10")
        first = len(paths) * 4 // 5
        groups = (paths[:first:2], paths[1:first:2], paths[first:])
        parts = [[_read(path, least) for path in group] for group in groups]
        name = Path(folder).resolve().name
    return Photographs(name, *parts)


def random_crops(photographs: list[Tensor], side: int, count: int, seed: int) -> Iterator[Tensor]:
    """Batches of random crops without end, `(count, 3, side, side)` in [0, 1]."""
    rng = torch.Generator("cpu").manual_seed(seed)
    while True:
        cut = []
        for index in torch.randint(len(photographs), (count,), generator=rng, device="cpu").tolist():
            free = (n - side + 1 for n in photographs[index].shape[1:])
            top, left = (int(torch.randint(n, (), generator=rng, device="cpu")) for n in free)
            cut.append(photographs[index][:, top : top + side, left : left + side])
        yield torch.stack(cut)


class SRNet(nn.Module):
    """Bicubic interpolation and a learned residual: `(N, 3, h, w)` -> `(N, 3, s h, s w)`; before training, bicubic.

    Args:
        scale: s.
        width: channels; 32 make 41 thousand parameters at scale 2.
        blocks: residual blocks of two convolutions.
    """

    def __init__(self, scale: int, *, width: int = 32, blocks: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.tail = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        for parameter in self.tail.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.head(images - 0.5))
        for block in self.blocks:
            features = features + block(features)
        base = F.interpolate(images, scale_factor=self.scale, mode="bicubic")
        return base + F.pixel_shuffle(self.tail(features), self.scale)


def train_l1(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    hooks: Hooks | None = None,
    progress: Any = None,
) -> None:
    """Adam on the mean absolute error, the rate falling linearly to zero.

    Args:
        batches: low-resolution images and their ground truths, at least `steps` of them.
        hooks: attached for the training; they log the loss.
        progress: its `put(n)` is told of n further steps, as `side_by_side` wants it.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with hooks.attach(optimizer) if hooks is not None else nullcontext():
        for _, (lq, gt) in zip(range(steps), batches, strict=False):
            loss = F.l1_loss(net(lq), gt)
            optimizer.zero_grad()
            loss.backward()
            if hooks is not None:
                hooks.record(l1=loss)
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress.put(1)


@torch.no_grad()
def super_resolve(net: Callable[[Tensor], Tensor], hr: list[Tensor], scale: int) -> tuple[list[Tensor], list[Tensor]]:
    """Cut photographs to sizes that `scale` divides, shrink them (bicubic) and enlarge them by the net.

    Returns:
        The super-resolved images in 256 levels of [0, 1], and what they should be, `(1, 3, H, W)` each.
    """
    outputs, references = [], []
    for image in hr:
        height, width = (side // scale * scale for side in image.shape[-2:])
        reference = image[None, :, :height, :width]
        lq = bicubic_degradation(reference[0], scale)[None]
        outputs.append((net(lq).clamp(0, 1) * 255).round() / 255)
        references.append(reference)
    return outputs, references


def fidelity(outputs: list[Tensor], references: list[Tensor], scale: int) -> dict[str, float]:
    """Mean PSNR and SSIM by the papers' convention: luma, without a border of `scale` pixels."""
    metrics = {"psnr": PSNR(crop_border=scale, channel="y"), "ssim": SSIM(crop_border=scale, channel="y")}
    return {name: mean_score(metric, outputs, references) for name, metric in metrics.items()}


def load_metrics(specs: Iterable[str], *, taken: Collection[str] = ()) -> dict[str, Scorer]:
    """Scorers for the columns of a table, by their spec or by the name of their file.

    Args:
        specs: what `create_scorer` takes.
        taken: names that other columns have.

    Raises:
        ImportError, OSError, RuntimeError, ValueError: what `create_scorer` raises of a spec that it cannot load.
        ValueError: two of one name.
    """
    found: dict[str, Scorer] = {}
    for spec in specs:
        name = Path(spec).stem if Path(spec).suffix == ".safetensors" else spec
        if name in found or name in taken:
            raise ValueError(f"two columns are called {name!r}: copy {spec} under another name")
        found[name] = create_scorer(spec)
    return found


@torch.no_grad()
def mean_score(scorer: Scorer, images: list[Tensor], references: list[Tensor]) -> float:
    """Over images `(1, 3, H, W)`; the references are for scorers that take them."""
    more = [{"reference": reference} if "reference" in scorer.inputs else {} for reference in references]
    return sum(float(scorer(image, **own)) for image, own in zip(images, more, strict=True)) / len(images)


def _packaged(name: str) -> Tensor:
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        array = load_sample_image(f"{name}.jpg")
    else:
        from skimage import data

        images: Any = data  # it has no types
        array = images.stereo_motorcycle()[0] if name == "motorcycle" else getattr(images, name)()
    image = torch.from_numpy(array.copy()).float() / 255
    return image.permute(2, 0, 1) if image.ndim == 3 else image.expand(3, -1, -1)


def _read(path: Path, least: int) -> Tensor:
    image = load_image(path)
    if min(image.shape[1:]) < least:
        raise ValueError(f"{path} is {image.shape[1]} x {image.shape[2]} pixels; each side needs at least {least}")
    return (image.float() / 255).expand(3, -1, -1)
