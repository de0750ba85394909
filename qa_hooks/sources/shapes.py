"""The size that the images of a set have: of the set, and not of whichever comes first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from qa_hooks.images import image_size
from qa_hooks.sources.batches import Source, count_images, image_batches, image_paths, is_shared
from qa_hooks.sources.fingerprint import fixed_random
from qa_hooks.sources.windows import read_ahead

Size = tuple[int, int]
PROBED = 64  # items of a data set


def common_size(source: Source) -> Size:
    """Height and width that most images have, by the headers of all files, some items of a data set, or a first batch.

    Raises:
        ValueError: no image can be read.

    Example:
        >>> import torch
        >>> common_size(torch.zeros(2, 3, 8, 10))
        (8, 10)
    """
    paths = image_paths(source)
    if paths is not None:
        sizes: Iterable[Size] = (size for size in read_ahead(_size, paths) if size is not None)
    elif isinstance(source, Tensor):
        return int(source.shape[-2]), int(source.shape[-1])
    else:
        with fixed_random(source):
            if is_shared(source):
                count = count_images(source) or 0
                indices = range(0, count, max(1, count // PROBED))
                batches = [images for _, images in image_batches(source, batch_size=1, indices=indices)]
            else:
                batches = [next(image_batches(source))[1]]
        sizes = [(int(images.shape[-2]), int(images.shape[-1])) for images in batches for _ in range(len(images))]
    counted = Counter(sizes)
    if not counted:
        raise ValueError("none of the images can be read")
    # Of equally common sizes the smallest, whatever comes first.
    return min(counted, key=lambda size: (-counted[size], size))


def _size(path: Path) -> Size | None:
    try:
        width, height = image_size(path)
    except Exception:  # whoever reads the image says what is wrong with it
        return None
    return height, width
