"""Small versions of pictures, and pictures of several sizes on one ground."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def shrunk(picture: Tensor, side: int) -> Tensor:
    """A picture (C, H, W), uint8, brought to a longer side of at most `side`."""
    longest = max(picture.shape[1:])
    if longest <= side:
        return picture
    size = [max(1, round(length * side / longest)) for length in picture.shape[1:]]
    small = interpolate(picture[None].float(), size, mode="bilinear", antialias=True, align_corners=False)
    return small[0].round().clamp(0, 255).to(torch.uint8)


def thumbnails(pictures: Iterable[Tensor], side: int) -> Tensor:
    """Pictures (C, H, W), uint8 -> `(n, C, h, w)`, shrunk so that no side is longer than `side`, on one ground."""
    return on_one_ground([shrunk(picture, side) for picture in pictures])


def on_one_ground(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (C, H, W), uint8 and of any sizes -> `(n, C, H, W)`, each in the middle of a light ground."""
    channels, height, width = (max(picture.shape[dim] for picture in pictures) for dim in range(3))
    ground = torch.full((len(pictures), channels, height, width), 230, dtype=torch.uint8, device="cpu")
    for place, picture in zip(ground, pictures, strict=True):
        top, left = ((room - side) // 2 for room, side in zip((height, width), picture.shape[1:], strict=True))
        place[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return ground
