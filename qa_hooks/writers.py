"""Where values go: TensorBoard, Weights & Biases, or memory; and the one place where tags are made.

A writer has four methods: `scalar`, `image`, `histogram` and `close`. x is the optimizer step.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

GROUPS = ("train", "eval", "loss", "weight", "sampler", "images", "perf")


def make_tag(group: str, name: str, stat: str) -> str:
    """`qa_{group}/{name}/{stat}`; characters that tools trip over become underscores.

    Example:
        >>> make_tag("eval", "niqe bsd100", "mean")
        'qa_eval/niqe_bsd100/mean'
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
    return "/".join([f"qa_{group}", *(re.sub(r"[^\w.\-=,()@]+", "_", part).strip("_") or "_" for part in (name, stat))])


class Writer(Protocol):
    """What Hooks writes to; any object with these methods will do."""

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One number."""

    def image(self, tag: str, image: Tensor, step: int) -> None:
        """One picture, uint8 `(C, H, W)`."""

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """A set of numbers `(n,)`."""

    def close(self) -> None:
        """Write what is pending."""


class MemoryWriter:
    """Keeps everything in lists: for tests, notebooks and tables at the end of a run.

    Example:
        >>> writer = MemoryWriter()
        >>> writer.scalar("qa_loss/ssim/mean", 0.5, 3)
        >>> writer.scalars["qa_loss/ssim/mean"]
        [(3, 0.5)]
    """

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.images: dict[str, list[tuple[int, Tensor]]] = {}
        self.histograms: dict[str, list[tuple[int, Tensor]]] = {}

    def scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append((step, float(value)))

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self.images.setdefault(tag, []).append((step, image))

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self.histograms.setdefault(tag, []).append((step, values))

    def close(self) -> None:
        """Nothing is pending."""


class TensorBoardWriter:
    """Writes TensorBoard event files.

    Args:
        log_dir: the run's folder; made when it is missing.

    Raises:
        ValueError: the folder cannot be written. That is found out here, before training starts.
    """

    def __init__(self, log_dir: str | Path) -> None:
        check_writable(log_dir)
        from torch.utils.tensorboard import SummaryWriter

        self.log_dir = Path(log_dir)
        self._writer: Any = SummaryWriter(str(log_dir), flush_secs=30)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(tag, float(value), step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._writer.add_image(tag, image.cpu(), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._writer.add_histogram(tag, values.detach().float().cpu().numpy(), step)

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """Writes to a Weights & Biases run.

    W&B drops points whose own step does not increase, so ours travels as a value, `qa_step`, which is declared as the x
    axis of every `qa_` metric: the user's own logging is not disturbed.

    Args:
        run: a run; by default the current one (`wandb.run`).

    Raises:
        ImportError: wandb is not installed.
        ValueError: no run is active.
    """

    def __init__(self, run: Any = None) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("WandbWriter needs wandb: pip install 'qa-hooks[wandb]'") from error
        self._wandb: Any = wandb
        self.run: Any = run if run is not None else wandb.run
        if self.run is None:
            raise ValueError("no W&B run is active: call wandb.init(...) first, or pass run=")
        for group in GROUPS:
            self.run.define_metric(f"qa_{group}/*", step_metric="qa_step")

    def scalar(self, tag: str, value: float, step: int) -> None:
        self.run.log({tag: float(value), "qa_step": step})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        array = image.permute(1, 2, 0).cpu().numpy()
        self.run.log({tag: self._wandb.Image(array.squeeze(-1) if array.shape[2] == 1 else array), "qa_step": step})

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        bins = np.histogram(values.detach().float().cpu().numpy(), bins=64)
        self.run.log({tag: self._wandb.Histogram(np_histogram=bins), "qa_step": step})

    def close(self) -> None:
        """The run is the user's: it stays open."""


def check_writable(folder: str | Path) -> None:
    """Make `folder` and write a file in it; `ValueError` when that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"qa_hooks")
    except OSError as error:
        raise ValueError(f"log_dir={str(folder)!r} cannot be written: {error}") from error
