"""Numbers gathered while a run goes on: running means of scalars, and moments of features.

Both give the same numbers on one process and on many. `Stats` costs no synchronisation until it is flushed, and one
all-reduce then. `Moments` is exact to float64 and mergeable.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from qa_hooks._base.processes import all_reduce_sum, is_distributed, world_size
from qa_hooks.functional.numerics import to_float64


class Stats:
    """Means of named scalars since the last flush, over all processes; values stay on their device until then."""

    CAPACITY = 256

    def __init__(self) -> None:
        self._values: dict[str, tuple[Tensor | float, int]] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one value; a tensor may have one element or many (their mean counts)."""
        if isinstance(value, Tensor):
            value = to_float64(value.detach()).mean()
        total, count = self._values.get(name, (0.0, 0))
        self._values[name] = (total + value, count + 1)

    def flush(self) -> dict[str, float]:
        """Mean per name, then forget. With several processes every rank must call it (one collective)."""
        names = sorted(self._values)
        if len(names) > self.CAPACITY:
            raise ValueError(f"more than {self.CAPACITY} scalars are recorded at once: {len(names)}")
        totals = torch.tensor([float(self._values[name][0]) for name in names], dtype=torch.float64)
        counts = torch.tensor([self._values[name][1] for name in names], dtype=torch.float64)
        self._values = {}
        if is_distributed():
            # Fixed length, with a checksum of the names: ranks that disagree are told so and do not hang.
            checksum = float(zlib.crc32("\n".join(names).encode()))
            vector = torch.zeros(2 * self.CAPACITY + 1, dtype=torch.float64)
            vector[: len(names)], vector[self.CAPACITY : self.CAPACITY + len(names)] = totals, counts
            vector[-1] = checksum
            vector = all_reduce_sum(vector)
            if float(vector[-1]) != checksum * world_size():
                raise ValueError(f"the ranks recorded different scalars; this one has {names}")
            totals, counts = vector[: len(names)], vector[self.CAPACITY : self.CAPACITY + len(names)]
        return {name: float(value) for name, value in zip(names, totals / counts, strict=True)}

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """What is pending, as plain numbers."""
        return {name: (float(total), count) for name, (total, count) in self._values.items()}

    def load_state_dict(self, state: Mapping[str, tuple[float, int]]) -> None:
        """The inverse of `state_dict`."""
        self._values = {name: (float(total), int(count)) for name, (total, count) in state.items()}
