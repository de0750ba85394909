"""Images of one size or of several: in runs of one size, and as the references of a restored set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.hashing import fingerprint
from qa_hooks.images import as_tensor


def as_runs(images: Any) -> list[Tensor]:
    """Images in any common form, of one size or of several -> runs `(k, C, H, W)` of neighbours of one size, in order.

    Example:
        >>> [len(run) for run in as_runs([torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), torch.zeros(3, 6, 9)])]
        [2, 1]
    """
    if not isinstance(images, (Sequence, Iterator)) or isinstance(images, (str, bytes, bytearray)):
        return [as_tensor(images)]
    parts = [as_tensor(image) for image in images]
    if not parts:
        raise ValueError("images is empty")
    return [torch.cat(list(run)) for _, run in groupby(parts, key=lambda part: (part.shape[1:], part.dtype))]


class ReferenceImages:
    """The ground truths of a restored set, of one size or of several.

    Args:
        images: as `qa_hooks.images.as_tensor` takes them, or a list of images of several sizes.

    Raises:
        TypeError, ValueError: no images, or none of 1 or 3 channels.
    """

    def __init__(self, images: Any) -> None:
        try:
            self.images = [image for run in as_runs(images) for image in run]
        except (TypeError, ValueError) as error:
            raise type(error)(f"reference: {error}") from error
        for image in self.images:
            if image.shape[0] not in (1, 3):
                raise ValueError(f"reference: images have 1 or 3 channels, got {tuple(image.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell these images from others."""
        return fingerprint(*self.images)

    def of(self, start: int, restored: Tensor) -> Tensor:
        """The ground truths of `restored` (N, C, H, W), which begins at this position; `ValueError`: another size."""
        truths = self.images[start : start + len(restored)]
        for index, truth in enumerate(truths, start):
            if truth.shape != restored.shape[1:]:
                raise ValueError(
                    f"image {index} is {tuple(restored.shape[1:])} and its ground truth {tuple(truth.shape)}: give "
                    "ground truths in the order of the restored images, and cut to what the network makes of them (a "
                    "multiple of the scale): truth[:, :height, :width]"
                )
        return torch.stack(truths).to(restored.device)
