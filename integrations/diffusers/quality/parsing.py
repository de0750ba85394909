"""What a user sets the dial to, as rows of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Column = float | list[float] | tuple[float, ...] | Tensor
Quality = float | Mapping[str, Column] | list[float] | tuple[float, ...] | Tensor | None

NUMBERS = (Tensor, list, tuple, np.ndarray, np.generic, int, float)


def parse_quality(q: Any, names: Sequence[str]) -> Tensor:
    """A setting of the dial as `(k, D)` float32, a row for each image or one for all, NaN where a score is left open.

    Args:
        q: a number for all scores; numbers by name, each for all images or `(k,)`; `(k, D)`; `(k,)` where D is 1; None.
        names: of the D scores.

    Raises:
        TypeError, ValueError: names that are not there, shapes that do not fit, infinite or not a number.

    Example:
        >>> parse_quality({"sharpness": [1.0, 2.0]}, ["niqe", "sharpness"])
        tensor([[nan, 1.],
                [nan, 2.]])
    """
    width = len(names)
    if q is None:
        return torch.full((1, width), torch.nan, dtype=torch.float32, device="cpu")
    if isinstance(q, Mapping):
        rows = _by_name(q, names)
    else:
        rows = _numbers(q, f"a number, numbers by name, or a tensor (n, {width})")
        if not rows.ndim:
            if bool(rows.isnan()):
                raise ValueError("q is not a number: None stands for a quality that is not set")
            rows = rows.expand(1, width)
        elif rows.ndim == 1 and width == 1:
            rows = rows[:, None]
    if rows.ndim != 2 or rows.shape[1] != width or not len(rows):
        one = " or (n,)" if width == 1 else ""
        named = ", ".join(f"{name!r}: ..." for name in names[:2])
        raise ValueError(
            f"q must be a number, (n, {width}){one}, a row for each image, or numbers by name ({{{named}}}); "
            f"got {tuple(rows.shape)}"
        )
    if bool(rows.isinf().any()):
        raise ValueError("q is infinite")
    return rows


def _by_name(q: Mapping[Any, Any], names: Sequence[str]) -> Tensor:
    unknown = [name for name in q if name not in names]
    if unknown or not q:
        raise ValueError(f"this adapter knows the scores {list(names)}, got {unknown or 'none'}")
    columns = {name: _numbers(value, "a number, or one for each image") for name, value in q.items()}
    counts = sorted({len(column) for column in columns.values() if column.ndim == 1})
    if any(column.ndim > 1 for column in columns.values()) or len(counts) > 1 or 0 in counts:
        shapes = {name: tuple(column.shape) for name, column in columns.items()}
        raise ValueError(f"q of each score must be a number or (n,), one for each image, got {shapes}")
    odd = [name for name, column in columns.items() if not column.ndim and bool(column.isnan())]
    if odd:
        raise ValueError(f"q of {odd[0]!r} is not a number: leave out a score that is not to be set")
    rows = torch.full((counts[0] if counts else 1, len(names)), torch.nan, dtype=torch.float32, device="cpu")
    for name, column in columns.items():
        rows[:, list(names).index(name)] = column.to("cpu")
    return rows


def _numbers(value: Any, wanted: str) -> Tensor:
    """A tensor of whatever numbers these are; `TypeError` otherwise."""
    odd = isinstance(value, bool) or not isinstance(value, NUMBERS)
    try:
        tensor = value if isinstance(value, Tensor) or odd else torch.from_numpy(np.asarray(value))
    except (TypeError, ValueError, RuntimeError):
        odd = True
    if odd or tensor.dtype == torch.bool or tensor.is_complex():
        shown = type(value).__name__ if isinstance(value, Tensor | np.ndarray) else repr(value)[:80]
        raise TypeError(f"q must be {wanted}, got {shown}")
    numbers: Tensor = tensor.detach().float()
    return numbers
