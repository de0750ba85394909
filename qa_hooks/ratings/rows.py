"""A text table as rows of fields: with or without a header, with commas, semicolons, tabs or blanks between fields."""

from __future__ import annotations

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from qa_hooks._base.decoding import IMAGE_SUFFIXES
from qa_hooks.ratings.workbooks import workbook_rows

DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
SEPARATORS = (",", "\t", ";")
WORKBOOKS = (".xlsx", ".xlsm")
LOOKED_AT = 100  # rows, to know what stands between the fields


class Table(NamedTuple):
    """The rows of a file; `header` is empty where the first row is data."""

    path: Path
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str | int) -> list[str]:
        """One column by its name, whatever its case; without a header by its number, the first is 1.

        Raises:
            ValueError: no such column, it says which there are; or two of this name.
        """
        width, wanted = len(self.rows[0]), str(name).lower()
        known = [field.lower() for field in self.header] or [str(number + 1) for number in range(width)]
        if wanted not in known:
            there = ", ".join(self.header) or f"no header: its columns are called 1 to {width}"
            raise ValueError(f"{self.path} has no column {name!r}; it has {there}")
        if known.count(wanted) > 1:
            raise ValueError(f"{self.path} has {known.count(wanted)} columns called {name!r}: rename one of them")
        index = known.index(wanted)
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


def is_numeric(field: str) -> bool:
    """Whether this is a finite number, with a point or a comma before its decimals."""
    return is_number(field) or DECIMAL_COMMA.fullmatch(field) is not None


def read_table(path: str | Path) -> Table:
    """Read a table: text with commas, semicolons, tabs or blanks, or an Excel workbook (.xlsx, through openpyxl).

    Raises:
        ValueError: no such file, no text in UTF-8 or UTF-16, no rows, or rows of several lengths, named by their line.
        ImportError: a workbook, and openpyxl is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path} is JSON, which has no ratings: read_preferences or read_prompts reads it")
    rows = workbook_rows(path) if path.suffix.lower() in WORKBOOKS else _text_rows(path)
    rows = [[field.strip() for field in row] for row in rows if any(field.strip() for field in row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    has_header = not any(is_image(field) or is_numeric(field) for field in rows[0])
    header, rows = (rows[0], rows[1:]) if has_header else ([], rows)
    width = len(header or rows[0])
    odd = [number for number, row in enumerate(rows, 2 if header else 1) if len(row) != width]
    if odd:
        raise ValueError(f"{path}: row {odd[0]} has another number of fields than {width}; a comma without quotes?")
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    return Table(path, header, rows)


def _text_rows(path: Path) -> list[list[str]]:
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # the "Unicode text" of Excel
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error}): save it as CSV UTF-8, or as a workbook {WORKBOOKS[0]}"
        ) from error
    if "\0" in text:
        raise ValueError(f"{path} is no text")
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty")
    found = [_separated(text, separator) for separator in SEPARATORS if separator in lines[0]]
    even = [rows for rows in found if len({len(row) for row in rows[:LOOKED_AT]}) == 1]
    # A prompt may hold commas where semicolons divide: what gives the most names and numbers is right.
    return max(even or found, key=_told) if found else [line.split() for line in lines]


def _separated(text: str, separator: str) -> list[list[str]]:
    lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"), newline="\n")
    return [row for row in csv.reader(lines, delimiter=separator, skipinitialspace=True) if any(row)]


def _told(rows: Sequence[Sequence[str]]) -> int:
    return sum(is_image(field) or is_numeric(field.strip()) for row in rows[:LOOKED_AT] for field in row)
