"""Which metric? Every scorer is tried on rated images of the user's kind, and each use gets a recommendation."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.checks import check_count
from qa_hooks.folders.scoring.score_folder import Spec, name_scorers
from qa_hooks.ratings.halving import successive_halving
from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.preference_reporting import together
from qa_hooks.ratings.reporting import check_choice, check_enough, report_agreement
from qa_hooks.ratings.scoring import Stimulus, score_stimuli
from qa_hooks.ratings.selection import USES, Selection
from qa_hooks.ratings.speed import milliseconds
from qa_hooks.ratings.tables import Preferences, Ratings
from qa_hooks.rewards import diagnose
from qa_hooks.rewards.doctor import REWARD, Diagnosis
from qa_hooks.scorers import Scorer


def select_metrics(
    opinions: Ratings | Preferences,
    scorers: Spec | Sequence[Spec],
    cache: str | Path,
    *,
    references: str | Path | None = None,
    uses: Sequence[str] = USES,
    phases: int = 1,
    statistics: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    cluster: str = "content",
    confidence: float = 0.95,
    batch_size: int = 16,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Selection:
    """Score rated images with every scorer, and say which one to take for which use.

    Args:
        opinions: of `read_ratings` or `read_preferences`, with `images=`.
        scorers: whatever `create_scorer` takes, one or several; they may need references or prompts, where the ratings
            have them.
        cache: a folder that keeps the scores by content: the same call goes on where an earlier one was stopped, and a
            further scorer costs only its own scores. A Python function is known by its name alone: give it another one
            when it has changed.
        references: the folder of the reference images that the ratings name.
        uses: of "monitor" (agrees best), "reward" (the best that the doctor calls usable as one), "cheap" (the fastest
            that cannot be told from the best).
        phases: more than 1: successive halving; metrics that fall behind on few contents are not scored on the others.
        statistics, by, cluster, confidence: as in `report_agreement`; the first statistic decides.
        batch_size, device, progress: as in `qa_hooks.folders.score_folder`.

    Raises:
        ValueError: opinions without images, a scorer that wants what the ratings do not have or that fails on most
            images, an unknown use, fewer than five contents.
    """
    if unknown := set(uses) - set(USES):
        raise ValueError(f"uses must be of {', '.join(USES)}, got {', '.join(sorted(unknown))}")
    check_count("phases", phases)
    told, _ = check_choice(opinions, statistics, by, cluster)  # before the scoring, which is the long work
    named = name_scorers(scorers, device, prompts=True)
    opinions, images = _with_images(opinions)
    check_enough(opinions, cluster)
    needed = any("reference" in scorer.inputs for scorer in named.values())
    stimuli = _stimuli(opinions, images, references if needed else None)
    problems: dict[str, dict[str, str]] = {}
    counts: dict[str, int] = {}

    def scored(names: Sequence[str], some: Ratings | Preferences) -> dict[str, Any]:
        own = [stimuli[name] for name in some.names]
        found, failed = score_stimuli(
            own, {name: named[name] for name in names}, cache, batch_size=batch_size, device=device, progress=progress
        )
        problems.update(failed)
        counts.update(dict.fromkeys(names, len({stimulus for stimulus in own if stimulus is not None})))
        return found

    def judge(names: list[str], contents: set[Hashable]) -> Mapping[str, float]:
        some = _part(opinions, labels, contents)
        report = report_agreement(
            some,
            scored(names, some),
            statistics=told[:1] if isinstance(some, Ratings) else None,
            by=() if _across(some) else ("content",),
            cluster=cluster,
            confidence=confidence,
            progress=False,
        )
        return {name: report.value(name).value for name in names}

    labels = _labels(opinions)
    every = list(dict.fromkeys(labels))
    history = successive_halving(list(named), every, judge, phases=phases)[:-1] if phases > 1 else []
    gone = {name for phase in history for name in phase.dropped}
    left = [name for name in named if name not in gone]
    report = report_agreement(
        opinions, scored(left, opinions), statistics=statistics, by=by, cluster=cluster, confidence=confidence,
        progress=progress,
    )  # fmt: skip
    times = {name: milliseconds(named[name], list(stimuli.values()), device) for name in left}
    recommended, diagnoses = _recommended(report.metrics, report.best, times, named, uses, progress)
    everything = len(named) * len({stimulus for stimulus in stimuli.values() if stimulus is not None})
    return Selection(report, recommended, times, diagnoses, history, problems, sum(counts.values()), everything)


def _recommended(
    ranked: Sequence[str],
    best: Sequence[str],
    times: Mapping[str, float],
    named: Mapping[str, Scorer],
    uses: Sequence[str],
    progress: bool,
) -> tuple[dict[str, str | None], dict[str, Diagnosis]]:
    found: dict[str, str | None] = {}
    diagnoses: dict[str, Diagnosis] = {}
    for use in uses:
        if use == "monitor":
            found[use] = best[0]
        elif use == "cheap":
            found[use] = min(best, key=lambda name: times[name])
        else:
            found[use] = None
            for name in [*best, *(name for name in ranked if name not in best)]:
                if named[name].inputs - {"reference"}:
                    continue  # the doctor's ladders say nothing of prompts
                diagnoses[name] = diagnose(named[name], progress=progress)
                if diagnoses[name].verdict == REWARD:
                    found[use] = name
                    break
    return found, diagnoses


def _with_images(opinions: Ratings | Preferences) -> tuple[Ratings | Preferences, dict[str, Path]]:
    """The opinions on images that are there, and their files."""
    places = opinions.images
    files = places if isinstance(places, dict) else dict(zip(opinions.names, places, strict=False))
    there = {name: path for name, path in files.items() if path is not None}
    if not there:
        raise ValueError("these opinions have no images: read them with images=FOLDER")
    if isinstance(opinions, Preferences):
        kept = [pair for pair in opinions.pairs if pair.a in there and pair.b in there]
        return replace(opinions, pairs=kept), there
    return opinions.select([row for row, name in enumerate(opinions.names) if name in there]), there


def _stimuli(
    opinions: Ratings | Preferences, images: Mapping[str, Path], references: str | Path | None
) -> dict[str, Stimulus]:
    """What is scored, by the name of the image."""
    if isinstance(opinions, Preferences):
        prompts = {name: pair.content for pair in opinions for name in (pair.a, pair.b)}
        return {name: Stimulus(images[name], prompt=prompts[name]) for name in opinions.names}
    by_name: dict[str, Path] = {}
    if references is not None and opinions.reference:
        wanted = list(dict.fromkeys(name for name in opinions.reference if name))
        try:
            places = find_images(wanted, references, shared=True)
        except ValueError as error:
            raise ValueError(f"the references: {error}; their folder is --references (references=)") from error
        by_name = {name: place for name, place in zip(wanted, places, strict=True) if place is not None}
    found = {}
    for row, name in enumerate(opinions.names):
        reference = by_name.get(opinions.reference[row]) if opinions.reference else None
        found[name] = Stimulus(images[name], reference, opinions.prompt[row] if opinions.prompt else "")
    return found


def _labels(opinions: Ratings | Preferences) -> list[Hashable]:
    """The content of each row; an image whose content is not known is on its own."""
    if isinstance(opinions, Preferences):
        return together(opinions.pairs)
    return opinions.together()


def _part(
    opinions: Ratings | Preferences, labels: Sequence[Hashable], contents: set[Hashable]
) -> Ratings | Preferences:
    kept = [row for row, label in enumerate(labels) if label in contents]
    if isinstance(opinions, Preferences):
        return replace(opinions, pairs=[opinions.pairs[row] for row in kept])
    return opinions.select(kept)


def _across(opinions: Ratings | Preferences) -> bool:
    return isinstance(opinions, Preferences) or opinions.across_contents
