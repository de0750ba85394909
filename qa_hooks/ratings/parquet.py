"""Columns of Parquet files, which pyarrow reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_hooks._base.libraries import import_library


def parquet_rows(path: Path, what: str, columns: Sequence[str], optional: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a Parquet file, with these columns alone.

    Args:
        path: of the file.
        what: the file should be, for the message where it lacks a column.
        columns: that it must have.
        optional: columns that are read where it has them.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: no Parquet file, or one that lacks a column.
    """
    parquet = import_library("pyarrow.parquet", needed_by=str(path), install="pip install 'qa-hooks[ratings]'")
    try:
        known = set(parquet.read_schema(path).names)
        wanted = [*columns, *(name for name in optional if name in known)]
        rows: list[dict[str, Any]] = (
            parquet.read_table(path, columns=wanted).to_pylist() if known >= set(columns) else []
        )
    except Exception as error:  # pyarrow has an exception of its own for each fault
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    if missing := [name for name in columns if name not in known]:
        raise ValueError(f"{path} is no {what}: it has no {', '.join(missing)}")
    return rows
