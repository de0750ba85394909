"""Files that hold many pictures, whose members have paths of their own below the file.

    set.zip/00000/img00000000.png     StyleGAN's zip, or any other of image files
    samples.npz/000012.png            an array of uint8 images (N, H, W, C), as samplers for FID write it; .npy too
    saved/000012.png                  a data set of the `datasets` library, in the folder it was saved to
    1000.png#8x4+2/05.png             a cell of a grid of 8 x 4 images with 2 pixels between (`cut_grid`)

Nothing is unpickled, nothing is unpacked onto the disk, and no header is believed about its size.
"""

from __future__ import annotations

import functools
import io
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np

from qa_hooks._base.arrays import LARGEST, named, pixels_of_numbers, read_array
from qa_hooks._base.checks import warn
from qa_hooks._base.decoding import IMAGE_SUFFIXES, OTHER_SUFFIXES, TURN, Pixels, decode, open_picture, pixels_of
from qa_hooks._base.files import walk_files
from qa_hooks._base.text import printable

ARRAYS = (".npz", ".npy")
_CELL = re.compile(r"(.+)#(\d+x\d+(?:\+\d+)?)")
KEYS = ("image", "images", "img", "pixel_values", "jpg", "png", "webp")


class Grid(NamedTuple):
    """A picture of many pictures: so many in a row, so many rows, and the pixels between them (and around them all)."""

    columns: int
    rows: int
    padding: int = 0

    def __str__(self) -> str:
        return f"{self.columns}x{self.rows}" + (f"+{self.padding}" if self.padding else "")

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Top, left, height and width of the cells of a picture, row by row; `ValueError` where they do not fit."""
        counts, sides = (self.rows, self.columns), (height, width)
        for border in (self.padding, 0):  # with a frame around them all, as torchvision makes it, or without
            lengths = [side - 2 * border + self.padding for side in sides]
            steps = [length // count for length, count in zip(lengths, counts, strict=True)]
            fits = all(length % count == 0 for length, count in zip(lengths, counts, strict=True))
            if fits and min(steps) > self.padding:
                high, wide = steps
                return [
                    (border + row * high, border + column * wide, high - self.padding, wide - self.padding)
                    for row in range(self.rows)
                    for column in range(self.columns)
                ]
        raise ValueError(f"{width} x {height} pixels cannot be cut into a grid of {self}")


def parse_grid(text: str) -> Grid:
    """ "8x4" or "8x4+2" -> eight images in a row, four rows, two pixels between.

    Raises:
        ValueError: something else.

    Example:
        >>> parse_grid("8x4+2")
        Grid(columns=8, rows=4, padding=2)
    """
    found = re.fullmatch(r"(\d+)x(\d+)(?:\+(\d+))?", text.strip().lower())
    if found is None or int(found[1]) * int(found[2]) < 2:
        raise ValueError(f"a grid is COLUMNSxROWS or COLUMNSxROWS+PADDING, for example 8x8+2, got {text!r}")
    return Grid(int(found[1]), int(found[2]), int(found[3] or 0))


def is_container(path: Path) -> bool:
    """Whether a path is a file that holds many pictures, or a saved data set."""
    if path.is_dir():
        return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()
    return path.suffix.lower() in (".zip", *ARRAYS) and path.is_file()


def list_pictures(folder: Path, files: Sequence[Path] | None = None) -> list[Path]:
    """The `files` below a folder that are called pictures, None: of all; or the members of a file of many; sorted."""
    if is_container(folder):
        return list_members(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    files = list(walk_files(folder)) if files is None else files
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    paths = sorted(path for path in found if path.is_file())
    lost = [path for path in found if path.is_symlink() and not path.exists()] if len(paths) < len(found) else []
    if lost:
        warn(f"{len(lost)} links below {folder} lead nowhere, the first is {_shown(lost[0])}")
    others = _of_other_formats(files)
    if not paths:
        splits = sorted(path for path in folder.iterdir() if path.is_dir() and is_container(path))
        instead = f"; it holds saved data sets: give one of them, such as {splits[0]}" if splits else others
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        if any(path.name.lower().endswith((".parquet", ".tar", ".tgz", ".tar.gz")) for path in files):
            instead = "; Parquet files and tars are read by --engine ray (qa_hooks.integrations.ray)"
        raise ValueError(f"{folder} holds no image files ({kinds}){instead}")
    if others:
        warn(f"of the pictures below {folder}{others}")
    return paths


def _shown(path: Path) -> str:
    return printable(path.name, one_line=True)


def _of_other_formats(files: Iterable[Path]) -> str:
    """Words about pictures that are left out, none where there are none."""
    others = sorted(path for path in files if path.suffix.lower() in OTHER_SUFFIXES)
    told = f", {len(others)} are left out, since their formats are not read, the first is "
    return f"{told}{_shown(others[0])}: save them as PNG or JPEG" if others else ""


def list_members(path: Path) -> list[Path]:
    """The members' paths, sorted; `ValueError` when there are none."""
    if path.suffix.lower() == ".zip" and path.is_file():
        names = {path / name for name in _zip(path, *_version(path)).namelist() if _is_plain(name)}
        members = [name for name in names if name.suffix.lower() in IMAGE_SUFFIXES]
        others = _of_other_formats(names)
    else:
        members, others = [path / f"{position:06d}.png" for position in range(len(_members(path)))], ""
    if not members:
        raise ValueError(f"{path} holds no images{others}")
    if others:
        warn(f"of the pictures in {path}{others}")
    return sorted(members)


def _is_plain(name: str) -> bool:
    """Neither hidden nor leading out of the archive."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    outside = Path(name).is_absolute() or PureWindowsPath(name).anchor
    return not outside and not any(part.startswith((".", "/")) or part == "__MACOSX" for part in parts)


def cut_grid(path: Path, grid: Grid) -> list[Path]:
    """The paths of a picture's cells; the empty ones at the end of a last row that is not full are left out."""
    pixels = _whole(path, *_version(path))
    boxes = grid.boxes(*pixels.shape[:2])
    while len(boxes) > 1 and (np.ptp(_cut(pixels, boxes[-1]), axis=(0, 1)) == 0).all():
        boxes.pop()
    digits = len(str(len(boxes) - 1))
    return [path.with_name(f"{path.name}#{grid}") / f"{n:0{digits}d}.png" for n in range(len(boxes))]


def file_behind(path: Path) -> Path:
    """The file, or the folder of a saved data set, that a path leads into; the path itself where it is a file."""
    if path.is_file():
        return path
    if cell := _CELL.fullmatch(path.parent.name):
        return file_behind(path.parent.with_name(cell[1]))
    for parent in path.parents:
        if is_container(parent):
            return parent
        if parent.exists():
            break
    raise FileNotFoundError(2, "No such file or directory", str(path))


def file_state(path: Path) -> list[int]:
    """Size and times of the file behind a path: whoever finds the same again finds the same content."""
    status = file_behind(path).stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read_pixels(path: Path) -> Pixels:
    """The pixels `(H, W, C)` of a picture file or of a member; `FileNotFoundError` where the path leads nowhere."""
    if path.is_file():
        return decode(path)
    if cell := _CELL.fullmatch(path.parent.name):
        whole = path.parent.with_name(cell[1])
        pixels = _whole(whole, *_version(whole))
        return _cut(pixels, parse_grid(cell[2]).boxes(*pixels.shape[:2])[int(path.stem)])
    file = file_behind(path)
    if file.suffix.lower() == ".zip":
        return decode(io.BytesIO(_zip_bytes(path, file)))
    found = _members(file)[int(path.stem)]
    if isinstance(found, dict):  # a row of a data set, and in it {"bytes": ..., "path": ...}
        (found,) = found.values()
    if isinstance(found, dict):
        return pixels_in_memory(found)
    if isinstance(found, (list, np.ndarray)):
        return pixels_of_numbers(np.asarray(found))
    raise ValueError(f"there is no picture, but {type(found).__name__}")


def pixels_in_memory(picture: Any) -> Pixels:
    """The pixels of a `PIL.Image`, of a file's bytes, or of a mapping that holds them; other files are not opened."""
    if type(picture).__module__.startswith("PIL."):
        return pixels_of(picture)
    held = picture.get("bytes") if isinstance(picture, Mapping) else picture
    if held is None:
        raise ValueError(
            f"it names the picture {dict(picture).get('path')!r} and does not hold it, and names are not followed: "
            "save the data set with save_to_disk, which puts the files in"
        )
    return decode(io.BytesIO(held))


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height, upright; of a picture file nothing but the header is read."""
    if not path.is_file():
        height, width, _ = read_pixels(path).shape
        return width, height
    with open_picture(path) as image:
        stored = getattr(image, "tag_v2", {})  # newer Pillows give the size of a TIFF upright, older ones do not
        width, height = int(stored.get(256, image.width)), int(stored.get(257, image.height))
        turned = image.getexif().get(TURN, 1) >= 5  # the camera was held sideways
    return (height, width) if turned else (width, height)


def member_bytes(path: Path) -> bytes:
    """The bytes of a picture file; for a member of a container, the bytes of its file or of its pixels."""
    if path.is_file():
        return path.read_bytes()
    file = file_behind(path)
    zipped = file.suffix.lower() == ".zip" and not _CELL.fullmatch(path.parent.name)
    return _zip_bytes(path, file) if zipped else read_pixels(path).tobytes()


def member_file(path: Path) -> bytes:
    """A member as a file of its own: as it is in a zip, or else as PNG."""
    file = file_behind(path)
    if file.suffix.lower() == ".zip" and not _CELL.fullmatch(path.parent.name):
        return _zip_bytes(path, file)
    from PIL import Image

    pixels, encoded = read_pixels(path), io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(encoded, "PNG")
    return encoded.getvalue()


def _cut(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    top, left, height, width = box
    return pixels[top : top + height, left : left + width]


def _version(path: Path) -> tuple[int, int, int]:
    """A key of the caches here: it changes with the file, and differs in each process, which has a file position."""
    size, changed, _ = file_state(path)
    return size, changed, os.getpid()


@functools.lru_cache(maxsize=8)
def _whole(path: Path, *_: int) -> Pixels:
    return read_pixels(path)


@functools.lru_cache(maxsize=4)
def _zip(path: Path, *_: int) -> zipfile.ZipFile:
    with named(path):
        return zipfile.ZipFile(path)


@functools.lru_cache(maxsize=4)
def _entries(path: Path, *version: int) -> dict[Path, zipfile.ZipInfo]:
    """The members of an archive by path; an archive may spell a path otherwise: ./a.png, b//a.png."""
    return {Path(info.filename): info for info in _zip(path, *version).infolist()}


def _zip_bytes(path: Path, file: Path) -> bytes:
    archive = _zip(file, *_version(file))
    info = _entries(file, *_version(file)).get(path.relative_to(file))
    if info is None:
        raise FileNotFoundError(2, "No such member", str(path))
    if info.file_size > LARGEST:
        raise ValueError(f"it unpacks to {info.file_size} bytes, more than {LARGEST}")
    return archive.read(info)


def _members(path: Path) -> Any:
    return _saved(path, *_version(path / "state.json")) if path.is_dir() else _array(path, *_version(path))


@functools.lru_cache(maxsize=2)
def _saved(path: Path, *_: int) -> Any:
    """The column of pictures alone, as the files that it holds: other columns may lead to files and addresses."""
    import datasets

    with named(path):
        rows: Any = datasets.load_from_disk(str(path))
        key = next((key for key in KEYS if key in rows.column_names), None)
        if key is None:
            raise ValueError(f"none of its columns {rows.column_names} is called {', '.join(KEYS)}")
        rows = rows.select_columns([key]).with_format(None)
        picture = isinstance(rows.features[key], datasets.Image)
        return rows.cast_column(key, datasets.Image(decode=False)) if picture else rows


@functools.lru_cache(maxsize=2)
def _array(path: Path, *_: int) -> np.ndarray[Any, Any]:
    return read_array(path)
