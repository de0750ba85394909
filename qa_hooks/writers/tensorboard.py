"""Values in TensorBoard, and as lines of JSON beside its files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.files import check_writable
from qa_hooks.writers.meaning import Meaning
from qa_hooks.writers.run_log import RunLog

ZONES = "qa_zones"  # the ends of intervals, drawn as bands and not read one by one; the name sorts last


class TensorBoardWriter:
    """Writes TensorBoard event files, and the same numbers as lines of JSON (`metrics.jsonl`).

    A run that was killed and goes on in the same folder replaces the points that it makes again: its first write tells
    TensorBoard to forget our points from that step on. Where other writers log into the folder this is left out, since
    TensorBoard would forget theirs as well.

    Each value has one card. The ends of its interval, `/low` and `/high`, are drawn as a band around its curve, on the
    page CUSTOM SCALARS; their own cards are in the group `qa_zones`. The page HPARAMS has a row for the run: its
    settings, and the last value of each curve.

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
        self._log = RunLog(self.log_dir)
        self._middles: dict[str, str] = {}
        self._bands: dict[str, list[Any]] = {}
        self._told: dict[str, Meaning] = {}  # what a tag means, until it is written
        self._settings: dict[str, float | str] = {}
        self._has_row = False

    @property
    def earlier(self) -> Path | None:
        """The file of values that was there when this writer was made; None where there was none."""
        return self._log.path if self._log.has_earlier else None

    def scalar(self, tag: str, value: float, step: int) -> None:
        writer = self._open(step)
        base, _, stat = tag.rpartition("/")
        low, high = (f"{ZONES}/{base.partition('/')[2]}/{end}" for end in ("low", "high"))
        told = self._told.pop(tag, None)
        self._add(writer, {"low": low, "high": high}.get(stat, tag), told, float(value), step)
        self._log.scalar(tag, float(value), step, told)
        if stat in ("value", "mean"):
            self._middles[base] = tag
        elif stat == "high" and base in self._middles and base not in self._bands:
            self._bands[base] = ["Margin", [self._middles[base], low, high]]
            writer.add_custom_scalars({"95 % intervals": self._bands})

    def image(self, tag: str, image: Tensor, step: int) -> None:
        self._open(step).add_image(tag, image.cpu(), step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._open(step).add_histogram(tag, values.detach().float().cpu().numpy(), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown, for the page TEXT."""
        self._open(step).add_text(tag, text, step)

    def describe(self, tag: str, meaning: Meaning) -> None:
        """What a tag's numbers mean, for the card's "i" and the log of lines. It goes with the tag's next value."""
        self._told[tag] = meaning

    def settings(self, values: dict[str, float | str | bool]) -> None:
        """The run's settings, for the page HPARAMS. A run that is killed has its row there, too."""
        for name, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            self._settings[name] = float(value) if number else str(value)
        if self._writer is not None and not self._has_row:
            self._row(ended=False)

    def flush(self) -> None:
        """Put on disk what is pending, so that a run that is killed later finds it."""
        if self._writer is not None:
            self._writer.flush()
            self._log.flush()

    def close(self) -> None:
        if self._writer is not None:
            if self._has_row:
                self._row(ended=True)
            self._writer.close()
            self._log.flush()

    def _add(self, writer: Any, tag: str, told: Meaning | None, value: float, step: int) -> None:
        if told is None:
            writer.add_scalar(tag, value, step)
            return
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        metadata = create_summary_metadata(display_name=tag, description=str(told))
        first = Summary.Value(tag=tag, simple_value=value, metadata=metadata)
        writer._get_file_writer().add_summary(Summary(value=[first]), step)

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
            if self._settings:
                self._row(ended=False)
        return self._writer

    def _row(self, *, ended: bool) -> None:
        """The beginning or the end of the run's row on the page HPARAMS, without torch's summary of all runs together.

        TensorBoard takes that from one run alone, so that a column that only another run has would be missing.
        """
        from torch.utils.tensorboard.summary import hparams

        _, begin, end = hparams(self._settings, {})
        self._writer._get_file_writer().add_summary(end if ended else begin)
        self._has_row = not ended  # the end is written once: after `close` it would be in a file of its own
