"""Running means of the scalars of a run: they stay on their device until they are written, with one all-reduce."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.processes import all_reduce_sum, is_distributed, rank, world_size
from qa_hooks.functional.numerics import to_float64
from qa_hooks.writers import Meaning, Writer, describe

MEANING = {
    "qa_loss": "a term without its weight",
    "qa_train": "recorded by the loop",
    "qa_weight": "what a weighter says of its weights",
}  # by the group of the tag


class Means:
    """Means of named scalars since they were last taken; nothing is synchronised before that.

    Example:
        >>> means = Means()
        >>> for value in (1.0, 2.0, 6.0):
        ...     means.add("loss", value)
        >>> means.flush(), means.flush()
        ({'loss': 3.0}, {})
    """

    CAPACITY = 256

    def __init__(self) -> None:
        self._values: dict[str, tuple[Tensor | float, int]] = {}
        self._told: set[str] = set()  # the names whose meaning the log has

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one value; a tensor may have one element or many (their mean counts)."""
        if isinstance(value, Tensor):
            value = to_float64(value.detach()).mean()
        total, count = self._values.get(name, (0.0, 0))
        self._values[name] = (total + value, count + 1)

    def take(self) -> dict[str, Tensor | float]:
        """This process's means, on their devices, then forget."""
        values, self._values = self._values, {}
        return {name: total / count for name, (total, count) in values.items()}

    def flush(self) -> dict[str, float]:
        """The means over all processes, then forget. With several processes every rank must call it (one collective).

        Raises:
            ValueError: too many names, or other names than on another rank.
        """
        names = sorted(self._values)
        if len(names) > self.CAPACITY:
            raise ValueError(f"more than {self.CAPACITY} scalars are recorded at once: {len(names)}")
        sums = [[float(self._values[name][0]) for name in names], [float(self._values[name][1]) for name in names]]
        self._values = {}
        totals, counts = torch.tensor(sums, dtype=torch.float64, device="cpu")
        if is_distributed():
            # Fixed length, with a checksum of the names: ranks that disagree are told so and do not hang.
            checksum = float(zlib.crc32("\n".join(names).encode()))
            vector = torch.zeros(2 * self.CAPACITY + 1, dtype=torch.float64, device="cpu")
            vector[: len(names)], vector[self.CAPACITY : self.CAPACITY + len(names)] = totals, counts
            vector[-1] = checksum
            vector = all_reduce_sum(vector)
            if float(vector[-1]) != checksum * world_size():
                raise ValueError(f"the ranks recorded different scalars; this one has {names}")
            totals, counts = vector[: len(names)], vector[self.CAPACITY : self.CAPACITY + len(names)]
        return {name: float(value) for name, value in zip(names, totals / counts, strict=True)}

    def write(self, writer: Writer, step: int) -> None:
        """Write the means over all processes, then forget; an error is said and costs this point alone."""
        try:
            for tag, value in self.flush().items():
                if tag not in self._told:
                    self._told.add(tag)
                    words = f"{MEANING[tag.partition('/')[0]]}; mean of all calls since the last point"
                    describe(writer, tag, Meaning(words))
                writer.scalar(tag, value, step)
        except Exception as error:
            if rank() == 0:
                warn(f"this point of the logged means is left out: {type(error).__name__}: {error}")

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """What is pending, as plain numbers."""
        return {name: (float(total), count) for name, (total, count) in self._values.items()}

    def load_state_dict(self, state: Mapping[str, tuple[float, int]]) -> None:
        """The inverse of `state_dict`."""
        self._values = {name: (float(total), int(count)) for name, (total, count) in state.items()}
