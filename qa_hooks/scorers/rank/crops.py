"""The crops that a ranking scorer is fitted on: taken at random from images of any sizes, and held as bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_channels, warn
from qa_hooks._base.random import mixed_key, permutation
from qa_hooks._base.text import plural
from qa_hooks.images import Range, to_uint8, to_unit
from qa_hooks.scorers.training_images import training_batches
from qa_hooks.sources.batches import Source, warn_left_out

READ_BATCH = 16
WANTED = 20  # images
MIN_CONTRAST = 2.0  # deviation in grey levels; a flatter crop looks the same when it is blurred or compressed


class Crops(NamedTuple):
    """Crops and where they come from.

    Attributes:
        values: uint8 `(n, 3, side, side)`.
        origin: int64 `(n,)`, the number of the image.
    """

    values: Tensor
    origin: Tensor

    @classmethod
    def none(cls, side: int) -> Crops:
        """No crops."""
        none = torch.zeros(0, 3, side, side, dtype=torch.uint8, device="cpu")
        return cls(none, torch.zeros(0, dtype=torch.int64, device="cpu"))

    def split(self, share: float, seed: int, *, what: str = "a ranking scorer") -> tuple[Tensor, Tensor]:
        """Crops that are held out, and the others; no image has crops in both.

        Raises:
            ValueError: fewer than two images.
        """
        images = self.origin.unique()
        if len(images) < 2:
            raise ValueError(
                f"{what} needs at least two images that are large enough and not flat, one of them to hold out, got "
                f"{len(images)}; the side of its crops is crop={self.values.shape[-1]}"
            )
        order = images[permutation(len(images), seed)]
        held = min(max(1, round(share * len(images))), len(images) - 1)
        tested = torch.isin(self.origin, order[:held])
        return self.values[tested], self.values[~tested]


def read_crops(
    source: Source,
    value_range: Range,
    *,
    side: int,
    count: int,
    limit: int,
    seed: int,
    what: str = "a ranking scorer",
    progress: bool = True,
) -> Crops:
    """`count` random crops of each of at most `limit` images; what is broken, too small or flat is left out.

    Raises:
        ValueError: values that are not finite or outside the range, no images.
    """
    failures, read, small, largest = dict[int, str](), 0, 0, 0
    crops, origin = (list(part) for part in zip(Crops.none(side)))
    reading: dict[str, Any] = {"limit": limit, "batch_size": READ_BATCH, "failures": failures, "progress": progress}
    for positions, images in training_batches("images", source, value_range, **reading):
        read += len(positions)
        check_channels("fitting", images)
        if min(images.shape[2:]) < side:
            small, largest = small + len(positions), max(largest, min(images.shape[2:]))
            continue
        bytes_ = to_uint8(to_unit(images, value_range)).cpu().expand(-1, 3, -1, -1)
        for position, image in zip(positions, bytes_, strict=True):
            found = _crops(image, side, count, torch.Generator().manual_seed(mixed_key(seed, position)))
            crops.append(found)
            origin.append(torch.full((len(found),), position, dtype=torch.int64, device="cpu"))
    if small:
        warn(
            f"{small} of {plural(read, 'image')} are smaller than crop={side} and were left out; the largest of them "
            f"has a side of {largest}"
        )
    if 2 <= read - small < WANTED:
        warn(
            f"{what} has {plural(read - small, 'image')} to learn from, and wants at least {WANTED}: with fewer it "
            "learns these images, and what is measured on the held-out ones says little"
        )
    warn_left_out(failures)
    return Crops(torch.cat(crops), torch.cat(origin))


def _crops(image: Tensor, side: int, count: int, generator: torch.Generator) -> Tensor:
    """`(n, 3, side, side)` of one image, without flat ones; of small images not more than there are places."""
    places = [length - side + 1 for length in image.shape[1:]]
    number = min(count, places[0] * places[1])
    tops, lefts = (torch.randint(n, (number,), generator=generator, device="cpu") for n in places)
    corners = zip(tops.tolist(), lefts.tolist(), strict=True)
    crops = torch.stack([image[:, top : top + side, left : left + side] for top, left in corners])
    return crops[crops.float().std((1, 2, 3)) >= MIN_CONTRAST]
