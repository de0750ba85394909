"""Score the samples that training runs write, from beside them: what `qa-hooks watch` calls.

The trainer needs no change and cannot be harmed: its files are only read, nothing is locked, the log lies elsewhere.
The step comes from the names (`qa_hooks.sources.snapshots.step_of`). A step is scored once its files did not change
between two looks, or are older than `every` seconds (at least one second). Files that cannot be read are tried again
before they are left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.checks import check_options
from qa_hooks._base.files import check_writable, exclusive
from qa_hooks.evaluation.set_metrics import check_metrics
from qa_hooks.folders.scoring.score_folder import Spec, name_scorers
from qa_hooks.folders.scoring.tiles import find_references
from qa_hooks.folders.watching.folder_guard import FolderGuard
from qa_hooks.folders.watching.report import LOG
from qa_hooks.folders.watching.runs import Overview, check_single, run_places
from qa_hooks.folders.watching.steps import TRIES
from qa_hooks.folders.watching.watcher import KNOWN, RealImages, Watcher
from qa_hooks.sources.fingerprint import data_fingerprint

PAUSE = 2.0  # seconds between the looks of one that ends: a file that did not change meanwhile is whole, or broken


@dataclass
class WatchedFolder:
    """What `watch_folder` returns when it ends.

    Attributes:
        steps: the values of each step, by key:
            "{scorer}", "{scorer}_std": mean and standard deviation of a scorer's scores.
            "{scorer}_low", "{scorer}_high": the ends of the mean's 95 % interval, of more than one score.
            "fd", "kid", ...: a set metric, and "fd_low", "fd_high", ... the ends of its interval.
            "n": the number of images.
        alarms: `{"step", "key", "message"}` of each alarm raised by this call.
        best: `{"key", "mode", "step", "value", ...}`, or None.
    """

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


@dataclass
class WatchedRuns:
    """What `watch_folders` returns when it ends.

    Attributes:
        runs: each run by its name.
        best: the best step over all runs, as in `WatchedFolder`, with "run"; or None.
    """

    runs: dict[str, WatchedFolder] = field(default_factory=dict)
    best: dict[str, Any] | None = None


def watch_folder(
    folder: str | Path,
    *,
    scorers: Spec | Sequence[Spec] = (),
    reference: str | Path | None = None,
    real: str | Path | None = None,
    extractor: Any = "random",
    metrics: Sequence[str] = ("fd", "kid"),
    every: float = 30.0,
    once: bool = False,
    log_dir: str | Path = "runs/watch",
    best: str | None = None,
    mode: str | None = None,
    alarms: Sequence[str] = (),
    guard: bool = False,
    step: str | None = None,
    grid: str | None = None,
    batch_size: int = 32,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = LOG.info,
) -> WatchedFolder:
    """Watch a folder of samples until interrupted, or until what is there now is scored.

    Args:
        folder: where the run writes; it may be empty or missing at first.
        scorers: whatever `create_scorer` takes; each image of a step is scored.
        reference: ground truths, for scorers such as psnr: a folder with files of the samples' names without the step
            (`qa_hooks.folders.watching.ground_truths`): `baby.png` of `baby/baby_1000.png`, `0003.png` of
            `step_1000/0003.png`. An ending that all names of a step have is left out, too
            (`baby_1000_x2_SR.png`).
        real: real images; then the set metrics of each step with at least 20 images are measured too.
        extractor: what `create_extractor` takes; makes the features of the set metrics.
        metrics: some of "fd", "kid", "pr": the entries of `set_metrics.METRICS` that need no classifier and no scorer.
            "fd" takes all real images; "kid" all of them, or max(n, 2048) for n images of a step where there are more;
            "pr" n of them. The line of each step says how many, as do `{value}_real` in the state and the tags'
            descriptions.
        every: seconds between two looks.
        once: score what is there and return; a step that is still being written, or that cannot be read, is looked at
            again for a few seconds.
        log_dir: where the results go; outside `folder`. The same call with the same folder goes on.
        best: the key whose best step is kept in best.json; the first scorer's, or the first metric's, by default.
        mode: "min" or "max"; by default the direction of the key.
        alarms: "KEY<VALUE" or "KEY>VALUE", beside those that `qa_hooks.folders.watching.alarms` raises by itself.
        guard: also look for an exploited reward (`qa_hooks.folders.watching.folder_guard`); needs `real`.
        step: a regular expression whose first group is the step in a file's path below `folder`: `img_(\\d+)`.
        grid: cut each picture into the images that it is a grid of, as in `qa_hooks.sources.grids.find_images`.
        batch_size: images at a time.
        device: where networks run; None leaves them where they are. The run's own GPU may need its memory.
        say: takes a line for each step; the logger `qa_hooks.watch` by default, which also has alarms and remarks.

    Raises:
        ValueError: nothing to score by, an unknown key, a log folder inside `folder` or of another watch.
    """
    check_single(Path(log_dir))
    plan = Plan(
        scorers, reference, real, extractor, metrics, every, once, best, mode, alarms, guard, step, grid, batch_size,
        device, say,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        (watcher,) = plan.watchers(stack, {"": (Path(folder), Path(log_dir))}, Path(log_dir))
        plan.look([watcher])
    if once and not watcher.state.steps:
        raise ValueError(watcher.steps.missing or f"no step in {folder} could be scored")
    return _watched(watcher)


def watch_folders(folders: Sequence[str | Path], *, log_dir: str | Path = "runs/watch", **options: Any) -> WatchedRuns:
    """Watch the folders of several runs: each as `watch_folder` does, and one overview of them all.

    The runs have the shortest names that tell their paths apart. `log_dir` holds a folder for each run; `report.html`,
    one page with a curve for each run and its 95 % bands, made anew after each look that found something (matplotlib
    draws it); and `best.json`, the best step over all runs. `tensorboard --logdir LOG_DIR` shows the same curves.

    Args:
        folders: one for each run; none lies inside another.
        log_dir: where the results go. The same call goes on, also with further runs.
        options: of `watch_folder`. Real images are read once.

    Raises:
        TypeError: an option that `watch_folder` does not have.
        ValueError: as `watch_folder`; folders that are the same; a log folder of a watch of one folder.
    """
    check_options("watch_folders", options, Plan.__dataclass_fields__)
    log_dir, plan = Path(log_dir), Plan(**options)
    places = run_places([Path(folder) for folder in folders], log_dir)
    with contextlib.ExitStack() as stack:
        check_writable(log_dir)
        stack.enter_context(exclusive(log_dir / "best.json"))
        watchers = plan.watchers(stack, places, log_dir)
        overview = Overview(log_dir, watchers)
        plan.look(watchers, overview.update)
        for watcher in watchers:
            if not watcher.state.steps:
                watcher.report.tell(watcher.steps.missing or f"no step in {watcher.folder} could be scored")
    if plan.once and not any(watcher.state.steps for watcher in watchers):
        raise ValueError(watchers[0].steps.missing or f"no step in {', '.join(map(str, folders))} could be scored")
    return WatchedRuns({watcher.name: _watched(watcher) for watcher in watchers}, overview.best)


@dataclass(frozen=True)
class Plan:
    """What `watch_folder` was asked to do; see there."""

    scorers: Spec | Sequence[Spec] = ()
    reference: str | Path | None = None
    real: str | Path | None = None
    extractor: Any = "random"
    metrics: Sequence[str] = ("fd", "kid")
    every: float = 30.0
    once: bool = False
    best: str | None = None
    mode: str | None = None
    alarms: Sequence[str] = ()
    guard: bool = False
    step: str | None = None
    grid: str | None = None
    batch_size: int = 32
    device: str | torch.device | None = None
    say: Callable[[str], None] = LOG.info

    def watchers(
        self, stack: contextlib.ExitStack, places: Mapping[str, tuple[Path, Path]], log_dir: Path
    ) -> list[Watcher]:
        """A watcher for each run.

        Args:
            stack: closes them.
            places: the folder and the log folder of each run, by its name.
            log_dir: holds the features of the real images.
        """
        named = name_scorers(self.scorers, self.device, least=0)
        truths = find_references(self.reference, named)
        made = [Watcher(*place, named, self.batch_size, self.device, self.grid, n) for n, place in places.items()]
        for watcher in made:
            check_writable(watcher.log_dir)
            stack.enter_context(exclusive(watcher.log_dir / "watch.json"))
            watcher.begin(self.step, patient=not self.once)
            stack.callback(watcher.report.close)
            if self.reference is not None and truths is not None:
                watcher.use_truths(truths, data_fingerprint(self.reference))
        if self.real is not None:
            metrics = check_metrics(self.metrics, KNOWN)
            where: dict[str, Any] = {"cache": log_dir / "features", "device": self.device}
            real = RealImages.read(self.real, self.extractor, batch_size=self.batch_size, **where)
            for watcher in made:
                watcher.use_real(real, metrics)
        if self.guard:
            if self.real is None:
                raise ValueError("the guard against exploited rewards needs real images: give real=")
            guard = FolderGuard(real.images.paths, real.extractor, batch_size=self.batch_size)
            for watcher in made:
                watcher.use_guard(guard.fresh())
        for watcher in made:
            watcher.prepare(self.best, self.mode, self.alarms)
        return made

    def look(self, watchers: Sequence[Watcher], after: Callable[[], None] = lambda: None) -> None:
        """Look again and again, with `once` until everything is scored; `after` is called after each look at all."""
        looks = 0
        while True:
            for watcher in watchers:
                watcher.look(self.every, self.say)
            after()
            looks += 1
            if self.once and (not any(watcher.steps.pending for watcher in watchers) or looks > TRIES):
                return
            time.sleep(min(self.every, PAUSE) if self.once else self.every)


def _watched(watcher: Watcher) -> WatchedFolder:
    return WatchedFolder(watcher.state.steps, watcher.report.alarms, watcher.state.best)
