"""A text table as rows of fields: with or without a header, with a comma, a tab or blanks between the fields."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qa_hooks._base.decoding import IMAGE_SUFFIXES
from qa_hooks.ratings.workbooks import workbook_rows


class Table(NamedTuple):
    """The rows of a file; `header` is empty where the first row is data."""

    path: Path
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        """One column by its name, whatever its case; `ValueError` says which there are."""
        lowered = [field.lower() for field in self.header]
        if name.lower() not in lowered:
            raise ValueError(f"{self.path} has no column {name!r}; it has {', '.join(self.header) or 'no header'}")
        index = lowered.index(name.lower())
        return [row[index] for row in self.rows]

    def has(self, *names: str) -> bool:
        """Whether the header has all of these columns."""
        return {name.lower() for name in names} <= {field.lower() for field in self.header}


def is_image(field: str) -> bool:
    """Whether this looks like the name of an image file."""
    return Path(field.strip()).suffix.lower() in IMAGE_SUFFIXES


def stem(name: str) -> str:
    """The last part of a name without its image suffix; any other dot is part of the name.

    Example:
        >>> stem("set/scale1.5"), stem("set/scale1.5.png")
        ('scale1.5', 'scale1.5')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return PurePosixPath(last).stem if is_image(last) else last


def contents_of(references: Sequence[str]) -> list[str]:
    """What each image shows, by its reference: the reference's bare name, or its path where two share that name.

    Example:
        >>> contents_of(["a/1.png", "a/1.png", "a/2.png", ""]), contents_of(["a/1.png", "b/1.png"])
        (['1', '1', '2', ''], ['a/1', 'b/1'])
    """
    plain = {name: posixpath.normpath(name.replace("\\", "/")) for name in references if name}
    alike: dict[str, set[str]] = {}
    for path in plain.values():
        alike.setdefault(stem(path), set()).add(path)
    return [
        "" if not name
        else stem(name) if len(alike[stem(plain[name])]) == 1
        else f"{posixpath.dirname(plain[name])}/{stem(name)}".lstrip("/")
        for name in references
    ]  # fmt: skip


def is_number(field: str) -> bool:
    """Whether this is a finite number."""
    try:
        return abs(float(field)) < float("inf")
    except ValueError:
        return False


def read_table(path: str | Path) -> Table:
    """Read a table: text with commas, tabs or blanks, or an Excel workbook (.xlsx, through openpyxl).

    Raises:
        ValueError: no such file, no text in UTF-8, no rows, or rows of several lengths, which are named by their line.
        ImportError: a workbook, and openpyxl is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path} is JSON, which has no ratings: read_preferences or read_prompts reads it")
    rows = workbook_rows(path) if path.suffix.lower() == ".xlsx" else _text_rows(path)
    rows = [[field.strip() for field in row] for row in rows if any(field.strip() for field in row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    has_header = not any(is_image(field) or is_number(field) for field in rows[0])
    header, rows = (rows[0], rows[1:]) if has_header else ([], rows)
    width = len(header or rows[0])
    odd = [number for number, row in enumerate(rows, 2 if header else 1) if len(row) != width]
    if odd:
        raise ValueError(f"{path}: row {odd[0]} has another number of fields than {width}; a comma without quotes?")
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    return Table(path, header, rows)


def _text_rows(path: Path) -> list[list[str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error}") from error
    if "\0" in text:
        raise ValueError(f"{path} is no text")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty")
    if "," in lines[0] or "\t" in lines[0]:
        separator = "," if "," in lines[0] else "\t"
        return [row for row in csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True) if row]
    return [line.split() for line in lines]
