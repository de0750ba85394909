"""Checks of plain arguments, with one message for each kind, and warnings that point at the user's own line."""

from __future__ import annotations

import contextlib
import sys
import warnings
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

# Code whose lines say nothing to a user: this package's (also by its link), torch's, and that of with blocks.
_INSIDE = tuple(str(path) for path in (Path(__file__).parents[1], Path(__file__).resolve().parents[1],
                                       Path(torch.__file__).parent, contextlib.__file__))  # fmt: skip


def check_weight(name: str, weight: Any) -> float:
    """A finite number of at least 0, as a float; `ValueError` otherwise."""
    value = float("nan")
    if not isinstance(weight, bool) and isinstance(weight, Real):
        with contextlib.suppress(OverflowError):
            value = float(weight)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number and not negative, got {weight!r}")
    return value


def check_count(name: str, count: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`; `ValueError` otherwise."""
    if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")
    return int(count)


def warn(message: str) -> None:
    """A `UserWarning` at the innermost line outside this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)
