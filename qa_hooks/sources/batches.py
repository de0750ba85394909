"""Images from wherever a user has them, in batches: a tensor, a folder, files, a dataset, a loader.

A *shared* source (tensor, folder, files, dataset) is the same on every process, so that work on it can be divided by
position. A loader is not: each process brings its own part of the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, IterableDataset

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.containers import KEYS, is_container
from qa_hooks._base.text import plural
from qa_hooks.images import as_tensor, check_images, list_images, load_image
from qa_hooks.sources.loaders import EndWatch, check_end, unmoved, until_its_end
from qa_hooks.sources.windows import fitting, groups, read_ahead, windows

Source = Any


def image_paths(source: Source) -> list[Path] | None:
    """The files of a source of files: a folder or a file of many (sorted), one file, a sequence of paths; else None."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return [path] if path.is_file() and not is_container(path) else list_images(path)
    if isinstance(source, Sequence) and len(source) and all(isinstance(item, (str, Path)) for item in source):
        return [Path(item) for item in source]
    return None


def is_shared(source: Source) -> bool:
    """Whether every process sees the whole source, so that positions mean the same on all processes.

    Example:
        >>> is_shared(torch.zeros(4, 3, 8, 8)), is_shared(iter([torch.zeros(4, 3, 8, 8)]))
        (True, False)
    """
    return isinstance(source, (Tensor, str, Path)) or image_paths(source) is not None or _is_dataset(source)


def has_positions(source: Source) -> bool:
    """Whether positions mean the same everywhere: of a shared source, or a loader with torch's `DistributedSampler`."""
    return is_shared(source) or _distributed_sampler(source) is not None


def first_of_each(positions: Tensor) -> Tensor:
    """Rows in the order of their positions, the first of each: without what pads the parts of several processes.

    Example:
        >>> first_of_each(torch.tensor([0, 2, 4, 1, 3, 0]))
        tensor([0, 3, 1, 4, 2])
    """
    order = positions.argsort(stable=True)
    ranked = positions[order]
    fresh = torch.ones_like(ranked, dtype=torch.bool)
    fresh[1:] = ranked[1:] != ranked[:-1]
    return order[fresh]


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
    """Walk through a source once, in batches of one size. A loader or data set is not moved (`unmoved`).

    Args:
        source: a tensor `(N, C, H, W)`, a folder, a sequence of paths, a dataset (its items an image, or a tuple or
            mapping that holds one), or an iterable of batches such as a `DataLoader`.
        batch_size: images at a time, fewer of large ones (`fitting`); an iterable's batches stay as they are.
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
        positions = list(range(len(source)) if indices is None else indices)
        size = fitting(batch_size, *source.shape[-2:])
        for start in range(0, len(positions), size):
            yield positions[start : start + size], source[positions[start : start + size]]
    elif paths is not None:
        chosen = list(range(len(paths)) if indices is None else indices)
        yield from _by_size(_from_files(paths, chosen, failures), batch_size)
    elif _is_dataset(source):
        positions = list(range(len(source)) if indices is None else indices)
        with unmoved(source):
            yield from _by_size(((p, _single(p, _image_of(source[p]))) for p in positions), batch_size)
    else:
        check_source(source)
        if indices is not None:
            raise ValueError(
                f"a {type(source).__name__} has no positions to choose from; give a tensor, files or a dataset"
            )
        with unmoved(source) as walk:
            streamed = isinstance(walk, IterableDataset)  # its items are single images
            yield from _by_size(_from_items(walk), batch_size) if streamed else _from_batches(walk)


def first_images(source: Source, count: int) -> list[Tensor]:
    """The first few images of a source, `(n, C, H, W)` of each size; a loader or data set is not moved.

    Example:
        >>> [len(images) for images in first_images(torch.zeros(5, 1, 8, 8), 2)]
        [2]
    """
    if is_shared(source):
        indices = range(min(count, count_images(source) or count))
        return [images for _, images in image_batches(source, indices=indices)]
    return [images[:count] for _, images in itertools.islice(image_batches(source), 1)]


def check_source(source: Source) -> None:
    """Refuse what holds no images, or has no end.

    Raises:
        TypeError: nothing that can be walked through, such as a function that makes a generator.
        ValueError: no end (`check_end`).
    """
    if isinstance(source, Mapping):
        raise TypeError(
            f"images must come as one source, got a {type(source).__name__} of {list(source)[:9]}: give a part"
        )
    if not (isinstance(source, (str, Path, Tensor, Iterable)) or _is_dataset(source)):
        function = f"the function {source.__name__}; call it" if hasattr(source, "__name__") else type(source).__name__
        raise TypeError(
            "images must come as a tensor (N, C, H, W), a folder, a list of files, a dataset or a loader, got "
            f"{function}"
        )
    check_end(source)


def _is_dataset(source: Source) -> bool:
    batched = isinstance(source, (Tensor, str, Mapping, IterableDataset)) or hasattr(source, "batch_sampler")
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    return indexed and not batched and not (isinstance(source, Sequence) and len(source) and _is_batch(source[0]))


def _is_batch(value: Any) -> bool:
    """Whether it is a tensor of several images, or a tuple or list that begins with one."""
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return isinstance(first, Tensor) and first.ndim == 4


def _distributed_sampler(source: Source) -> DistributedSampler[Any] | None:
    sampler = getattr(getattr(source, "batch_sampler", None), "sampler", None)
    return sampler if isinstance(sampler, DistributedSampler) else None


def _image_of(item: Any) -> Any:
    """The image of a dataset's item, or the images of a loader's batch: a tuple's first, a mapping's image, itself."""
    if isinstance(item, Mapping):
        for key in KEYS:
            if key in item:
                return item[key]
        raise ValueError(f"no image under {KEYS} in an item with the keys {sorted(item)}")
    labelled = isinstance(item, list) and len(item) > 1 and (_is_batch(item) or not _is_image(item[1]))
    return item[0] if isinstance(item, tuple) or labelled else item


def _is_image(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.") or (hasattr(value, "shape") and len(value.shape) >= 2)


def _single(position: int, image: Any) -> Tensor:
    tensor = as_tensor(image)
    if tensor.shape[0] != 1:
        raise ValueError(f"item {position} of the dataset holds {tensor.shape[0]} images, expected one (C, H, W)")
    return tensor


def _by_size(images: Iterable[tuple[int, Tensor]], batch_size: int) -> Iterator[tuple[list[int], Tensor]]:
    """Single images put together by size, as many at a time as make a batch."""
    for window in windows(images, lambda item: (1, item[1].shape[-2] * item[1].shape[-1]), batch_size):
        for group in groups(window, lambda item: (*item[1].shape, item[1].dtype == torch.uint8)):
            yield [position for position, _ in group], torch.cat([image for _, image in group])


def _from_files(paths: list[Path], chosen: list[int], failures: dict[int, str] | None) -> Iterator[tuple[int, Tensor]]:
    def read(position: int) -> tuple[int, Tensor | Exception]:
        try:
            return position, load_image(paths[position])[None]
        except (ValueError, OSError) as error:
            return position, error

    for position, image in read_ahead(read, chosen):
        if isinstance(image, Tensor):
            yield position, image
        elif failures is None:
            raise ValueError(str(image)) from image
        else:
            failures[position] = str(image)


def _from_items(stream: Iterable[Any]) -> Iterator[tuple[int, Tensor]]:
    look = EndWatch(stream)
    for position, item in enumerate(stream):
        image = look(_single(position, _image_of(item)))
        yield position, image
        if look.over:
            return


def _from_batches(batches: Iterable[Any]) -> Iterator[tuple[list[int], Tensor]]:
    sampler = _distributed_sampler(batches)
    own = iter(sampler) if sampler is not None else itertools.count()
    look = EndWatch(batches)
    for batch in until_its_end(batches):
        images = _image_of(batch)
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(
                f"a batch must have the shape (N, C, H, W), got {tuple(images.shape)}"
                + ("; add the channels, images[:, None], or for one image images[None]" if images.ndim == 3 else "")
            )
        images = look(as_tensor(images))
        yield list(itertools.islice(own, images.shape[0])), images
        if look.over:
            return


def warn_left_out(failures: Mapping[int, str], what: str = "image") -> None:
    """One warning of what `image_batches(failures=...)` gathered, with the first reason; none where it is empty."""
    if failures:
        first = next(iter(failures.values()))
        verb = "was" if len(failures) == 1 else "were"
        warn(f"{plural(len(failures), what)} could not be read and {verb} left out; the first: {first}")
