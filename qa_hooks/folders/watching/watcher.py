"""Score the samples that a training run writes, from beside it: what `qa-hooks watch` calls.

The trainer needs no change and cannot be harmed: its files are only read, nothing is locked, the log lies elsewhere.
The step comes from the names (`qa_hooks.sources.snapshots.step_of`). A step is scored once, when its files have stayed
as they are from one look to the next, or are old; files that cannot be read are tried again before they are left out.

LOG_DIR/events...      the curves, for TensorBoard
LOG_DIR/watch.json     every step's values; from it a watcher that was killed goes on
LOG_DIR/best.json      the best step and its files
LOG_DIR/alarms.jsonl   a line for each alarm
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.files import check_writable, write_text
from qa_hooks.evaluation.names import metric_name
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import (
    METRICS,
    Sets,
    check_metrics,
    estimate_metrics,
    higher_is_better,
)
from qa_hooks.features import create_extractor
from qa_hooks.folders.comparing.image_sets import ImageSet, add_features, add_scores, image_sets
from qa_hooks.folders.scoring.score_folder import Spec, name_scorers
from qa_hooks.folders.watching.alarms import find_alarms, parse_threshold
from qa_hooks.folders.watching.folder_guard import KEYS, FolderGuard
from qa_hooks.scorers import Scorer
from qa_hooks.sources.fingerprint import data_fingerprint
from qa_hooks.sources.snapshots import list_snapshots
from qa_hooks.writers import TensorBoardWriter, make_tag

FORMAT, VERSION = "qa_hooks.watch", 1
FEWEST = 20  # images of a step for which distances have an interval
TRIES = 3  # looks at a step with broken files
MANY = 20  # steps
Signature = tuple[tuple[str, int, int], ...]


@dataclass
class Watched:
    """What `watch_folder` returns when it ends.

    Attributes:
        steps: values by step: a scorer's name for its mean, `_std`; "fd", "kid", ..., `_low`, `_high`; "n".
        alarms: `{"step", "key", "message"}` of those raised by this call.
        best: `{"key", "mode", "step", "value", ...}`, or None.
    """

    steps: dict[int, dict[str, float]] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None


def watch_folder(
    folder: str | Path,
    *,
    scorers: Spec | Sequence[Spec] = (),
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
    batch_size: int = 32,
    device: str | torch.device | None = None,
    say: Callable[[str], None] = print,
) -> Watched:
    """Watch a folder of samples until interrupted, or until what is there now is scored.

    Args:
        folder: where the run writes; it may be empty or missing at first.
        scorers: whatever `create_scorer` takes; each image of a step is scored.
        real: real images; then the set metrics of each step with at least 20 images are measured too.
        extractor, metrics: for them: what `create_extractor` takes, and of "fd", "kid", "pr".
        every: seconds between two looks.
        once: score what is there and return; a step that is still being written is waited for once.
        log_dir: where the results go; outside `folder`. The same call with the same folder goes on.
        best: the key whose best step is kept in best.json; the first scorer's, or the first metric's, by default.
        mode: "min" or "max"; by default the direction of the key.
        alarms: "KEY<VALUE" or "KEY>VALUE", beside those that `qa_hooks.folders.watching.alarms` raises by itself.
        guard: also look for an exploited reward (`qa_hooks.folders.watching.folder_guard`); needs `real`.
        batch_size: images at a time.
        device: where networks run; None leaves them where they are. The run's own GPU may need its memory.
        say: takes a line for each step.

    Raises:
        ValueError: nothing to score by, an unknown key, a log folder inside `folder` or of another watch.
    """
    given = [scorers] if isinstance(scorers, (str, Path, Mapping, Scorer)) else list(scorers)
    named = name_scorers(given, device) if given else {}
    watcher = _Watcher(Path(folder), Path(log_dir), named, batch_size, device, say, once=once)
    if real is not None:
        watcher.use_real(real, extractor, check_metrics(metrics, ("fd", "kid", "pr")))
    if guard:
        watcher.use_guard()
    watcher.prepare(best, mode, alarms)
    looks = 0
    try:
        while True:
            pending = watcher.look(every, patient=not once)
            looks += 1
            if once and (not pending or looks > TRIES):
                break
            time.sleep(every)
    finally:
        watcher.close()
    if once and not watcher.result.steps:
        raise ValueError(watcher.missing or f"no step in {folder} could be scored")
    return watcher.result


class _Watcher:
    def __init__(
        self,
        folder: Path,
        log_dir: Path,
        scorers: dict[str, Scorer],
        batch_size: int,
        device: str | torch.device | None,
        say: Callable[[str], None],
        *,
        once: bool,
    ) -> None:
        if log_dir.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"log_dir={str(log_dir)!r} lies in the folder that is watched: choose another place")
        needing = [name for name, scorer in scorers.items() if "reference" in scorer.inputs]
        if needing:
            raise ValueError(f"{', '.join(needing)} needs a reference for each image, which samples do not have")
        check_writable(log_dir)
        self.folder, self.log_dir, self.scorers = folder, log_dir, scorers
        self.batch_size, self.device, self.say, self.once = batch_size, device, say, once
        self.missing = ""  # why the last look found nothing
        self.result = Watched()
        self.writer = TensorBoardWriter(log_dir)
        self.seen: dict[int, Signature] = {}
        self.tries: dict[int, int] = {}
        self.told: set[str] = set()
        self.written = False
        self.real: ImageSet | None = None
        self.extractor: Any = None
        self.metrics: tuple[str, ...] = ()
        self.guard: FolderGuard | None = None
        self.settings: dict[str, Any] = {
            "folder": str(folder.resolve()),
            "scorers": {name: scorer.fingerprint for name, scorer in scorers.items()},
        }

    # -- before the first look ---------------------------------------------------------------------------------------

    def use_real(self, real: str | Path, extractor: Any, metrics: tuple[str, ...]) -> None:
        self.extractor, self.metrics = create_extractor(extractor), metrics
        if self.device is not None:
            self.extractor.to(self.device)
        (self.real,) = image_sets([real], n=None, paired=False, seed=0)
        add_features(
            self.real, self.extractor, cache=self.log_dir / "features", batch_size=self.batch_size, progress=True
        )
        self.real.keep(self.real.readable().nonzero().flatten())
        self.settings |= {"extractor": self.extractor.fingerprint, "metrics": list(metrics)}
        self.settings |= {"real": data_fingerprint(real)}

    def use_guard(self) -> None:
        if self.real is None:
            raise ValueError("the guard against exploited rewards needs real images, real= (--real)")
        self.guard = FolderGuard(self.real.paths, self.extractor, batch_size=self.batch_size)
        self.settings |= {"guard": True}

    def prepare(self, best: str | None, mode: str | None, alarms: Sequence[str]) -> None:
        values = [value for metric in self.metrics for value in METRICS[metric].values]
        directions: dict[str, bool | None] = {n: s.higher_is_better for n, s in self.scorers.items()}
        directions |= {value: higher_is_better(value) for value in values}
        if not directions:
            raise ValueError("give scorers, or real images, to score by")
        self.directions = directions
        keys = dict(directions)
        keys |= dict.fromkeys((f"{name}_std" for name in self.scorers), None)
        keys |= dict.fromkeys((f"{value}{end}" for value in values for end in ("_low", "_high")), None)
        keys |= dict.fromkeys(KEYS if self.guard is not None else (), None)
        printed = {metric_name(value, self.extractor): value for value in values}  # "kd_random" for "kid"
        self.thresholds = [parse_threshold(text) for text in alarms]
        self.thresholds = [t._replace(key=printed.get(t.key, t.key)) for t in self.thresholds]
        self.best_key = printed.get(best, best) if best is not None else next(iter(directions))
        for key in (self.best_key, *(threshold.key for threshold in self.thresholds)):
            if key not in keys:
                raise ValueError(f"there is no value {key!r}; there are {', '.join(keys)}")
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        direction = keys[self.best_key]
        if mode is None and direction is None:
            raise ValueError(f"say with mode= (--mode) whether the smallest or the largest {self.best_key} is best")
        self.higher = mode == "max" if mode is not None else bool(direction)
        self.best_of_set = not any(self.best_key in (name, f"{name}_std") for name in self.scorers)
        self._load()

    def _load(self) -> None:
        path = self.log_dir / "watch.json"
        if not path.is_file():
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            known = state["format"] == FORMAT and state["version"] == VERSION
            settings, steps = state["settings"], {int(step): dict(v) for step, v in state["steps"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the state of a watch: {error}") from error
        different = sorted(k for k in {*settings, *self.settings} if settings.get(k) != self.settings.get(k))
        if not known or different:
            raise ValueError(
                f"{path} belongs to a watch with other settings ({', '.join(different) or 'another version'}): choose "
                "another log_dir, values of two settings cannot be compared"
            )
        self.result.steps = {
            step: {k: math.nan if v is None else v for k, v in v_.items()} for step, v_ in steps.items()
        }
        for step in sorted(self.result.steps):
            self._consider(step)
        if self.result.best is not None and not self._is_written(self.result.best):
            self._write_best([path for path, _, _ in self._scan().get(self.result.best["step"], [])])

    # -- a look ------------------------------------------------------------------------------------------------------

    def look(self, every: float, *, patient: bool) -> bool:
        """Score the steps that are finished; True when some are not.

        A last step with fewer files than steps have had is probably being written by a slow sampler: who is patient
        gives it ten times as long.
        """
        found = self._scan()
        if len(found) > MANY and all(len(files) == 1 for files in found.values()):
            self._tell(
                f"each of {len(found)} steps has one image: if the numbers in the names are those of images, give each "
                "step a folder of its own (step_001000/0001.png)"
            )
        usual = max((values["n"] for values in self.result.steps.values()), default=0)
        pending = False
        for step in sorted(found):
            signature = tuple(sorted(found[step]))
            unchanged = self.seen.get(step) == signature
            if not unchanged:
                self.tries[step] = 0
            self.seen[step] = signature
            if step in self.result.steps or self.tries[step] >= TRIES:
                continue
            age = time.time() - max(changed for _, _, changed in signature) / 1e9
            settled = unchanged or age > max(every, 1.0)
            if patient and len(signature) < usual and step == max(found) and age < 10 * every:
                settled = False
            try:
                finished = settled and self._score(step, [Path(path) for path, _, _ in signature])
            except (OSError, ValueError, RuntimeError) as error:
                self._tell(f"step {step} could not be scored: {error}")
                finished = False
            pending |= not finished and self.tries[step] < TRIES
        return pending

    def _scan(self) -> dict[int, list[tuple[str, int, int]]]:
        """Path, size and time of change of the files of each step."""
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                paths, steps = list_snapshots(self.folder)
        except (ValueError, OSError) as error:
            self.missing = str(error)
            if not self.once:
                self._tell(f"waiting: {error}")
            return {}
        for warning in caught:
            self._tell(str(warning.message).split(", the first")[0] + ": no step in their names")
        found: dict[int, list[tuple[str, int, int]]] = {}
        for path, step in zip(paths, steps, strict=True):
            try:
                status = path.stat()
            except OSError:  # the trainer has just removed or renamed it
                continue
            changed = max(status.st_mtime_ns, status.st_ctime_ns)
            found.setdefault(step, []).append((str(path), status.st_size, changed))
        return found

    def _score(self, step: int, paths: list[Path]) -> bool:
        """Measure a step and write it down; False when it has to be tried again."""
        started = time.perf_counter()
        self.tries[step] += 1
        images = ImageSet(str(step), self.folder, paths)
        quiet: dict[str, Any] = {"batch_size": self.batch_size, "progress": False}
        if self.extractor is not None and len(paths) >= FEWEST:
            add_features(images, self.extractor, cache=None, **quiet)
        if self.scorers:
            add_scores(images, self.scorers, reference=self.folder, first=len(paths), device=self.device, **quiet)
        if images.failures and self.tries[step] < TRIES:
            return False
        images.keep(images.readable().nonzero().flatten())
        values = self._values(images) if images.paths else {}
        known = any(math.isfinite(value) for key, value in values.items() if key in self.directions)
        if not known and not any(values.get(f"{name}_nonfinite") for name in self.scorers):
            self.tries[step] = TRIES
            reasons = [*images.failures.values(), *images.refused.values(), "no score is finite, or too few images"]
            self._tell(f"step {step} has no value: {reasons[0]}")
            return False
        found = find_alarms(step, values, self.result.steps, self.thresholds, list(self.scorers))
        found += self.guard.alarms(step, values, self.result.steps) if self.guard is not None else []
        for key, message in found:
            self._alarm(step, key, message)
        self._write(step, values, images)
        self.result.steps[step] = values
        if self._consider(step):
            self._write_best([str(path) for path in images.paths])
        self._save()
        left_out = f", {len(images.failures)} left out" if images.failures else ""
        seconds = time.perf_counter() - started
        self.say(f"step {step}: {self._line(values)} ({len(images.paths)} images{left_out}, {seconds:.1f} s)")
        return True

    def _values(self, images: ImageSet) -> dict[str, float]:
        values: dict[str, float] = {"n": len(images.paths)}
        for name in self.scorers:
            scores = images.scores[name]
            finite = scores[scores.isfinite()]
            values[name] = float(finite.mean()) if len(finite) else math.nan
            values[f"{name}_std"] = float(finite.std(unbiased=False)) if len(finite) else math.nan
            refused = sum(message.startswith(f"{name}: ") for message in images.refused.values())
            values[f"{name}_nonfinite"] = len(scores) - len(finite) - refused
            if refused:
                self._tell(f"images that have no score: {next(iter(images.refused.values()))}")
        if self.real is not None and len(images.paths) >= FEWEST and len(images.features):
            sets = Sets(Reference.of(self.real.features), images.features)
            for key, estimate in estimate_metrics(sets, self.metrics).items():
                interval = estimate.interval()
                values |= {key: interval.value, f"{key}_low": interval.low, f"{key}_high": interval.high}
        elif self.real is not None:
            self._tell(f"steps of fewer than {FEWEST} images have no {', '.join(self.metrics)}")
        if self.guard is not None:
            values |= self.guard.measure(images.paths, self.result.steps)
        return values

    # -- what comes of it --------------------------------------------------------------------------------------------

    def _write(self, step: int, values: dict[str, float], images: ImageSet) -> None:
        for name in self.scorers:
            finite = images.scores[name][images.scores[name].isfinite()]
            if len(finite):
                self.writer.histogram(make_tag("eval", name, "histogram"), finite, step)
        self._scalars(step, values)
        # The writer of a run that goes on has TensorBoard forget what comes after its first point.
        for other, past in sorted(self.result.steps.items()):
            if other > step and not self.written:
                self._scalars(other, past)
        self.written = True
        self.writer.flush()

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        for name in self.scorers:
            for stat, key in (("mean", name), ("std", f"{name}_std")):
                if math.isfinite(values[key]):
                    self.writer.scalar(make_tag("eval", name, stat), values[key], step)
            if values[f"{name}_nonfinite"]:
                self.writer.scalar(make_tag("eval", name, "nonfinite"), values[f"{name}_nonfinite"], step)
        for key in KEYS:
            if math.isfinite(values.get(key, math.nan)):
                self.writer.scalar(make_tag("eval", "guard", key.removeprefix("guard_")), values[key], step)
        for value in (v for metric in self.metrics for v in METRICS[metric].values):
            for end, stat in (("", "value"), ("_low", "low"), ("_high", "high")):
                if f"{value}{end}" in values:
                    name = f"{metric_name(value, self.extractor)}(n={int(values['n'])})"
                    self.writer.scalar(make_tag("eval", name, stat), values[f"{value}{end}"], step)

    def _consider(self, step: int) -> bool:
        """Whether the step is the best so far. Distances depend on n, so they are compared at the largest n only."""
        values, best = self.result.steps[step], self.result.best
        value, n = values.get(self.best_key, math.nan), int(values["n"])
        if not math.isfinite(value):
            return False
        if best is not None and self.best_of_set and best["n"] != n:
            self._tell(f"steps of other than {max(best['n'], n)} images are not compared by {self.best_key}")
            if n < best["n"]:
                return False
            best = None
        better = best is None or (value > best["value"] if self.higher else value < best["value"])
        if better:
            mode = "max" if self.higher else "min"
            self.result.best = {"key": self.best_key, "mode": mode, "step": step, "value": value, "n": n}
        return better

    def _write_best(self, files: list[str]) -> None:
        described = {**(self.result.best or {}), "files": files}
        write_text(self.log_dir / "best.json", json.dumps(described, indent=1))

    def _is_written(self, best: dict[str, Any]) -> bool:
        """Whether best.json says the same: it does not after a change of `best` or `mode`, or when it got lost."""
        try:
            written = json.loads((self.log_dir / "best.json").read_text(encoding="utf-8"))
            return all(written.get(key) == value for key, value in best.items())
        except (OSError, ValueError, AttributeError):
            return False

    def _save(self) -> None:
        steps = {
            step: {key: value if math.isfinite(value) else None for key, value in values.items()}
            for step, values in sorted(self.result.steps.items())
        }
        state = {"format": FORMAT, "version": VERSION, "settings": self.settings, "steps": steps}
        write_text(self.log_dir / "watch.json", json.dumps(state, indent=1))

    def _alarm(self, step: int, key: str, message: str) -> None:
        alarm = {"step": step, "key": key, "message": message}
        self.result.alarms.append(alarm)
        print(f"ALARM at step {step}: {message}", file=sys.stderr, flush=True)
        with (self.log_dir / "alarms.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(alarm) + "\n")

    def _line(self, values: dict[str, float]) -> str:
        parts = [f"{name} {values[name]:.4g} (std {values[f'{name}_std']:.3g})" for name in self.scorers]
        for value in (v for metric in self.metrics for v in METRICS[metric].values if v in values):
            name = metric_name(value, self.extractor)
            parts.append(f"{name} {values[value]:.4g} [{values[f'{value}_low']:.4g}, {values[f'{value}_high']:.4g}]")
        return ", ".join(parts)

    def _tell(self, message: str) -> None:
        """Say a thing once."""
        if message not in self.told:
            self.told.add(message)
            print(f"qa-hooks watch: {message}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self.writer.close()
