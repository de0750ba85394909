"""The decision which checkpoint to keep, the same on all ranks.

fd = GenerativeMonitor(...)
hooks = Hooks([fd, BestCheckpoint(fd, "fd", mode="min", save=save, folder="best"),
               EarlyStop(fd, "fd", mode="min", patience=10, certain=True)])
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_hooks._base.checks import check_count, warn
from qa_hooks._base.files import check_writable
from qa_hooks._base.headers import parse_header
from qa_hooks._base.processes import first_error, shared, together
from qa_hooks.callbacks.callback import Callback, Context
from qa_hooks.callbacks.readings import MetricReader, Reading, from_plain, in_words, to_plain

Save = Callable[[Path], Any]

PENDING = "partial_best.json"  # a best.json that is about to hold
_CHECKPOINT = re.compile(r"step_\d{8}[^/\\]*")  # the names that we give, and that may be deleted
_LEFT_OVER = re.compile(r"partial_(old_)?step_\d{8}[^/\\]*|partial_best\.json")


class BestCheckpoint(Callback):
    """Saves a checkpoint whenever a metric reaches a new best, and names the best checkpoint in `folder/best.json`.

    `best.json` holds metric, mode, value, low and high (its 95 % interval, where the monitor gives one), step, path
    (relative to the folder), monitor, spec (what the monitor says of how it measures) and kept (the best few, best
    first). The checkpoint is written beside the old one and renamed, then `best.json` is replaced, then the old one
    goes: whenever a run is killed, `best.json` names a whole checkpoint, and the next start removes what the killed run
    was about to remove. None of this is part of the checkpoint that a run is resumed from; save that one yourself.

    A run that is resumed, or one that begins in the folder of another, goes on from what the folder holds: a better
    checkpoint is never replaced by a worse one. Where that is not what the loaded state says, it warns.

    When `save` fails it warns (once) that nothing was saved, keeps what it had, and tries again at the next measurement
    that is better than that.

    Args:
        monitor: what measures; it comes before this one in the list of callbacks.
        metric: a key of `monitor.last`.
        mode: "min" when lower is better, "max" otherwise.
        save: `save(path)` writes a checkpoint to exactly this path: a file or a folder.
        folder: one for each run.
        keep: so many of the best stay.
        suffix: of the path's name, for libraries that look at it (".pt", ".safetensors").
        all_ranks: call `save` on every process, for checkpoints that are gathered or sharded; they need one file
            system. By default only the first one saves.

    Attributes:
        best: value, step and so on of the best checkpoint, as in `best.json`; {} before the first.
        failures: how many times `save` failed.

    Raises:
        ValueError: a folder that cannot be written or whose `best.json` is that of another metric. (That of the same
            metric measured in another way is found out at the first measurement, and switches this callback off.)

    Example:
        >>> import tempfile, torch
        >>> from qa_hooks.callbacks import ScoreMonitor
        >>> from qa_hooks.scorers import create_scorer
        >>> net = torch.nn.Linear(2, 2)
        >>> psnr = ScoreMonitor(create_scorer("psnr"), every=100, images="pred", reference="target")
        >>> save = lambda path: torch.save(net.state_dict(), path)
        >>> best = BestCheckpoint(psnr, "mean", mode="max", save=save, folder=tempfile.mkdtemp(), suffix=".pt")
    """

    def __init__(
        self,
        monitor: Callback,
        metric: str,
        *,
        mode: str,
        save: Save,
        folder: str | Path,
        keep: int = 1,
        suffix: str = "",
        all_ranks: bool = False,
    ) -> None:
        self._watched = MetricReader(monitor, metric, mode)
        if not callable(save):
            raise TypeError(f"save must be callable as save(path), got {type(save).__name__}")
        self.reads, self.metric, self.mode, self.save = (monitor,), metric, mode, save
        self.keep, self.suffix, self.all_ranks = check_count("keep", keep), suffix, all_ranks
        self.folder = Path(folder)
        check_writable(self.folder, name="folder")
        self._kept: list[dict[str, Any]] = []  # to_plain of each with its path; the best first
        self._leaving: list[str] = []  # paths of checkpoints that are no longer among the best, and not yet removed
        self._loaded = False
        self.failures = 0
        self._check_file(_read_best(self.folder))

    @property
    def state_key(self) -> str:
        return f"BestCheckpoint({self.reads[0].state_key}.{self.metric})"

    @property
    def best(self) -> dict[str, Any]:
        return dict(self._kept[0]) if self._kept else {}

    def due(self, step: int) -> bool:
        return self.reads[0].due(step)

    def on_train_start(self, ctx: Context) -> None:
        """Read `best.json` on rank 0, and share its values with all ranks."""
        found: dict[str, Any] = {}
        with together():
            if ctx.rank == 0:
                self._clear_away()
                found = _read_best(self.folder)
                self._check_file(found)
        on_disk = shared(found.get("kept", []))
        # One of this very step was saved by the call of `save` that wrote the loaded state, too.
        expected = self._loaded and any(entry["step"] == ctx.step for entry in on_disk)
        if ctx.rank == 0 and on_disk != self._kept and not expected:
            known = f"the loaded state's best is {in_words(self.best)}" if self._loaded else "no state was loaded"
            warn(
                f"{self.state_key}: the best checkpoint in {self.folder} is {in_words(on_disk[0] if on_disk else {})}, "
                f"but {known}; what the folder holds counts"
                + ("" if self._loaded else ", so give a new run a folder of its own")
            )
        self._kept = on_disk

    def on_step_end(self, ctx: Context) -> None:
        reading = self._watched.new(ctx.step, spec=self.best.get("spec"))
        last_kept = from_plain(self._kept[-1]) if len(self._kept) >= self.keep else None
        if reading is None or not reading.beats(last_kept, self.mode):
            return
        name = f"step_{ctx.step:08d}{self.suffix}"
        if any(
            entry["path"] == name for entry in self._kept
        ):  # of a run before; best.json names it until it is replaced
            name = f"step_{ctx.step:08d}_again{self.suffix}"
        partial = self.folder / f"partial_{name}"  # no dot in front: torch.save refuses such names
        error: Exception | None = None
        if ctx.rank == 0 or self.all_ranks:
            try:
                self.save(partial)
            except Exception as caught:
                error = caught
        message = first_error(error)
        if message is None:
            entry = {**to_plain(reading), "path": name, "spec": shared(self._watched.spec)}
            others = [other for other in self._kept if other["step"] != ctx.step]
            at = next((i for i, other in enumerate(others) if reading.beats(from_plain(other), self.mode)), len(others))
            kept = [*others[:at], entry, *others[at:]][: self.keep]
            if ctx.rank == 0:
                try:
                    self._commit(partial, name, kept)
                except Exception as caught:
                    error = caught
            message = first_error(error)
        if message is None:
            self._kept = kept
            return
        self.failures += 1
        self._leaving.append(name)  # where it came into its place, but not into best.json
        if ctx.rank == 0:
            self._failed(partial, reading, message)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": [dict(entry) for entry in self._kept]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept, self._loaded = [dict(entry) for entry in state["kept"]], True

    def _commit(self, partial: Path, name: str, kept: list[dict[str, Any]]) -> None:
        """Put the new checkpoint in place, then the file that names it, and only then remove old ones.

        What is about to happen is written down first, so that the next start can finish what a kill interrupts.
        """
        if not partial.exists():
            raise ValueError(f"save(path) wrote nothing at {partial}; it must write to exactly the path it is given")
        target, old = self.folder / name, self.folder / f"partial_old_{name}"
        paths = {entry["path"] for entry in kept}
        self._leaving = [path for path in (*self._leaving, *(e["path"] for e in self._kept)) if path not in paths]
        facts = {"metric": self.metric, "mode": self.mode, **kept[0], "monitor": self.reads[0].state_key}
        pending = self.folder / PENDING
        pending.write_text(json.dumps({**facts, "kept": kept, "leaving": self._leaving}, indent=2) + "\n")
        if target.exists():  # of an attempt that was killed; a folder that is not empty cannot be replaced in one move
            target.rename(old)
        partial.rename(target)
        pending.replace(self.folder / "best.json")
        with contextlib.suppress(OSError):  # the new one is safe, whatever becomes of the old
            _remove(old)
            self._remove_leaving()

    def _remove_leaving(self) -> None:
        for path in self._leaving:
            _remove(self.folder / path)
        self._leaving = []

    def _clear_away(self) -> None:
        """Finish or undo what a killed run had begun. Only files with names of our own are touched."""
        pending = self.folder / PENDING
        with contextlib.suppress(ValueError):  # half a file
            paths = [entry["path"] for entry in _read_json(pending).get("kept", [])]
            waiting = [path for path in paths if (self.folder / f"partial_{path}").exists()]
            if paths and not waiting and all((self.folder / path).exists() for path in paths):
                pending.replace(self.folder / "best.json")  # the new checkpoint was in place
        for left_over in self.folder.glob("partial_*"):
            if not _LEFT_OVER.fullmatch(left_over.name):
                continue
            target = self.folder / left_over.name.removeprefix("partial_old_")
            if left_over.name.startswith("partial_old_") and not target.exists():
                left_over.rename(target)
            else:
                _remove(left_over)
        found = _read_best(self.folder)
        named = {entry["path"] for entry in found.get("kept", [])}
        self._leaving = [path for path in found.get("leaving", []) if path not in named]
        self._remove_leaving()

    def _failed(self, partial: Path, reading: Reading, message: str) -> None:
        with contextlib.suppress(OSError):  # the folder may be what failed; the next start tries again
            _remove(partial)
        if self.failures == 1:
            have = f"the best on disk is still {in_words(self.best)}" if self._kept else "there is none on disk"
            warn(
                f"{self.state_key}: the checkpoint of {in_words(to_plain(reading))} was not saved, {have}: {message}. "
                "It tries again at the next better measurement; said once"
            )

    def _check_file(self, found: dict[str, Any]) -> None:
        ours = {"metric": self.metric, "mode": self.mode, "monitor": self.reads[0].state_key}
        theirs = {name: found.get(name) for name in ours}
        if found and theirs != ours:
            raise ValueError(
                f"{self.folder / 'best.json'} belongs to {theirs}, this is {ours}: give each its own folder"
            )


def _read_json(path: Path) -> dict[str, Any]:
    """What a `best.json` says; {} where there is none, `ValueError` where it is not one of ours."""
    if not path.exists():
        return {}
    try:
        found = parse_header(path.read_text())
        if not isinstance(found, dict) or not all({"step", "value", "path"} <= set(entry) for entry in found["kept"]):
            raise ValueError("it lacks metric, step, value or path")
        names = [str(name) for name in (*(entry["path"] for entry in found["kept"]), *found.get("leaving", []))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} was not written by BestCheckpoint, or is damaged: {error}") from error
    strange = [name for name in names if not _CHECKPOINT.fullmatch(name)]
    if strange:  # what it names would be deleted one day
        raise ValueError(f"{path} names {strange[0]!r}, which is no checkpoint of BestCheckpoint (step_00001000...)")
    return found


def _read_best(folder: Path) -> dict[str, Any]:
    """What `best.json` says, without checkpoints that somebody has removed; {} where there is none."""
    found = _read_json(folder / "best.json")
    if found:
        found["kept"] = [entry for entry in found["kept"] if (folder / entry["path"]).exists()]
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
