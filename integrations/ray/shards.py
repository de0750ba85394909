"""A data set cut into shards that can be read apart: of a folder of images, of Parquet files, of tars.

A shard carries a fingerprint of what it is to hold: names, sizes and times of the files. Folders are cut where the
names say so, so that a file which is added or goes changes the shard that it is in and no other.
"""

from __future__ import annotations

import json
import lzma
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qa_hooks._base.arrays import LARGEST
from qa_hooks._base.containers import KEYS, file_state, is_container, list_pictures
from qa_hooks._base.decoding import IMAGE_SUFFIXES
from qa_hooks._base.files import walk_files
from qa_hooks._base.hashing import fingerprint
from qa_hooks.integrations.ray.batches import Item
from qa_hooks.sources.grids import warn_of_grids

PARQUET, TAR = (".parquet",), (".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz")
ROWS = 64  # of a Parquet file that are unpacked at a time


class Shard(NamedTuple):
    """A part of a data set.

    Attributes:
        root: the folder that its names are relative to.
        files: the images; or one Parquet file or tar.
        groups: the groups of rows of the Parquet file, first and behind the last; None for images and tars.
        first: the number of the first row in the Parquet file.
        column: of the images in the Parquet file.
        state: the fingerprint of names and states of the files, when the shard was cut.
    """

    root: str
    files: tuple[str, ...]
    groups: tuple[int, int] | None = None
    first: int = 0
    column: str = ""
    state: str = ""

    def __str__(self) -> str:
        rows = f" from row {self.first}" if self.groups else ""
        more = f" to {self.files[-1]}" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}{rows}"

    def state_now(self) -> str:
        """The fingerprint as the files are now; `OSError` where one is gone."""
        states = [(name, file_state(Path(self.root, name))) for name in self.files]
        return fingerprint(json.dumps([states, self.groups, self.column]))

    def has_changed(self) -> bool:
        """Whether its files are others than when it was cut."""
        try:
            return self.state_now() != self.state
        except OSError:
            return True

    def images(self) -> Iterator[Item]:
        """Name and image of each row; an exception stands for what could not be read."""
        path = Path(self.root, self.files[0])
        if self.groups is not None:
            yield from _rows(path, self)
        elif _is_archive(path):
            yield from _members(path, self.files[0])
        else:
            yield from (Item(name, Path(self.root, name)) for name in self.files)


def find_shards(source: str | Path, *, column: str | None = None, shard_size: int = 4096) -> list[Shard]:
    """The shards of a data set, in the order of their names.

    Args:
        source: a folder of images, of Parquet files (as Hugging Face's data sets are stored) or of tars (as webdataset
            writes them), sub-folders included; one such file; or what else `list_images` takes.
        column: of the images in the Parquet files; None takes the first of `image`, `img`, `jpg`, ... that is there.
        shard_size: about how many images make a shard. A tar is one shard, whatever it holds.

    Raises:
        ValueError: nothing there, several kinds at once, a Parquet file without such a column, names that are no text.
    """
    if "://" in str(source):
        raise ValueError(f"{source} is an address: mount it, or download it to where all machines see it")
    root = Path(source).resolve()
    if not root.exists():
        raise ValueError(f"{source} does not exist")
    if root.is_file() and _is_archive(root):
        root, archives, found = root.parent, [root], None
    elif root.is_dir() and not is_container(root):
        found = list(walk_files(root))
        archives = sorted(path for path in found if _is_archive(path))
        kinds = {"Parquet files": [p for p in archives if _ends(p, PARQUET)]}
        kinds["tars"] = [p for p in archives if _ends(p, TAR)]
        kinds["images"] = [p for p in found if p.suffix.lower() in IMAGE_SUFFIXES]
        several = [f"{len(paths)} {kind}" for kind, paths in kinds.items() if paths]
        if len(several) > 1:
            raise ValueError(f"{source} holds {' and '.join(several)}: name a folder that holds one kind")
    else:
        archives, found = [], None
    if archives:
        shards = [shard for path in archives for shard in _shards_of(path, root, column, shard_size)]
    else:
        if column is not None:
            raise ValueError(f"column={column!r} is for Parquet files, {source} holds none")
        if root.is_file() and not is_container(root):
            kinds_read = ", ".join((*PARQUET, *TAR, ".zip", ".npz", ".npy"))
            raise ValueError(f"{source} is a file, and none of {kinds_read}: give a folder")
        paths = list_pictures(root, found)
        warn_of_grids(paths)
        names = [path.relative_to(root).as_posix() for path in paths]
        shards = [Shard(str(root), tuple(part)) for part in cut(names, shard_size)]
    for shard in shards:
        for name in shard.files:
            if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
                raise ValueError(f"{name!a} is no text in UTF-8: rename it, or score without --engine ray")
    return [shard._replace(state=shard.state_now()) for shard in shards]


def cut(names: Sequence[str], size: int) -> Iterator[list[str]]:
    """Neighbours together, about `size` of them; a name that comes in or goes moves the cuts beside it and no others.

    Example:
        >>> names = [f"{n}.png" for n in range(1000)]
        >>> before, after = ([tuple(part) for part in cut(some, 50)] for some in (names, names[:500] + names[501:]))
        >>> len(before), len(set(after) - set(before))
        (22, 1)
    """
    part: list[str] = []
    for name in names:
        part.append(name)
        ends = int(fingerprint(name), 16) % max(1, size // 2) == 0
        if (ends and len(part) >= size // 2) or len(part) >= 2 * size:
            yield part
            part = []
    if part:
        yield part


def _ends(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _is_archive(path: Path) -> bool:
    return _ends(path, PARQUET + TAR)


def _shards_of(path: Path, root: Path, column: str | None, shard_size: int) -> Iterator[Shard]:
    name = path.relative_to(root).as_posix()
    if not _ends(path, PARQUET):
        yield Shard(str(root), (name,))
        return
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            columns = list(file.schema_arrow.names)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except Exception:  # whoever reads it says what is wrong with it, as the problem of its one row
        columns, counts = [column or KEYS[0]], [0]
    wanted = next((key for key in ([column] if column else KEYS) if key in columns), None)
    if wanted is None:
        raise ValueError(
            f"{path} has no column {column or ', '.join(KEYS)}; its columns are {', '.join(columns)}: name the one of "
            "the images with --column (column=)"
        )
    begin = first = rows = 0
    for group, count in enumerate(counts, 1):
        rows += count
        if rows >= shard_size or group == len(counts):
            yield Shard(str(root), (name,), (begin, group), first, wanted)
            begin, first, rows = group, first + rows, 0


def _rows(path: Path, shard: Shard) -> Iterator[Item]:
    from pyarrow.parquet import ParquetFile

    name, number = shard.files[0], shard.first
    try:
        with ParquetFile(path) as file:
            groups = range(*(shard.groups or (0, 0)))
            for batch in file.iter_batches(ROWS, row_groups=list(groups), columns=[shard.column]):
                for value in batch.column(0).to_pylist():
                    if isinstance(value, dict) and not value.get("bytes"):
                        value = value.get("path")
                    # A relative path is one beside the file.
                    yield Item(f"{name}/{number:06d}", path.parent / value if isinstance(value, str) else value)
                    number += 1
    except Exception as error:  # pyarrow has many
        yield Item(f"{name}/{number:06d}", ValueError(f"the file cannot be read from here on: {error}"))


def _members(path: Path, name: str) -> Iterator[Item]:
    last = ""
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                last = member.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                if member.isdir() or not _is_image(last):
                    continue
                image: Any = None
                if not member.isfile():
                    image = ValueError(f"it is no file but a link to {member.linkname!a}, which is not followed")
                elif member.size > LARGEST:
                    image = ValueError(f"it has {member.size} bytes, more than {LARGEST}")
                elif (file := archive.extractfile(member)) is not None:
                    image = file.read()
                yield Item(f"{name}/{last}", image)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        yield Item(name, ValueError(f"the file cannot be read behind {last or 'its beginning'}: {error}"))


def _is_image(name: str) -> bool:
    path = Path(name)
    hidden = (part.startswith(".") and part not in (".", "..") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(hidden)
