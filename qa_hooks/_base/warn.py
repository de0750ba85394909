"""Warnings that point at the user's line."""

from __future__ import annotations

import sys
import warnings

PASSED = ("qa_hooks", "torch", "contextlib")  # who stands between the user's line and ours


def warn(message: str) -> None:
    """A `UserWarning` for the line outside this package that led here, however many calls lie between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)
