"""JSON that anybody may have made: headers of files, whole files, and files of one value a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LARGEST = 1 << 24  # characters


def parse_header(text: str, largest: int = LARGEST) -> Any:
    """What a header says; `ValueError` when it is no JSON, too long, or nested too deep to be read.

    Example:
        >>> parse_header('{"options": {}}')
        {'options': {}}
        >>> parse_header("[" * 100_000)
        Traceback (most recent call last):
        ValueError: the JSON is nested too deep
    """
    if len(text) > largest:
        raise ValueError(f"the header has {len(text)} characters, more than {largest}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def read_json(path: Path) -> Any:
    """What a file of JSON in UTF-8 holds; `ValueError` names the file where it is none, or nested too deep."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        return parse_header(text, largest=len(text))
    except ValueError as error:  # JSON's and Unicode's errors are ValueErrors
        raise ValueError(f"{path} is no JSON that can be read: {error}") from error


def json_lines(path: Path) -> Iterator[Any]:
    """The values of a file that has one a line, without lines that a killed process left half-written."""
    with path.open(encoding="utf-8", errors="replace") as file:
        for text in file:
            try:
                value = parse_header(text, largest=len(text))
            except ValueError:
                continue
            yield value
