"""Several runs that are watched together: their names and places, one page, and the best step over all of them.

LOG_DIR/RUN/...        what the watch of one run writes
LOG_DIR/report.html    a curve for each run
LOG_DIR/best.json      the best step over all runs
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qa_hooks._base.files import write_text
from qa_hooks._base.headers import parse_header
from qa_hooks.folders.labels import labels
from qa_hooks.folders.reporting.report import report_runs
from qa_hooks.folders.watching.watcher import Watcher

BEST, PAGE = "best.json", "report.html"


def run_places(folders: Sequence[Path], log_dir: Path) -> dict[str, tuple[Path, Path]]:
    """The folder and the log folder of each run, by its name.

    Raises:
        ValueError: no folders, equal ones, one inside another, or a log folder of a watch of one folder.

    Example:
        >>> list(run_places([Path("runs/a/samples"), Path("runs/b/samples")], Path("watch")))
        ['a', 'b']
    """
    if not folders:
        raise ValueError("give the folder of at least one run")
    resolved = [folder.resolve() for folder in folders]
    for number, one in enumerate(resolved):
        for other in resolved[:number]:
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise ValueError(f"{one} and {other} are one folder, or one lies in the other: give each run its own")
    if (log_dir / "watch.json").is_file():
        raise ValueError(f"{log_dir} holds the watch of one folder: choose another log_dir for several runs")
    inside = next((folder for folder in folders if log_dir.resolve().is_relative_to(folder.resolve())), None)
    if inside is not None:
        raise ValueError(f"log_dir={str(log_dir)!r} lies in {inside}, which is watched: choose another place")
    tails = [folder.parts for folder in resolved]
    while len(tails) > 1 and len({parts[-1] for parts in tails}) == 1 and all(len(parts) > 2 for parts in tails):
        tails = [parts[:-1] for parts in tails]  # "samples" of each
    names = labels([Path(*parts) for parts in tails])
    return {name: (folder, log_dir / name) for name, folder in zip(names, folders, strict=True)}


def check_single(log_dir: Path) -> None:
    """`ValueError` for the log folder of several runs."""
    if "run" in _read(log_dir / BEST):
        raise ValueError(f"{log_dir} holds the watch of several runs: choose another log_dir for one folder")


class Overview:
    """The page and the best step of several runs.

    Args:
        log_dir: where they go.
        watchers: of the runs, which are judged by one key.

    Attributes:
        best: the best step, with "run"; None before the first.
    """

    def __init__(self, log_dir: Path, watchers: Sequence[Watcher]) -> None:
        self.log_dir, self.watchers = log_dir, list(watchers)
        self.best: dict[str, Any] | None = None
        self._known = -1

    def update(self) -> None:
        """Write both anew, where steps have come."""
        known = sum(len(watcher.state.steps) for watcher in self.watchers)
        if known == self._known:
            return
        try:
            self._write_best()
            self._write_page()
            self._known = known
        except OSError as error:  # a full disk; tried again at the next look
            self.watchers[0].report.tell(f"the overview could not be written: {error}")

    def _write_best(self) -> None:
        found = [watcher for watcher in self.watchers if watcher.state.best is not None]
        goal = self.watchers[0].state.goal
        values = {watcher.name: watcher.state.best or {} for watcher in found}
        most = max((best["n"] for best in values.values()), default=0)
        if goal.of_a_set and any(best["n"] != most for best in values.values()):
            self.watchers[0].report.tell(f"runs with steps of fewer than {most} images are not compared by {goal.key}")
            values = {name: best for name, best in values.items() if best["n"] == most}
        if not values:
            return
        pick = max if goal.higher else min
        name = pick(values, key=lambda name: float(values[name]["value"]))
        self.best = {"run": name, **values[name]}
        winner = next(watcher for watcher in found if watcher.name == name)
        files = _read(winner.state.best_path).get("files", [])
        write_text(self.log_dir / BEST, json.dumps({**self.best, "files": files}, indent=1))

    def _write_page(self) -> None:
        runs = [watcher.log_dir for watcher in self.watchers if watcher.state.steps]
        headline = ""
        if self.best is not None:
            headline = "best: {run}, step {step}, {key} {value:.4g}".format(**self.best)
        try:
            if runs:
                report_runs(runs, self.log_dir / PAGE, headline=headline)
        except (ImportError, ValueError) as error:
            self.watchers[0].report.tell(f"there is no page of all runs: {error}")


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_header(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
