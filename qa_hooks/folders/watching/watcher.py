"""One run that is watched: its finished steps are scored once each.

`steps` finds the files of each step, `state` remembers what was scored, `report` writes the results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qa_hooks._base.text import plural
from qa_hooks.callbacks.pictures import meaning_of, scorer_spec
from qa_hooks.evaluation.measure import measure
from qa_hooks.evaluation.reference import Reference, kept_rows
from qa_hooks.evaluation.set_metrics import METRICS, higher_is_better, metric_name
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.folders.comparing.image_sets import ImageSet, add_features, add_scores, image_sets
from qa_hooks.folders.scoring.tiles import References
from qa_hooks.folders.watching.alarms import broken_shares, find_alarms, parse_threshold
from qa_hooks.folders.watching.folder_guard import KEYS, FolderGuard
from qa_hooks.folders.watching.ground_truths import names_without_step, truth_of
from qa_hooks.folders.watching.report import Report
from qa_hooks.folders.watching.state import Goal, State
from qa_hooks.folders.watching.steps import Steps
from qa_hooks.functional.intervals import bootstrap_interval
from qa_hooks.scorers import Scorer
from qa_hooks.sources.fingerprint import data_fingerprint
from qa_hooks.sources.grids import cut, grid_remark
from qa_hooks.writers import BETTER, Meaning

LOOKED_AT = 3  # steps whose pictures may be grids
FEWEST_OF_STEP = 20  # images of a step that is measured by set metrics
KNOWN = tuple(key for key, metric in METRICS.items() if not metric.needs)  # no classifier or scorer is at hand


class RealImages(NamedTuple):
    """Real images with their features, which all runs share.

    Attributes:
        images: the files that can be read.
        extractor: of the features.
        data: the fingerprint of the images.
        reference: the statistics of their features.
    """

    images: ImageSet
    extractor: FeatureExtractor
    data: str
    reference: Reference

    @classmethod
    def read(
        cls, real: str | Path, extractor: Any, *, cache: Path, batch_size: int, device: str | torch.device | None
    ) -> RealImages:
        """Extract the features, or take them from the folder `cache`."""
        made = create_extractor(extractor)
        if device is not None:
            made.to(device)
        (images,) = image_sets([real], n=None, paired=False, seed=0)
        add_features(images, made, cache=cache, batch_size=batch_size, progress=True)
        images.keep(images.readable().nonzero().flatten())
        data = data_fingerprint(real)
        return cls(images, made, data, Reference.of(images.features, extractor=made.fingerprint, data=data))


class Watcher:
    """Scores the steps that are finished; see `watch_folder` for what its parts are given.

    Args:
        name: of the run, where there are several.
    """

    def __init__(
        self,
        folder: Path,
        log_dir: Path,
        scorers: dict[str, Scorer],
        batch_size: int,
        device: str | torch.device | None,
        grid: str | None,
        name: str = "",
    ) -> None:
        self.name = name
        if log_dir.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"log_dir={str(log_dir)!r} lies in the folder that is watched: choose another place")
        self.folder, self.log_dir, self.scorers = folder, log_dir, scorers
        self.batch_size, self.device, self.grid = batch_size, device, grid
        self._said_grid = False
        self.truths: References | None = None
        self._said_endings = {""}
        self.real: Reference | None = None
        self.extractor: Any = None
        self.metrics: tuple[str, ...] = ()
        self.guard: FolderGuard | None = None
        self.settings: dict[str, Any] = {
            "folder": str(folder.resolve()),
            "scorers": {name: scorer.fingerprint for name, scorer in scorers.items()},
        }
        if grid is not None:
            self.settings |= {"grid": grid}

    def begin(self, step: str | None, *, patient: bool) -> None:
        """Open the log, in which nobody else writes."""
        self.report = Report(self.log_dir, self.name)
        self.steps = Steps(self.folder, pattern=step, patient=patient, tell=self.report.tell)
        if step is not None:
            self.settings |= {"step": step}

    def use_truths(self, find: References, data: str) -> None:
        """Also compare with ground truths; `data` is the fingerprint of their folder."""
        self.truths = find
        self.settings |= {"reference": data}

    def use_real(self, real: RealImages, metrics: tuple[str, ...]) -> None:
        """Also measure distances to real images."""
        self.real, self.extractor, self.metrics = real.reference, real.extractor, metrics
        self.settings |= {"extractor": self.extractor.fingerprint, "metrics": list(metrics), "real": real.data}

    def use_guard(self, guard: FolderGuard) -> None:
        """Also look for an exploited reward."""
        self.guard = guard
        self.settings |= {"guard": True}

    def prepare(self, best: str | None, mode: str | None, alarms: Sequence[str]) -> None:
        """Check what is asked for and take up the state of an earlier watch."""
        values = [value for metric in self.metrics for value in METRICS[metric].values]
        directions: dict[str, bool | None] = {n: s.higher_is_better for n, s in self.scorers.items()}
        directions |= {value: higher_is_better(value) for value in values}
        if not directions:
            raise ValueError("there is nothing to score by: give scorers= or real=")
        self.directions = directions
        others = [f"{name}_std" for name in self.scorers]
        others += [f"{value}{end}" for value in directions for end in ("_low", "_high")]
        others += KEYS if self.guard is not None else ()
        keys = {**directions, **dict.fromkeys(others)}
        self.report.scorers = list(self.scorers)
        self.report.metrics = {value: metric_name(value, self.extractor) for value in values}
        for name, scorer in self.scorers.items():
            truths = self.settings.get("reference", "") if "reference" in scorer.inputs else ""
            meaning = meaning_of(scorer, scorer_spec(scorer, truths), "mean score of a step's images")
            self.report.about[name] = meaning._replace(better=self._better(name))
        by_printed = {name: value for value, name in self.report.metrics.items()}
        self.thresholds = [parse_threshold(text) for text in alarms]
        self.thresholds = [t._replace(key=by_printed.get(t.key, t.key)) for t in self.thresholds]
        key = by_printed.get(best, best) if best is not None else next(iter(directions))
        for asked in (key, *(threshold.key for threshold in self.thresholds)):
            if asked not in keys:
                raise ValueError(f"there is no value {asked!r}; there are {', '.join(keys)}")
        goal = self._goal(key, mode, keys[key])
        self.state = State(self.log_dir, self.settings, goal, self.report.tell)
        before = [v for v in self.state.steps.values() if "kid" in v and "kid_real" not in v]
        if before and self.real is not None and self.real.count > kept_rows(0):
            self.report.tell(
                f"{self.report.metrics['kid']} of {plural(len(before), 'earlier step')} is a distance to all "
                f"{self.real.count} real images, and from here on to fewer: give another log_dir to compare them"
            )
        if self.state.best is not None and not self.state.best_is_written():
            self.state.write_best([path for path, _, _ in self.steps.files().get(self.state.best["step"], ())])

    def _better(self, key: str) -> str:
        return BETTER[self.directions[key]]

    def _goal(self, key: str, mode: str | None, known: bool | None) -> Goal:
        """What the best step is best by; `known` says whether higher is better, where that is known."""
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        if mode is None and known is None:
            raise ValueError(f"say with mode= whether the smallest or the largest {key} is best")
        of_a_set = not any(key in (f"{n}{end}" for end in ("", "_std", "_low", "_high")) for n in self.scorers)
        return Goal(key, bool(known) if mode is None else mode == "max", of_a_set)

    def look(self, every: float, say: Callable[[str], None]) -> None:
        """Score the steps that are finished, and say a line of each."""
        for step, paths in self.steps.look(every, self.state.steps):
            started = time.perf_counter()
            try:
                images = self._measure(step, paths)
                if images is not None:
                    self._note(step, images, started, say)
            except (OSError, ValueError, RuntimeError) as error:
                self.report.tell(f"step {step} could not be scored: {error}")

    def _measure(self, step: int, paths: list[Path]) -> ImageSet | None:
        """Features and scores of a step's images; None when files are broken and it may be tried again."""
        if self.grid is not None:
            paths = cut(paths, self.grid)
        elif not self._said_grid and len(self.state.steps) < LOOKED_AT and (remark := grid_remark(paths)):
            self._said_grid = True  # it names the picture, so that each step's would be another remark
            self.report.tell(remark)
        images = ImageSet(str(step), self.folder, paths)
        quiet: dict[str, Any] = {"batch_size": self.batch_size, "progress": False}
        if self.extractor is not None and len(paths) >= FEWEST_OF_STEP:
            add_features(images, self.extractor, cache=None, **quiet)
        if self.scorers:
            truths = None if self.truths is None else self._truths_of(self.truths, step, images)
            add_scores(images, self.scorers, references=truths, first=len(paths), device=self.device, **quiet)
        if images.failures and self.steps.may_try_again(step):
            return None
        images.keep(images.readable().nonzero().flatten())
        return images

    def _truths_of(self, truths: References, step: int, images: ImageSet) -> Callable[[str], Path]:
        """The ground truth of each image of a step; an ending that all its names have and the truths not is told."""
        find = truths.of(names_without_step(images.name(path), step) for path in images.paths)
        if find.ending not in self._said_endings:
            self._said_endings.add(find.ending)
            self.report.tell(find.remark)
        return lambda name: truth_of(name, step, find)

    def _note(self, step: int, images: ImageSet, started: float, say: Callable[[str], None]) -> None:
        """Alarms, curves, the state and the line of a step that was measured."""
        history = self.state.steps
        values = self._values(images) if images.paths else {}
        known = any(math.isfinite(value) for key, value in values.items() if key in self.directions)
        if not known and not any(values.get(f"{name}_nonfinite") for name in self.scorers):
            self.steps.give_up(step)
            reasons = [*images.failures.values(), *images.refused.values(), "no score is finite, or too few images"]
            self.report.tell(f"step {step} has no value: {reasons[0]}")
            return
        found = find_alarms(step, values, history, self.thresholds, list(self.scorers))
        found += self.guard.alarms(step, values, history) if self.guard is not None else []
        for key, message in found:
            self.report.alarm(step, key, message)
        self.report.write(step, values, images.scores, history)
        self.state.add(step, values, [str(path) for path in images.paths])
        say(self.report.line(step, values, left_out=len(images.failures), seconds=time.perf_counter() - started))

    def _values(self, images: ImageSet) -> dict[str, float]:
        values: dict[str, float] = {"n": len(images.paths)}
        for name in self.scorers:
            scores = images.scores[name]
            finite = scores[scores.isfinite()]
            values[name] = float(finite.mean()) if len(finite) else math.nan
            values[f"{name}_std"] = float(finite.std(unbiased=False)) if len(finite) else math.nan
            if len(finite) > 1:
                interval = bootstrap_interval(finite)
                values |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
            refused = sum(message.startswith(f"{name}: ") for message in images.refused.values())
            values[f"{name}_nonfinite"] = len(scores) - len(finite) - refused
            if refused:
                self.report.tell(f"images that have no score: {next(iter(images.refused.values()))}")
        if self.real is not None and len(images.paths) >= FEWEST_OF_STEP and len(images.features):
            for key, found in measure(images.features, self.real, self.metrics, extractor=self.extractor).items():
                values |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
                values[f"{key}_real"] = found.real
                counts = f"{plural(found.n, 'image')} of a step against {found.real} real ones"
                better = self._better(key)
                self.report.about[key] = Meaning(counts, found.spec, better=better, doubt=found.doubt)
        elif self.real is not None:
            self.report.tell(f"steps of fewer than {FEWEST_OF_STEP} images have no {', '.join(self.metrics)}")
        values |= broken_shares(images.paths)
        if self.guard is not None:
            values |= self.guard.measure(images.paths, self.state.steps)
        return values
