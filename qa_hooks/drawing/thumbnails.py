"""Small versions of pictures, what they hide, and pictures of several sizes on one ground."""

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


def most_detailed(picture: Tensor, side: int) -> tuple[int, int]:
    """Top and left of the square of this side with the most detail: of three times three, where neighbours differ most.

    Args:
        picture: (C, H, W). Along a side that is shorter than the square, the square is as long as that.
    """
    rows, columns = (sorted({(length - side) * part // 2 for part in range(3)}) if length > side else [0]
                     for length in picture.shape[1:])  # fmt: skip
    return max(
        ((top, left) for top in rows for left in columns), key=lambda at: _variation(square_at(picture, at, side))
    )


def square_at(picture: Tensor, place: Sequence[int], side: int) -> Tensor:
    """The square of this side whose top and left are `place`, in the picture's own pixels, moved inwards if it must."""
    top, left = (max(0, min(int(at), length - side)) for at, length in zip(place, picture.shape[1:], strict=True))
    return picture[:, top : top + side, left : left + side]


def _variation(picture: Tensor) -> float:
    grey = picture.float().mean(0)
    return sum(float(grey.diff(dim=dim).abs().mean()) for dim in (0, 1) if grey.shape[dim] > 1)


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
