"""Which data a scorer was fitted on: 16 hexadecimal digits, so that a cache can tell one set of images from another.

Files count by their names, relative to the folder they share, and their content, so a copy on another disk is the same;
tensors by their bytes; datasets and loaders by the sum of the hashes of their images, which does not depend on a
shuffled order. Random augmentation makes every pass another set of images, so these are read in a `fixed_random` pass.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from qa_hooks._base.containers import member_bytes
from qa_hooks._base.hashing import fingerprint, tensor_bytes
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows, together
from qa_hooks._base.random import seed_everything
from qa_hooks.images import Range
from qa_hooks.sources.batches import Source, image_batches, image_paths, is_shared
from qa_hooks.sources.loaders import own_generators, seed_generators, unmoved
from qa_hooks.sources.windows import read_ahead

BYTES = 16
PART = 1 << 20  # bytes of a file in memory at a time
SEED = 0  # of random augmentation


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
        root = Path(source) if isinstance(source, (str, Path)) and Path(source).is_dir() else _shared_folder(paths)
        names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
        return fingerprint(repr(list(zip(names, read_ahead(_content, paths), strict=True))))
    tensors = (source,) if isinstance(source, Tensor) else source
    if isinstance(tensors, tuple) and tensors and all(isinstance(tensor, Tensor) for tensor in tensors):
        return fingerprint(repr(tuple(value_range)), *tensors)
    if isinstance(source, Iterator):
        raise ValueError("an iterator can be read once only: with cache= give a loader, dataset, folder or tensor")
    with together(), fixed_random(source):
        total = _sum_of_images(source)
    parts = total[:1] if is_shared(source) else gather_rows(total)
    number = sum(int.from_bytes(bytes(part.tolist()), "little") for part in parts) % (1 << 8 * BYTES)
    return fingerprint(repr((tuple(value_range), number)))


@contextlib.contextmanager
def fixed_random(source: Source) -> Iterator[None]:
    """Random augmentation inside is the same at each pass: the room of `isolated`, with every generator seeded.

    Python's, NumPy's and torch's CPU generators and those that a loader or a data set keeps are put back at the end.

    Example:
        >>> dataset = torch.utils.data.TensorDataset(torch.zeros(2, 1, 8, 8))
        >>> with fixed_random(dataset):
        ...     first = torch.rand(())
        >>> with fixed_random(dataset):
        ...     bool(first == torch.rand(()))
        True
    """
    with isolated():
        seed_everything(SEED)
        with unmoved(source):
            seed_generators(own_generators(source), SEED)
            yield


def _shared_folder(paths: Sequence[Path]) -> str:
    return os.path.commonpath([path.absolute().parent for path in paths])


def _content(path: Path) -> str:
    """The hash of a file's bytes; one that cannot be read counts as such, and whoever reads the image says why."""
    digest = hashlib.blake2b(digest_size=BYTES)
    try:
        if path.is_file():
            with path.open("rb") as file:
                while part := file.read(PART):
                    digest.update(part)
        else:
            digest.update(member_bytes(path))
    except (OSError, ValueError) as error:
        return type(error).__name__
    return digest.hexdigest()


def _sum_of_images(source: Source) -> Tensor:
    """`(1, BYTES)`: the sum of the hashes of the images, modulo 2^128."""
    number = 0
    for _, images in image_batches(source):
        for image in images:
            number += int.from_bytes(hashlib.blake2b(tensor_bytes(image), digest_size=BYTES).digest(), "little")
    digits = list((number % (1 << 8 * BYTES)).to_bytes(BYTES, "little"))
    return torch.tensor([digits], dtype=torch.uint8, device="cpu")
