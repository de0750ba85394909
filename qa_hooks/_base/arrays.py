"""Files of arrays of images, mapped into memory where they are not compressed.

Nothing is unpickled, and no header is believed about its size.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1 << 30  # bytes of one member of a zip, unpacked


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """What is wrong with a file of many, with its name."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # the parsers raise what they like
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error


def read_array(path: Path) -> np.ndarray[Any, Any]:
    """The images `(N, H, W, C)` of an `.npy` or `.npz`; `ValueError` with its name where it has none."""
    with named(path):
        arrays = _arrays(path)
    return _images_among(arrays, path)


def pixels_of_numbers(found: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """`(H, W, C)` of a picture that stands as numbers in an array, or in a column of a data set."""
    whole = found.dtype.kind in "ui" and found.size > 0 and 0 <= found.min() <= found.max() <= 255
    if not whole or not (found.ndim == 2 or (found.ndim == 3 and found.shape[2] in (1, 3))):
        raise ValueError(
            f"it holds {found.dtype} {found.shape}, expected whole numbers from 0 to 255, (H, W) or (H, W, C)"
        )
    return found.astype(np.uint8, copy=False).reshape(*found.shape[:2], -1)


def _arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if path.suffix.lower() == ".npy":
        return {path.name: np.load(path, mmap_mode="r", allow_pickle=False)}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for info in archive.infolist():
            with archive.open(info) as member:
                shape, fortran, kind = _header(member)
            size = int(np.prod(shape, dtype=object)) * kind.itemsize
            if len(shape) < 3 or kind != np.uint8 or size > info.file_size:
                continue
            order: Any = "F" if fortran else "C"
            if info.compress_type == zipfile.ZIP_STORED:
                raw.seek(info.header_offset + 26)
                lengths = int.from_bytes(raw.read(2), "little") + int.from_bytes(raw.read(2), "little")
                start = info.header_offset + 30 + lengths + info.file_size - size
                arrays[info.filename] = np.memmap(path, np.uint8, "r", start, shape, order)
            elif info.file_size <= LARGEST:
                arrays[info.filename] = np.frombuffer(archive.read(info)[-size:], np.uint8).reshape(shape, order=order)
    return arrays


def _header(member: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(member)
    except ValueError:
        return (), False, np.dtype(np.uint8)  # no array
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, kind = read(member)
    return shape, fortran, kind


def _images_among(arrays: dict[str, np.ndarray[Any, Any]], path: Path) -> np.ndarray[Any, Any]:
    fitting = [a for a in arrays.values() if a.dtype == np.uint8 and (a.ndim == 3 or a.shape[3:] in ((1,), (3,)))]
    if len(fitting) != 1:
        has = (
            ", ".join(f"{a.dtype} {a.shape}" for a in arrays.values()) or "none of uint8 with three dimensions or more"
        )
        raise ValueError(
            f"{path} must hold one array of uint8 images (N, H, W, C) with C = 1 or 3, it has {len(fitting)}; its "
            f"arrays: {has}"
        )
    if fitting[0].ndim == 3 and fitting[0].shape[2] in (1, 3, 4):
        raise ValueError(
            f"{path} has the shape {fitting[0].shape}: if that is one image (H, W, C), save it as array[None]; N grey "
            "images are (N, H, W)"
        )
    return fitting[0]
