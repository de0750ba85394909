"""Checks of plain arguments, with one message for each kind."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def check_weight(name: str, weight: Any) -> float:
    """A finite number of at least 0, as a float; `ValueError` otherwise."""
    if isinstance(weight, bool) or not isinstance(weight, Real) or not 0 <= float(weight) < float("inf"):
        raise ValueError(f"{name} must be a finite number and not negative, got {weight!r}")
    return float(weight)


def check_count(name: str, count: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`; `ValueError` otherwise."""
    if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")
    return int(count)
