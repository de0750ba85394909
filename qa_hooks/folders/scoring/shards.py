"""A table of scores as a folder of Parquet files, for more images than one process scores.

    scores/manifest.json                   what the JSON beside a CSV says, and "shards": the parts in their order
    scores/part-9f86d081884c7d65.parquet   path, the columns of scores, problem ("" where there was none)

A part appears whole or not at all. Its name is the fingerprint of the scorers, of the files and of their states, so
that a part which is there is finished and right. Other programs read the folder as the Parquet data set that it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_hooks._base.files import whole_file
from qa_hooks._base.headers import parse_header
from qa_hooks._base.libraries import import_library

MANIFEST, PATH, PROBLEM = "manifest.json", "path", "problem"
SHOWN = 20  # messages that a part keeps in its footer
_PART = re.compile(r"part-[0-9a-f]{16}\.parquet")
_COUNTS = b"qa_hooks.counts"


class Counts(NamedTuple):
    """What a part holds: its images, those with problems, and the first few of the problems by path."""

    images: int
    problems: int
    failures: dict[str, str]


class Parts(NamedTuple):
    """The rows of all parts, in the order of the manifest: n paths, `(n,)` float32 columns, and problems by path."""

    paths: list[str]
    columns: dict[str, np.ndarray[Any, np.dtype[np.float32]]]
    failures: dict[str, str]


def part_path(folder: Path, fingerprint: str) -> Path:
    """`scores/part-9f86d081884c7d65.parquet`."""
    return folder / f"part-{fingerprint}.parquet"


def write_part(
    path: Path, paths: Sequence[str], columns: Mapping[str, Sequence[float]], problems: Sequence[str]
) -> Counts:
    """Write the rows of one part; `problems` has "" for an image without one."""
    arrow, parquet = _arrow()
    failures = {name: problem for name, problem in zip(paths, problems, strict=True) if problem}
    some = dict(list(failures.items())[:SHOWN])
    counts = Counts(len(paths), sum(map(bool, problems)), some)
    cells = {PATH: arrow.array(paths, arrow.string())}
    cells |= {name: arrow.array(np.asarray(values, dtype=np.float32)) for name, values in columns.items()}
    cells[PROBLEM] = arrow.array(problems, arrow.string())
    table = arrow.table(cells).replace_schema_metadata({_COUNTS: json.dumps(counts._asdict()).encode()})
    with whole_file(path) as partial:
        parquet.write_table(table, partial)
    return counts


def read_counts(path: Path) -> Counts:
    """What a part holds; of the file nothing but the footer is read."""
    _, parquet = _arrow()
    try:
        told = parse_header(parquet.read_schema(path).metadata[_COUNTS].decode())
        return Counts(int(told["images"]), int(told["problems"]), dict(told["failures"]))
    except Exception as error:  # pyarrow has many, and the file may be anybody's
        raise ValueError(f"{path} is no part of a table of scores: {error or type(error).__name__}") from error


def read_parts(folder: Path, shards: Sequence[Any], names: Sequence[str]) -> Parts:
    """All rows of a complete table.

    Args:
        folder: of `manifest.json`.
        shards: the parts that the manifest names.
        names: the columns that it describes.

    Raises:
        ValueError: a part that is missing, broken, or has other columns than the manifest names.
    """
    arrow, parquet = _arrow()
    read = []
    for name in shards:
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise ValueError(f"{folder / MANIFEST} names {name!r}, which is no part of a table of scores")
        try:
            read.append(parquet.ParquetFile(folder / name).read(columns=[PATH, *names, PROBLEM]))
        except Exception as error:
            what = "is missing" if not (folder / name).exists() else f"cannot be read: {error}"
            raise ValueError(
                f"{folder / name} {what}; remove it if it is there, and repeat the same `qa-hooks score`"
            ) from error
        lost = {PATH, *names, PROBLEM} - set(read[-1].column_names)
        if lost:
            raise ValueError(f"{folder / name} has no column {', '.join(sorted(lost))}: it is of another table")
    if not read:
        raise ValueError(f"{folder / MANIFEST} names no parts")
    table = arrow.concat_tables(read)
    paths, problems = table[PATH].to_pylist(), table[PROBLEM].to_pylist()
    columns = {name: table[name].to_numpy().astype(np.float32) for name in names}
    return Parts(paths, columns, {path: problem for path, problem in zip(paths, problems, strict=True) if problem})


def _arrow() -> tuple[Any, Any]:
    how = {"needed_by": "a table of scores in Parquet files", "install": "pip install 'qa-hooks[ray]'"}
    return import_library("pyarrow", **how), import_library("pyarrow.parquet", **how)
