"""JSON out of the headers of files that anybody may have made."""

from __future__ import annotations

import json
from typing import Any

LARGEST = 1 << 24  # characters


def parse_header(text: str, largest: int = LARGEST) -> Any:
    """What a header says; `ValueError` when it is no JSON, too long, or nested too deep to be read.

    Example:
        >>> parse_header('{"options": {}}')
        {'options': {}}
        >>> parse_header("[" * 100_000)
        Traceback (most recent call last):
        ValueError: the header is nested too deep
    """
    if len(text) > largest:
        raise ValueError(f"the header has {len(text)} characters, more than {largest}")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the header is nested too deep") from None
