"""Shared by monitors that draw pictures: the check of a scorer, its label, thumbnails, writing a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from qa_hooks._base.files import check_writable
from qa_hooks.callbacks.callback import Context
from qa_hooks.images import save_image
from qa_hooks.scorers.scorer import Scorer, check_is_scorer
from qa_hooks.writers import make_tag


def check_scorer(scorer: Any, name: str = "scorer") -> None:
    """`TypeError` unless it is a `Scorer`; `ValueError` when it wants prompts, which monitors do not have."""
    check_is_scorer(scorer, name)
    if "prompt" in scorer.inputs:
        raise ValueError(f"{name}: {scorer.name} needs prompts, which this monitor does not have")


def axis_label(scorer: Scorer) -> str:
    """The name and the direction of a scorer."""
    return f"{scorer.name} ({'higher' if scorer.higher_is_better else 'lower'} is better)"


def picture_folder(folder: str | Path | None) -> Path | None:
    """A folder for pictures, made when it is missing; `ValueError` when it cannot be written."""
    if folder is not None:
        check_writable(folder, name="folder")
    return Path(folder) if folder is not None else None


def write_picture(ctx: Context, folder: Path | None, name: str, what: str, picture: Tensor) -> None:
    """Write `qa_images/{name}/{what}`, and `{what}_{step:08d}.png` where there is a folder."""
    ctx.writer.image(make_tag("images", name, what), picture, ctx.step)
    if folder is not None:
        save_image(picture, folder / f"{what}_{ctx.step:08d}.png")


def thumbnails(pictures: Iterable[Tensor], side: int) -> Tensor:
    """Pictures (C, H, W), uint8 -> `(n, C, h, w)`, shrunk so that no side is longer than `side`, on one ground."""
    return on_one_ground([_shrunk(picture, side) for picture in pictures])


def on_one_ground(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (C, H, W), uint8 and of any sizes -> `(n, C, H, W)`, each in the middle of a light ground."""
    channels, height, width = (max(picture.shape[dim] for picture in pictures) for dim in range(3))
    ground = torch.full((len(pictures), channels, height, width), 230, dtype=torch.uint8, device="cpu")
    for place, picture in zip(ground, pictures, strict=True):
        top, left = ((room - side) // 2 for room, side in zip((height, width), picture.shape[1:], strict=True))
        place[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return ground


def _shrunk(picture: Tensor, side: int) -> Tensor:
    longest = max(picture.shape[1:])
    if longest <= side:
        return picture
    size = [max(1, round(length * side / longest)) for length in picture.shape[1:]]
    small = interpolate(picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().clamp(0, 255).to(torch.uint8)
