"""Candidate ground truths by classical means: enhanced versions of photographs, good ones and bad ones, and viewers.

The viewers stand in for the people of HGGT. They are a rule of three lines, not people: what is positive here says only
that sharper edges were worth the grain they came with.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.progress import counted
from qa_hooks.functional.degradations import blur
from qa_hooks.images import load_image, save_image, to_grey, to_uint8

FAULTS = ((0.0, 0.0), (1.0, 0.0), (0.8, 0.015))  # deviations of a Gaussian blur, pixels, and of Gaussian noise
VIEWERS = (0.1, 0.2, 0.4)  # how much grain bothers each of them


def sharpen(image: Tensor, amount: float) -> Tensor:
    """Unsharp mask of `(C, H, W)` in [0, 1], whose Gaussian has a deviation of one pixel."""
    return (image + amount * (image - blur(image, 1.0))).clamp(0, 1)


def smooth(image: Tensor, weight: float) -> Tensor:
    """Total-variation denoising of `(C, H, W)`."""
    from skimage import restoration

    denoise: Any = restoration.denoise_tv_chambolle  # it has no types
    return torch.from_numpy(denoise(image.numpy(), weight=weight, channel_axis=0)).float()


def add_noise(image: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise."""
    noise = torch.randn(image.shape, generator=generator, device="cpu", dtype=torch.float32)
    return (image + deviation * noise).clamp(0, 1)


ENHANCERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "original": lambda image, generator: image,
    "1_sharp": lambda image, generator: sharpen(image, 0.8),
    "2_sharper": lambda image, generator: sharpen(image, 2.0),
    "3_denoised_sharp": lambda image, generator: sharpen(smooth(image, 0.03), 1.5),
    "4_oversharp": lambda image, generator: sharpen(image, 6.0),
    "5_grainy": lambda image, generator: sharpen(add_noise(image, 0.03, generator), 0.8),
    "6_waxy": lambda image, generator: smooth(image, 0.15),
}


def soften(images: list[Tensor]) -> list[Tensor]:
    """Originals that enhancing can mend: every third image as it is, soft, or soft and grainy."""
    generator = torch.Generator().manual_seed(0)
    return [
        add_noise(blur(image, sigma) if sigma else image, noise, generator)
        for image, (sigma, noise) in zip(images, cycle(FAULTS), strict=False)
    ]


def write_candidates(images: list[Tensor], folder: Path, *, tile: int) -> None:
    """Enhance photographs and cut them into tiles: `folder/original/000_000.png`, `folder/1_sharp/000_000.png` ..."""
    generator = torch.Generator().manual_seed(0)
    for number, image in enumerate(counted(images, "enhancing")):
        for name, enhance in ENHANCERS.items():
            tiles = enhance(image, generator).unfold(1, tile, tile).unfold(2, tile, tile).flatten(1, 2).transpose(0, 1)
            (folder / name).mkdir(parents=True, exist_ok=True)
            for place, part in enumerate(tiles):
                save_image(to_uint8(part), folder / name / f"{number:03d}_{place:03d}.png")


def votes(original: Tensor, candidate: Tensor) -> int:
    """How many of three viewers like the candidate better than the original, `(C, H, W)` in [0, 1] both.

    With e and g, the logarithms of by how much the edges (the original's steepest tenth) and the grain (in its flattest
    third) have grown, a viewer likes it when e - e^2 / 0.8 - w max(g, 0) > 0.05: edges 1.5 times as strong are best,
    2.2 times as strong are no better than none.
    """
    greys = [to_grey(image[None]) for image in (original, candidate)]
    detail = [(grey - blur(grey, 1.0)).abs() for grey in greys]
    activity = blur(detail[0], 1.5)
    edges, flat = activity > activity.quantile(0.9), activity < activity.quantile(0.33)
    e, g = (float(((detail[1][at].mean() + 2e-3) / (detail[0][at].mean() + 2e-3)).log()) for at in (edges, flat))
    return sum(e - e**2 / 0.8 - w * max(g, 0.0) > 0.05 for w in VIEWERS)


def ask_viewers(folder: Path, keys: list[str]) -> dict[str, list[int]]:
    """The positives of each set by the majority of the viewers, as `MultiGTDataset` takes them."""
    positives = {}
    for key in keys:
        original, *others = (load_image(folder / name / key).float() / 255 for name in ENHANCERS)
        positives[key] = [number for number, other in enumerate(others, 1) if votes(original, other) >= 2]
    return positives
