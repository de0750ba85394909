"""Images from wherever a user has them, in batches: a tensor, a folder, files, a dataset, a loader.

A *shared* source (tensor, folder, files, dataset) is the same on every process, so that work on it can be divided by
position. A loader is not: each process brings its own part of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks.checks import check_count
from qa_hooks.images import as_tensor, check_images, list_images, load_image

Source = Any
THREADS = 4
KEYS = ("image", "images", "pixel_values", "jpg", "png")


def image_paths(source: Source) -> list[Path] | None:
    """The files of a source that consists of files: a folder (sorted), one file, or a sequence of paths; else None."""
    if isinstance(source, (str, Path)):
        return [Path(source)] if Path(source).is_file() else list_images(source)
    if isinstance(source, Sequence) and len(source) and all(isinstance(item, (str, Path)) for item in source):
        return [Path(item) for item in source]
    return None


def is_shared(source: Source) -> bool:
    """Whether every process sees the whole of it, so that positions mean the same everywhere.

    Example:
        >>> is_shared(torch.zeros(4, 3, 8, 8)), is_shared(iter([torch.zeros(4, 3, 8, 8)]))
        (True, False)
    """
    return isinstance(source, (Tensor, str, Path)) or image_paths(source) is not None or _is_dataset(source)


def count_images(source: Source) -> int | None:
    """How many images a source holds; None where only its end would tell."""
    paths = image_paths(source)
    if paths is not None:
        return len(paths)
    if isinstance(source, Tensor) or _is_dataset(source):
        return len(source)
    dataset = getattr(source, "dataset", None)
    sampler = getattr(source, "sampler", None)
    try:
        return len(sampler) if sampler is not None else len(dataset) if dataset is not None else None
    except TypeError:
        return None


def image_batches(
    source: Source,
    *,
    batch_size: int = 64,
    indices: Sequence[int] | None = None,
    failures: dict[int, str] | None = None,
) -> Iterator[tuple[list[int], Tensor]]:
    """Walk through a source once, in batches of one size.

    Args:
        source: a tensor `(N, C, H, W)`, a folder, a sequence of paths, a dataset (its items an image, or a tuple or
            mapping that holds one), or an iterable of batches such as a `DataLoader`.
        batch_size: images at a time; an iterable's batches stay as they are.
        indices: only these positions, for sources that have positions.
        failures: collects `{position: message}` of files that cannot be read; without it the first one raises.

    Yields:
        Positions in the source and images `(n, C, H, W)`: files as uint8, tensors as they are. Where sizes differ the
        images of one size come together, so positions do not always ascend.

    Raises:
        TypeError, ValueError: no such source, or nothing in it.

    Example:
        >>> [positions for positions, images in image_batches(torch.zeros(3, 1, 8, 8), batch_size=2)]
        [[0, 1], [2]]
    """
    check_count("batch_size", batch_size)
    paths = image_paths(source)
    if isinstance(source, Tensor):
        check_images("images", source, floating=False)
        for chunk in _chunks(range(len(source)) if indices is None else indices, batch_size):
            yield chunk, source[chunk]
    elif paths is not None:
        chosen = list(range(len(paths)) if indices is None else indices)
        yield from _from_files(paths, chosen, batch_size, failures)
    elif _is_dataset(source):
        for chunk in _chunks(range(len(source)) if indices is None else indices, batch_size):
            yield from _by_size(chunk, [_image_of(source[position]) for position in chunk])
    elif isinstance(source, Iterable):
        if indices is not None:
            raise ValueError(
                f"a {type(source).__name__} has no positions to choose from; give a tensor, files or a dataset"
            )
        yield from _from_batches(source)
    else:
        raise TypeError(
            "images must come as a tensor (N, C, H, W), a folder, a list of files, a dataset or a loader, got "
            f"{type(source).__name__}"
        )


def _is_dataset(source: Source) -> bool:
    batched = isinstance(source, (Tensor, str, Mapping)) or hasattr(source, "batch_sampler")
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return indexed and not batched and not (isinstance(source, Sequence) and len(source) and _is_batch(source[0]))


def _is_batch(value: Any) -> bool:
    """Whether it is a tensor of several images, or a tuple or list that begins with one."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, Tensor) and first.ndim == 4


def _chunks(positions: Iterable[int], size: int) -> Iterator[list[int]]:
    chosen = list(positions)
    for start in range(0, len(chosen), size):
        yield chosen[start : start + size]


def _image_of(item: Any) -> Any:
    """The image of a dataset's item, or the images of a loader's batch: a tuple's first, a mapping's image, itself."""
    if isinstance(item, Mapping):
        for key in KEYS:
            if key in item:
                return item[key]
        raise ValueError(f"no image under {KEYS} in an item with the keys {sorted(item)}")
    return item[0] if isinstance(item, tuple) or (isinstance(item, list) and _is_batch(item)) else item


def _by_size(positions: list[int], images: list[Any]) -> Iterator[tuple[list[int], Tensor]]:
    groups: dict[tuple[int, ...], tuple[list[int], list[Tensor]]] = {}
    for position, image in zip(positions, images, strict=True):
        tensor = as_tensor(image)
        if tensor.shape[0] != 1:
            raise ValueError(f"item {position} of the dataset holds {tensor.shape[0]} images, expected one (C, H, W)")
        group = groups.setdefault((*tensor.shape, tensor.dtype == torch.uint8), ([], []))
        group[0].append(position)
        group[1].append(tensor)
    for chosen, tensors in groups.values():
        yield chosen, torch.cat(tensors)


def _from_files(
    paths: list[Path], chosen: list[int], batch_size: int, failures: dict[int, str] | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Files are decoded by a few threads, a batch ahead of what is being used."""

    def read(position: int) -> Tensor | Exception:
        try:
            return load_image(paths[position])
        except (ValueError, OSError) as error:
            return error

    chunks = list(_chunks(chosen, batch_size))
    with ThreadPoolExecutor(THREADS) as pool:
        following = [pool.submit(read, position) for position in chunks[0]] if chunks else []
        for number, chunk in enumerate(chunks):
            current = following
            following = (
                [pool.submit(read, position) for position in chunks[number + 1]] if number + 1 < len(chunks) else []
            )
            kept, images = [], []
            for position, future in zip(chunk, current, strict=True):
                image = future.result()
                if isinstance(image, Tensor):
                    kept.append(position)
                    images.append(image)
                elif failures is None:
                    for waiting in following:
                        waiting.cancel()
                    raise ValueError(str(image)) from image
                else:
                    failures[position] = str(image)
            yield from _by_size(kept, images)


def _from_batches(batches: Iterable[Any]) -> Iterator[tuple[list[int], Tensor]]:
    position = 0
    for batch in batches:
        images = as_tensor(_image_of(batch))
        yield list(range(position, position + images.shape[0])), images
        position += images.shape[0]
