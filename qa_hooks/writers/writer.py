"""What Hooks writes to: tags, the protocol of a writer, one that keeps everything in memory, one that survives errors.

A writer has four methods: `scalar`, `image`, `histogram` and `close`. It may have four more: `flush`, which is called
when a checkpoint is saved, `describe`, which says what a tag means (a `Meaning`, whose
`str` is a sentence), `text`, and `settings`, which takes the run's plain
settings before its first step. x is the optimizer step.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.files import check_writable
from qa_hooks.writers.meaning import Meaning

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
        raise TypeError(
            f"writer must have the methods of a Writer; {type(writer).__name__} lacks {missing}. For "
            "TensorBoard give log_dir=FOLDER, also that of a SummaryWriter of yours: each writes a file of its own"
        )


def describe(writer: Writer, tag: str, meaning: Meaning) -> None:
    """Say what the numbers of a tag mean, to a writer that shows it; before the tag's first number."""
    if hasattr(writer, "describe"):
        writer.describe(tag, meaning)


def log_text(writer: Writer, tag: str, text: str, step: int) -> None:
    """Write words, to a writer that takes them."""
    if hasattr(writer, "text"):
        writer.text(tag, text, step)


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


class GuardedWriter:
    """A writer for which a full disk, a vanished folder or a lost connection ends the logging, not the training.

    Attributes:
        dropped: since this was last reset, a value was to be written, and there never was a writer.
    """

    def __init__(self, writer: Writer | None) -> None:
        self._writer, self._never, self.dropped = writer, writer is None, False

    @property
    def name(self) -> str | None:
        """The class of the writer; None if there is no writer, or if it was given up after an error."""
        return None if self._writer is None else type(self._writer).__name__

    @property
    def earlier(self) -> Any:
        """The file of values that an earlier run has left where this writer writes; None where there is none."""
        return getattr(self._writer, "earlier", None)

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

    def text(self, tag: str, text: str, step: int) -> None:
        if hasattr(self._writer, "text"):
            self._try("text", tag, text, step)

    def describe(self, tag: str, meaning: Meaning) -> None:
        if hasattr(self._writer, "describe"):
            self._try("describe", tag, meaning)

    def settings(self, values: dict[str, float | str | bool]) -> None:
        if hasattr(self._writer, "settings"):
            self._try("settings", values)

    def flush(self) -> None:
        if hasattr(self._writer, "flush"):
            self._try("flush")

    def close(self) -> None:
        self._try("close")

    def _try(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            self.dropped |= self._never and method in ("scalar", "image", "histogram")
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:
            self._writer = None
            warn(f"logging is switched off for the rest of the run: {type(error).__name__}: {error}")
