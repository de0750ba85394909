"""Where values go: TensorBoard, Weights & Biases, or memory; and the one place where tags are made.

A writer has four methods: `scalar`, `image`, `histogram` and `close`, and may have `flush`, which is called when a
checkpoint is saved. x is the optimizer step.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.files import check_writable

GROUPS = ("train", "eval", "loss", "weight", "images", "perf")


def make_tag(group: str, name: str, stat: str) -> str:
    """`qa_{group}/{name}/{stat}`; characters that tools trip over become underscores.

    TensorBoard's charts of values with bands draw nothing for a tag with parentheses or brackets.

    Example:
        >>> make_tag("eval", "niqe bsd100", "mean")
        'qa_eval/niqe_bsd100/mean'
    """
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group!r}")
    return "/".join([f"qa_{group}", *(re.sub(r"[^\w.\-=,@]+", "_", part).strip("_") or "_" for part in (name, stat))])


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


def check_writer(writer: Any) -> None:
    """`TypeError` unless it has the methods of a `Writer`."""
    missing = [method for method in ("scalar", "image", "histogram", "close") if not hasattr(writer, method)]
    if missing:
        raise TypeError(f"writer must have the methods of a Writer; {type(writer).__name__} lacks {missing}")


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
        """Do nothing: nothing is pending."""


class TensorBoardWriter:
    """Writes TensorBoard event files.

    A run that was killed and goes on in the same folder replaces the points that it makes again: its first write tells
    TensorBoard to forget our points from that step on. Where other writers log into the folder this is left out, since
    TensorBoard would forget theirs as well. Values that come with `/low` and `/high` are also drawn as one curve with
    its band, on the page CUSTOM SCALARS.

    Args:
        log_dir: the run's folder; made when it is missing.

    Raises:
        ValueError: the folder cannot be written. That is found out here, before training starts.
    """

    SUFFIX = ".qa_hooks"  # of the file's name: which files are ours

    def __init__(self, log_dir: str | Path) -> None:
        check_writable(log_dir)
        from torch.utils.tensorboard import SummaryWriter

        self.log_dir = Path(log_dir)
        self._make: Any = SummaryWriter
        self._writer: Any = None
        self._middles: dict[str, str] = {}
        self._bands: dict[str, list[Any]] = {}

    def scalar(self, tag: str, value: float, step: int) -> None:
        writer = self._open(step)
        writer.add_scalar(tag, float(value), step)
        base, _, stat = tag.rpartition("/")
        if stat in ("value", "mean"):
            self._middles[base] = tag
        elif stat == "high" and base in self._middles and base not in self._bands:
            self._bands[base] = ["Margin", [self._middles[base], f"{base}/low", f"{base}/high"]]
            writer.add_custom_scalars({"95 % intervals": self._bands})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._open(step).add_image(tag, image.cpu(), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._open(step).add_histogram(tag, values.detach().float().cpu().numpy(), step)

    def flush(self) -> None:
        """Put on disk what is pending, so that a run that is killed later finds it."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> Any:
        # TensorBoard would find out in a thread of its own, with a traceback, and some points later.
        if not self.log_dir.is_dir():
            raise FileNotFoundError(f"the folder {self.log_dir} has vanished")
        if self._writer is None:
            names = [path.name for path in self.log_dir.glob("*tfevents*")]
            ours = bool(names) and all(name.endswith(self.SUFFIX) for name in names)
            self._writer = self._make(
                str(self.log_dir), flush_secs=30, filename_suffix=self.SUFFIX, purge_step=step if ours else None
            )
        return self._writer


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


class GuardedWriter:
    """A writer for which a full disk, a vanished folder or a lost connection ends the logging, not the training."""

    def __init__(self, writer: Writer | None) -> None:
        self._writer = writer

    @property
    def name(self) -> str | None:
        """The class of the writer; None if there is no writer, or if it was given up after an error."""
        return None if self._writer is None else type(self._writer).__name__

    def check(self) -> str:
        """Whether it can write, in words: the writer is flushed, and a folder of its own must be writable."""
        if self._writer is None:
            return "nowhere: give log_dir= or writer="
        folder = getattr(self._writer, "log_dir", None)
        try:
            check_writer(self._writer)
            if folder is not None:
                check_writable(folder)
            if hasattr(self._writer, "flush"):
                self._writer.flush()
        except Exception as error:
            return f"{self.name} FAILS: {type(error).__name__}: {error}"
        return f"{self.name}{f' in {folder}' if folder is not None else ''}"

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._try("scalar", tag, float(value), step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._try("image", tag, image, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._try("histogram", tag, values, step)

    def flush(self) -> None:
        if hasattr(self._writer, "flush"):
            self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:
            self._writer = None
            warn(f"logging is switched off for the rest of the run: {type(error).__name__}: {error}")
