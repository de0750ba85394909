"""Values in a run of Weights & Biases."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.libraries import import_library
from qa_hooks.writers.writer import GROUPS


class WandbWriter:
    """Writes to a Weights & Biases run.

    W&B drops points whose own step does not increase, so ours travels as a value, `qa_step`, which is declared as the x
    axis of every `qa_` metric. By default our values join the row that your next `run.log` completes: your steps stay
    as they are, and where you log more rarely than we do only our last values of a row remain (said once).

    Args:
        run: a run; by default the current one (`wandb.run`).
        exclusive: nobody else logs to this run: each of our points is a row of its own.

    Raises:
        ImportError: wandb is not installed.
        ValueError: no run is active.
    """

    def __init__(self, run: Any = None, *, exclusive: bool = False) -> None:
        self._wandb = import_library("wandb", needed_by="WandbWriter", install="pip install 'qa-hooks[wandb]'")
        self.run: Any = run if run is not None else self._wandb.run
        if self.run is None:
            raise ValueError("no W&B run is active: call wandb.init(...) first, or pass run=")
        for group in GROUPS:
            self.run.define_metric(f"qa_{group}/*", step_metric="qa_step")
        self.exclusive = exclusive
        self._last: tuple[int, int] | None = None  # our step, and W&B's row
        self._warned = False

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._log(tag, float(value), step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        array = image.permute(1, 2, 0).cpu().numpy()
        self._log(tag, self._wandb.Image(array.squeeze(-1) if array.shape[2] == 1 else array), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        bins = np.histogram(values.detach().float().cpu().numpy(), bins=64)
        self._log(tag, self._wandb.Histogram(np_histogram=bins), step)

    def close(self) -> None:
        """Do nothing: the user's run stays open."""

    def _log(self, tag: str, value: Any, step: int) -> None:
        row = int(self.run.step)
        if self._last is not None and self._last[0] != step and self._last[1] == row:
            if self.exclusive:
                self.run.log({}, commit=True)  # the row of the step before is complete
                row = int(self.run.step)
            elif not self._warned:
                self._warned = True
                warn(
                    "your own run.log calls are rarer than these points, which overwrite each other within a W&B row; "
                    "WandbWriter(exclusive=True) keeps all where nobody else logs"
                )
        self.run.log({tag: value, "qa_step": step}, commit=False)
        self._last = step, row
