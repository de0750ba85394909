"""Which data a scorer was fitted on: 16 hexadecimal digits, so that a cache can tell one set of images from another.

Files count by path, size and time of change; tensors by their bytes; datasets and loaders by the sum of the hashes of
their images, which does not depend on a shuffled order. Random augmentation makes every pass another set of images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from qa_hooks.batches import Source, image_batches, image_paths, is_shared
from qa_hooks.hashing import fingerprint, tensor_bytes
from qa_hooks.images import Range
from qa_hooks.isolation import isolated
from qa_hooks.processes import gather_rows, together

BYTES = 16


def data_fingerprint(source: Source, value_range: Range = (0.0, 1.0)) -> str:
    """The fingerprint of images, the same on every process; a dataset or loader is read once for it.

    Args:
        source: what `image_batches` takes, except an iterator, which could not be read again; or a tuple of tensors.
        value_range: what the numbers of floating images mean.

    Raises:
        ValueError: an iterator, or broken images.

    Example:
        >>> images = torch.rand(6, 3, 8, 8)
        >>> data_fingerprint(images) == data_fingerprint(images.clone()) != data_fingerprint(images[:5])
        True
    """
    paths = None if isinstance(source, tuple) else image_paths(source)
    if paths is not None:
        root = Path(source) if isinstance(source, (str, Path)) else None
        names = [p.relative_to(root) if root is not None and root.is_dir() else p.resolve() for p in paths]
        facts = [
            [name.as_posix(), p.stat().st_size, p.stat().st_mtime_ns] for name, p in zip(names, paths, strict=True)
        ]
        return fingerprint(repr(facts))
    tensors = (source,) if isinstance(source, Tensor) else source
    if isinstance(tensors, tuple) and tensors and all(isinstance(tensor, Tensor) for tensor in tensors):
        return fingerprint(repr(tuple(value_range)), *tensors)
    if isinstance(source, Iterator):
        raise ValueError("an iterator can be read once only: with cache= give a loader, dataset, folder or tensor")
    with together(), isolated():
        total = _sum_of_images(source)
    parts = total[:1] if is_shared(source) else gather_rows(total)
    number = sum(int.from_bytes(bytes(part.tolist()), "little") for part in parts) % (1 << 8 * BYTES)
    return fingerprint(repr((tuple(value_range), number)))


def _sum_of_images(source: Source) -> Tensor:
    """`(1, BYTES)`: the sum of the hashes of the images, modulo 2^128."""
    number = 0
    for _, images in image_batches(source):
        for image in images:
            number += int.from_bytes(hashlib.blake2b(tensor_bytes(image), digest_size=BYTES).digest(), "little")
    return torch.tensor([list((number % (1 << 8 * BYTES)).to_bytes(BYTES, "little"))], dtype=torch.uint8)
