"""The images that a snapshot scorer is fitted on: read, brought to one shape and held as bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qa_hooks._base.checks import check_channels, check_size, warn
from qa_hooks.images import Range, check_images, to_grey, to_uint8, to_unit
from qa_hooks.scorers.training_images import training_batches
from qa_hooks.sources.batches import Source, warn_left_out
from qa_hooks.sources.grids import cut, warn_of_grids
from qa_hooks.sources.snapshots import list_snapshots

READ_BATCH = 64
MIN_SIDE = 8

Shape = tuple[int, int, int]
Snapshots = str | Path | tuple[Tensor | Sequence[str | Path], Tensor | Sequence[int]]


class Read(NamedTuple):
    """What became of a source.

    Attributes:
        images: uint8 `(n, C, H, W)`.
        positions: of each in the source.
        failures: messages by position, of what could not be read.
        resized: whether any was.
    """

    images: Tensor
    positions: Sequence[int] = ()
    failures: Mapping[int, str] = {}
    resized: bool = False


def sides_of(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """A side or (height, width) -> (height, width); `ValueError` otherwise."""
    if size is None:
        return None
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2:
        raise ValueError(f"size must be a side or (height, width), got {size!r}")
    return check_size(sides)


def split_snapshots(snapshots: Snapshots, grid: str | None = None) -> tuple[Source, Tensor]:
    """A folder or a pair -> a source of images, and the iteration of each position, int64 `(n,)`.

    Args:
        snapshots: a folder; or a pair of images, as a tensor `(n, C, H, W)` or as files, and iterations `(n,)`.
        grid: of a folder: cut its pictures, as `qa_hooks.sources.grids.find_images` does; None warns of grids.

    Raises:
        TypeError, ValueError: neither, no images, or iterations that do not go with them.
    """
    if isinstance(snapshots, (str, Path)):
        paths, steps = list_snapshots(snapshots)
        if grid is None:
            warn_of_grids(paths)
            return paths, torch.tensor(steps, device="cpu", dtype=torch.int64)
        cells = [(cell, step) for path, step in zip(paths, steps, strict=True) for cell in cut([path], grid)]
        return [cell for cell, _ in cells], torch.tensor([step for _, step in cells], device="cpu", dtype=torch.int64)
    if not (isinstance(snapshots, (tuple, list)) and len(snapshots) == 2 and _are_images(snapshots[0])):
        raise TypeError(
            "snapshots must be a folder, or a pair (images (n, C, H, W) or files, iterations (n,)), got "
            f"{type(snapshots).__name__}"
        )
    images, iterations = snapshots
    if isinstance(images, Tensor):
        images = check_images("snapshots", images, floating=False)
    if not isinstance(iterations, Tensor):
        iterations = torch.from_numpy(np.asarray(iterations))
    if iterations.shape != (len(images),):
        raise ValueError(
            f"every snapshot needs its iteration: {len(images)} images, iterations of shape {tuple(iterations.shape)}"
        )
    if iterations.is_complex() or not bool((torch.isfinite(iterations) & (iterations >= 0)).all()):
        raise ValueError("iterations must be numbers that are finite and not negative")
    return images, iterations.cpu()


def _are_images(value: Any) -> bool:
    """Whether it is a tensor, or a list of files."""
    files = isinstance(value, list) and bool(value) and all(isinstance(path, (str, Path)) for path in value)
    return files or isinstance(value, Tensor)


def input_shape(
    source: Source, size: tuple[int, int] | None, channels: int | None, value_range: Range, *, limit: int
) -> Shape:
    """(C, H, W) of a network's input: as asked for, otherwise the size that most of the images have.

    Colour where any image has it. Where sizes differ, it is said which one all are brought to.

    Raises:
        ValueError: no image can be read, or they are too small.
    """
    sizes, colours = Counter[tuple[int, int]](), set[int]()
    reading: dict[str, Any] = {"batch_size": READ_BATCH, "failures": {}, "generated": True, "progress": False}
    for _, images in training_batches("snapshots", source, value_range, limit=limit, **reading):
        sizes[images.shape[2], images.shape[3]] += len(images)
        colours.add(images.shape[1])
    if not sizes:
        raise ValueError("none of the snapshots can be read")
    height, width = size or max(sizes, key=lambda sides: (sizes[sides], -sides[0] * sides[1], sides))
    if len(sizes) > 1 and size is None:
        warn(
            f"the snapshots have {len(sizes)} sizes; all are brought to {height} x {width} (height x width), which "
            "most of them have: size= says another"
        )
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"snapshots must have at least {MIN_SIDE} pixels a side, got {height} x {width}")
    return channels or (1 if colours == {1} else 3), height, width


def to_shape(images: Tensor, shape: Shape) -> Tensor:
    """Floating `(N, 1 or 3, H, W)` -> `(N, *shape)`: grey or RGB, resized with antialiasing; differentiable.

    Example:
        >>> to_shape(torch.rand(2, 3, 32, 32), (1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """
    check_channels("a snapshot's network", images)
    images = to_grey(images) if shape[0] == 1 else images.expand(-1, 3, -1, -1)
    if images.shape[2:] == shape[1:]:
        return images
    return F.interpolate(images, shape[1:], mode="bilinear", align_corners=False, antialias=True)


def read_images(
    name: str, source: Source, shape: Shape, value_range: Range, *, limit: int, progress: bool = True
) -> Read:
    """Read at most `limit` images, taken evenly where that can be; files that cannot be read are left out.

    Raises:
        ValueError: values that are not finite, or real ones outside the range.
    """
    parts, positions, failures = [torch.zeros(0, *shape, dtype=torch.uint8, device="cpu")], [], dict[int, str]()
    resized = False
    reading: dict[str, Any] = {"limit": limit, "batch_size": READ_BATCH, "failures": failures, "progress": progress}
    for at, images in training_batches(name, source, value_range, generated=name != "real", **reading):
        resized = resized or images.shape[2:] != shape[1:]
        unit = to_unit(images if images.dtype == torch.uint8 else images.float(), value_range)
        parts.append(to_uint8(to_shape(unit, shape)).cpu())
        positions += at
    return Read(torch.cat(parts)[:limit], positions[:limit], failures, resized)


def warn_of_reading(real: Read, generated: Read) -> None:
    """Say what was left out, and when resampling alone could tell the two apart."""
    for name, read in (("snapshot", generated), ("real image", real)):
        warn_left_out(read.failures, name)
    if real.resized != generated.resized:
        ours, theirs = ("real images", "snapshots") if real.resized else ("snapshots", "real images")
        warn(
            f"the {ours} had to be resized and the {theirs} had not: the scorer may learn to see that; give it real "
            "images that were prepared like the training data of the run"
        )
