"""The network of a snapshot scorer, and the loop that trains it: AdamW, each batch half real and half generated."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qa_hooks.features.networks import IMAGENET
from qa_hooks.scorers.giqa.snapshot_targets import snapshot_loss
from qa_hooks.scorers.training import minimise

WEIGHT_DECAY = 5e-4
TEST_BATCH = 256
LOGITS = 1000  # the last layer of torchvision's networks


class SnapshotNetwork(nn.Module):
    """`(N, C, H, W)` in [0, 1] -> `(N, outputs)` logits.

    Args:
        backbone: "small", a convolutional net for images of up to about 64 pixels, or any classification network of
            torchvision by name ("vgg19_bn" is the paper's), with its layer of 1000 and a linear one on top.
        outputs: N.
        channels: 1 or 3; torchvision's networks see grey images as RGB.
        size: (height, width) of the images; how often the small one halves them.
        pretrained: start from torchvision's weights, which it downloads.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: str, outputs: int, channels: int, size: tuple[int, int], *, pretrained: bool = False
    ) -> None:
        super().__init__()
        self.expand = backbone != "small" and channels == 1
        if backbone == "small":
            self.body, width = _small(channels, size)
        else:
            self.body, width = _torchvision(backbone, pretrained), LOGITS
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(width, outputs))
        mean, std = (torch.tensor(value, dtype=torch.float32, device="cpu")[:, None, None] for value in IMAGENET)
        grey = backbone == "small" and channels == 1
        self.register_buffer("mean", mean.mean(0, keepdim=True) if grey else mean, persistent=False)
        self.register_buffer("std", std.mean(0, keepdim=True) if grey else std, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = images.expand(-1, 3, -1, -1) if self.expand else images
        logits: Tensor = self.head(self.body((images - self.mean) / self.std))
        return logits


def _small(channels: int, size: tuple[int, int]) -> tuple[nn.Module, int]:
    """3x3 convolutions that halve the image down to about 4x4, where there are 128 channels."""
    stages = max(1, int(math.log2(min(size) / 4)))
    widths = [max(16, 128 >> (stages - stage)) for stage in range(stages + 1)]
    layers: list[nn.Module] = []
    for stage, (before, width) in enumerate(zip([channels, *widths], widths, strict=False)):
        layers += [nn.Conv2d(before, width, 3, stride=1 if stage == 0 else 2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(width), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128 * 16, 256)), 256


def check_backbone(backbone: str) -> str:
    """ "small" or the name of a classification network of torchvision; `ValueError` otherwise."""
    if backbone == "small":
        return backbone
    from torchvision import models

    if backbone not in models.list_models(module=models):
        raise ValueError(
            f"backbone must be 'small' or a classification network of torchvision such as vgg19_bn, resnet18 or "
            f"mobilenet_v3_small, got {backbone!r}"
        )
    return backbone


def _torchvision(backbone: str, pretrained: bool) -> nn.Module:
    from torchvision import models

    # Inception and GoogLeNet: no second output while they train, no change of the input that goes with some weights.
    more = {"aux_logits": False, "init_weights": False} if backbone in ("googlenet", "inception_v3") else {}
    network: Any = models.get_model(backbone, weights="DEFAULT" if pretrained else None, **more)
    if more:
        network.transform_input = False
    return cast(nn.Module, network)


def check_takes(network: nn.Module, backbone: str, channels: int, height: int, width: int) -> None:
    """Raise `ValueError` where the network cannot take images of this size: before the training, and with a remedy."""
    try:
        with torch.no_grad():
            here = next(network.parameters())
            network.eval()(torch.zeros(2, channels, height, width, device=here.device, dtype=here.dtype))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{backbone} cannot take images of {height} x {width}: {error}; resize them with size=224, say"
        ) from error


def train_network(
    network: nn.Module,
    generated: Tensor,
    labels: Tensor,
    real: Tensor,
    *,
    regression: bool = False,
    steps: int = 600,
    batch_size: int = 64,
    lr: float = 1e-3,
    augment: bool = True,
    flip: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Train a snapshot network in place, to be called in a `training_room`.

    The learning rate rises over a tenth of the steps and then falls to zero.

    Args:
        network: on its device, logits `(N, outputs)` from images in [0, 1].
        generated: uint8 `(n, C, H, W)`; kept where it is, batches are moved.
        labels: `(n, outputs)`, of the generated images; the labels of real images are 1.
        real: uint8 `(m, C, H, W)`.
        regression: squared error instead of binary cross entropy.
        steps, batch_size, lr: of the optimizer; batch_size counts real and generated images together.
        augment: shift by up to a sixteenth of the side, as the paper's random crops do.
        flip: mirror half of the images; not for digits or text.
        seed: of batches and augmentation.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError: the loss is not finite any more.
    """
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=WEIGHT_DECAY)
    rise = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    half = max(1, batch_size // 2)

    def batch_loss(step: int) -> Tensor:
        fake_at = torch.randint(len(generated), (half,), generator=generator, device="cpu")
        real_at = torch.randint(len(real), (half,), generator=generator, device="cpu")
        images = torch.cat([generated[fake_at], real[real_at]]).float()
        # Files and 8-bit images hold whole grey levels, fresh samples do not: that must not give an image away.
        jitter = torch.rand(images.shape, generator=generator, dtype=torch.float32, device="cpu")
        images = (images + jitter - 0.5) / 255
        if augment:
            images = _shifted(images, generator)
        if flip:
            mirrored = torch.rand(len(images), generator=generator, dtype=torch.float32, device="cpu") < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        wanted = torch.cat([labels[fake_at], labels.new_ones(half, labels.shape[1])])
        return snapshot_loss(network(images.to(device)), wanted.to(device), regression=regression)

    minimise(batch_loss, network, optimizer, schedule, steps=steps, what="snapshot scorer", progress=progress)


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """uint8 `(n, C, H, W)` -> sigmoids `(n, outputs)` on the CPU."""
    device = next(network.parameters()).device
    parts = [torch.sigmoid(network(part.to(device).float() / 255)).cpu() for part in images.split(TEST_BATCH)]
    return torch.cat(parts)


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by its own random number of pixels; what comes in at the edge is its reflection."""
    count, channels, height, width = images.shape
    reach = max(1, min(height, width) // 16)
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    top, left = torch.randint(2 * reach + 1, (2, count, 1), generator=generator, device="cpu")
    images_at, channels_at, rows, columns = (torch.arange(n, device="cpu") for n in (count, channels, height, width))
    rows, columns = top + rows, left + columns
    index = images_at[:, None, None, None], channels_at[None, :, None, None]
    return padded[(*index, rows[:, None, :, None], columns[:, None, None, :])]
