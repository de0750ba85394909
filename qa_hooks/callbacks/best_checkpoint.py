"""The decision which checkpoint to keep, the same on all ranks.

fd = GenerativeMonitor(...)
hooks = Hooks([fd, BestCheckpoint(fd, "fd", save=save, folder="best"),
               EarlyStop(fd, "fd", patience=10, certain=True)])
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_hooks._base.checks import check_call, check_count, warn
from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import first_error, shared, together
from qa_hooks.callbacks.best_file import LEFT_OVER, PENDING, check_wrote, read_best, read_json, remove
from qa_hooks.callbacks.callback import Callback, Context
from qa_hooks.callbacks.readings import MetricReader, Reading, from_plain, in_words, to_plain

Save = Callable[[Path], Any]


class BestCheckpoint(Callback):
    """Saves a checkpoint whenever a metric reaches a new best, and names the best checkpoint in `folder/best.json`.

    `best.json` holds metric, mode, value, low and high (its 95 % interval, where the monitor gives one), step, path
    (relative to the folder), monitor, spec (what the monitor says of how it measures), kept (the best few, best first)
    and leaving (checkpoints that are about to be removed; empty once they are gone). The checkpoint is written beside
    the old one and renamed, then `best.json` is replaced, then the old one goes: whenever a run is killed, `best.json`
    names a whole checkpoint, and the next start removes what the killed run was about to remove. None of this is part
    of the checkpoint that a run is resumed from; save that one yourself.

    A run that is resumed, or one that begins in the folder of another, goes on from what the folder holds: a better
    checkpoint is never replaced by a worse one. Where that is not what the loaded state says, it warns.

    A monitor that computes elsewhere (`where=`) knows the value of a step some steps later. Then `save` is called at
    each step that is measured, since later the weights are others; the copy waits in the folder, under a name that
    begins with "partial_", until the value is known, and becomes a checkpoint or is removed. There are at most two.

    When `save` fails it warns (once) that nothing was saved, keeps what it had, and tries again at the next measurement
    that is better than that.

    Args:
        monitor: what measures; it comes before this one in the list of callbacks.
        metric: a key of `monitor.last`.
        mode: "min" when lower is better, "max" otherwise; needed only where the monitor does not know, such as one of
            your own. One that contradicts the monitor is refused.
        save: `save(path)` writes a checkpoint to exactly this path: a file or a folder.
        folder: one for each run; inside its `log_dir` (`log_dir / "best"`), `qa-hooks report` finds it.
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
        >>> best = BestCheckpoint(psnr, "mean", save=save, folder=tempfile.mkdtemp(), suffix=".pt")
    """

    def __init__(
        self,
        monitor: Callback,
        metric: str,
        *,
        mode: str | None = None,
        save: Save,
        folder: str | Path,
        keep: int = 1,
        suffix: str = "",
        all_ranks: bool = False,
    ) -> None:
        self._watched = MetricReader(monitor, metric, mode)
        check_call("save", save, "save(path)", Path("checkpoint"))
        self.reads, self.metric, self.mode, self.save = (monitor,), metric, self._watched.mode, save
        self.keep, self.suffix, self.all_ranks = check_count("keep", keep), suffix, all_ranks
        self.folder = self.claims = Path(folder)
        check_writable(self.folder, name="folder")
        self._kept: list[dict[str, Any]] = []  # to_plain of each with its path; the best first
        self._leaving: list[str] = []  # paths of checkpoints that are no longer among the best, and not yet removed
        self._aside: dict[int, str] = {}  # what was saved at steps whose value is not known yet; "" where that failed
        self._loaded = False
        self.failures = 0
        self._check_file(read_best(self.folder))

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
                found = read_best(self.folder)
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
        if self.reads[0].awaits(ctx.step):
            self._set_aside(ctx.step)
            return
        reading = self._watched.new(ctx.step, spec=self.best.get("spec"))
        aside = self._aside.pop(ctx.step, "")
        last_kept = from_plain(self._kept[-1]) if len(self._kept) >= self.keep else None
        if reading is None or not reading.beats(last_kept, self.mode):
            self._drop(aside)
            return
        if ctx.late and not (aside and (self.folder / aside).exists()):
            self._missing(reading)
            return
        name = f"step_{ctx.step:08d}{self.suffix}"
        if any(
            entry["path"] == name for entry in self._kept
        ):  # of a run before; best.json names it until it is replaced
            name = f"step_{ctx.step:08d}_again{self.suffix}"
        partial = self.folder / (aside or f"partial_{name}")  # no dot in front: torch.save refuses such names
        error: Exception | None = None
        if not aside and (ctx.rank == 0 or self.all_ranks):
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
        self._leaving.append(name)  # where it came into its place, but not into best.json
        self._failed(partial, in_words(to_plain(reading)), message, say=ctx.rank == 0)

    def on_train_end(self, ctx: Context) -> None:
        for aside in self._aside.values():  # of a monitor that was switched off meanwhile
            self._drop(aside)
        self._aside = {}

    def state_dict(self) -> dict[str, Any]:
        kept = {"kept": [dict(entry) for entry in self._kept]}
        return {**kept, "aside": {str(step): name for step, name in self._aside.items()}} if self._aside else kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept, self._loaded = [dict(entry) for entry in state["kept"]], True
        aside = {int(step): str(name) for step, name in state.get("aside", {}).items()}
        self._aside = {step: name for step, name in aside.items() if LEFT_OVER.fullmatch(name)}  # it may be removed

    def _set_aside(self, step: int) -> None:
        """Save the weights of this step, whose value is not known yet."""
        partial = self.folder / f"partial_step_{step:08d}{self.suffix}"
        self._aside[step] = ""
        try:
            self.save(partial)
            check_wrote(partial)
            self._aside[step] = partial.name
        except Exception as error:
            self._failed(partial, f"step {step}", f"{type(error).__name__}: {error}", say=True)

    def _drop(self, aside: str) -> None:
        with contextlib.suppress(OSError):  # the next start tries again
            if aside:
                remove(self.folder / aside)

    def _missing(self, reading: Reading) -> None:
        """The value of an earlier step is the best, and its weights are not there any more."""
        if not self.failures:
            self.failures += 1
            warn(
                f"{self.state_key}: {in_words(to_plain(reading))} is better than what is kept, but came later, and no "
                "checkpoint was saved at that step: it is left out"
            )

    def _commit(self, partial: Path, name: str, kept: list[dict[str, Any]]) -> None:
        """Put the new checkpoint in place, then the file that names it, and only then remove old ones.

        What is about to happen is written down first, so that the next start can finish what a kill interrupts.
        """
        check_wrote(partial)
        target, old = self.folder / name, self.folder / f"partial_old_{name}"
        paths = {entry["path"] for entry in kept}
        self._leaving = [path for path in (*self._leaving, *(e["path"] for e in self._kept)) if path not in paths]
        facts = {"metric": self.metric, "mode": self.mode, **kept[0], "monitor": self.reads[0].state_key}
        pending = self._write_pending({**facts, "kept": kept, "leaving": self._leaving})
        if target.exists():  # of an attempt that was killed; a folder that is not empty cannot be replaced in one move
            target.rename(old)
        partial.rename(target)
        pending.replace(self.folder / "best.json")
        with contextlib.suppress(OSError):  # the new one is safe, whatever becomes of the old
            remove(old)
            self._remove_leaving()

    def _remove_leaving(self) -> None:
        """Remove the checkpoints that are no longer among the best, and then their names from `best.json`."""
        if not self._leaving:
            return
        for path in self._leaving:
            remove(self.folder / path)
        self._leaving = []
        self._write_pending({**read_json(self.folder / "best.json"), "leaving": []}).replace(self.folder / "best.json")

    def _write_pending(self, facts: dict[str, Any]) -> Path:
        pending = self.folder / PENDING
        pending.write_text(json.dumps(facts, indent=2) + "\n")
        return pending

    def _clear_away(self) -> None:
        """Finish or undo what a killed run had begun. Only files with names of our own are touched."""
        pending = self.folder / PENDING
        with contextlib.suppress(ValueError):  # half a file
            paths = [entry["path"] for entry in read_json(pending).get("kept", [])]
            waiting = [path for path in paths if (self.folder / f"partial_{path}").exists()]
            if paths and not waiting and all((self.folder / path).exists() for path in paths):
                pending.replace(self.folder / "best.json")  # the new checkpoint was in place
        for left_over in self.folder.glob("partial_*"):
            if not LEFT_OVER.fullmatch(left_over.name) or left_over.name in self._aside.values():
                continue
            target = self.folder / left_over.name.removeprefix("partial_old_")
            if left_over.name.startswith("partial_old_") and not target.exists():
                left_over.rename(target)
            else:
                remove(left_over)
        found = read_best(self.folder)
        named = {entry["path"] for entry in found.get("kept", [])}
        self._leaving = [path for path in found.get("leaving", []) if path not in named]
        self._remove_leaving()

    def _failed(self, partial: Path, what: str, message: str, *, say: bool) -> None:
        self.failures += 1
        if not say:
            return
        self._drop(partial.name)  # the folder may be what failed
        if self.failures == 1:
            have = f"the best on disk is still {in_words(self.best)}" if self._kept else "there is none on disk"
            warn(
                f"{self.state_key}: the checkpoint of {what} was not saved, {have}: {message}. "
                "It tries again at the next better measurement; said once"
            )

    def _check_file(self, found: dict[str, Any]) -> None:
        ours = {"metric": self.metric, "mode": self.mode, "monitor": self.reads[0].state_key}
        theirs = {name: found.get(name) for name in ours}
        if found and theirs != ours:
            raise ValueError(
                f"{self.folder / 'best.json'} belongs to {theirs}, this is {ours}: give each its own folder"
            )
