"""A dry run of hooks: every sampler and every scorer is called once, and the report says what the run would do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import range_hint
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key
from qa_hooks._base.reach import Traces
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Callback, Monitor
from qa_hooks.callbacks.measuring.monitor import MeasuringMonitor
from qa_hooks.callbacks.reward_guard.guard import RewardGuard
from qa_hooks.scorers.score_source import score_each
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.samples import GroundTruths, Sample, as_runs, in_range, sample_runs
from qa_hooks.writers import GuardedWriter


def check_run(callbacks: Iterable[Callback], writer: GuardedWriter, track: Mapping[str, Any]) -> str:
    """What a run with these callbacks would do, one line for each thing.

    Everything runs as it would in the run: in `isolated`, which leaves no trace. What fails is told and nothing is
    raised.
    """
    lines = []
    for callback in callbacks:
        lines.append(f"{callback!r}")
        lines += [f"    {line}" for line in _lines(callback)]
    for name, part in track.items():
        without = " (weight 0: it computes nothing and has no curve)" * (getattr(part, "weight", None) == 0)
        lines.append(f"track {name}: {type(part).__name__}{without}")
    return "\n".join([*lines, f"values go to {writer.check()}"])


def _lines(callback: Callback) -> Iterator[str]:
    if not isinstance(callback, Monitor):
        return
    looks = callback.looks if isinstance(callback, RewardGuard) else callback
    runs: list[Tensor] = []
    for name in ("sample", "images", "base"):
        sample = getattr(looks, name, None)
        if callable(sample) and not isinstance(sample, nn.Module):
            runs, line = _check_sample(name, sample, looks)
            yield line
    named = ("images", "reference") if looks is callback else ("name", "base")
    for value in (getattr(looks, name, None) for name in named):
        if isinstance(value, str) and getattr(looks, "sample", None) is None:
            yield f"takes the images {value!r} from hooks.step({value}=...) or hooks.capture({value!r}, module)"
    if isinstance(callback, MeasuringMonitor) and callback.where is not None:
        place = "the device of the images" if callback.where == "process" else callback.where
        yield f"computes in a process of its own, on {place}, while training goes on"
    for scorer in _scorers(looks):
        yield _check_scorer(scorer, runs, getattr(looks, "truths", None))
    yield from _rehearsed(looks, runs[0] if runs else None)


def _rehearsed(looks: Any, images: Tensor | None) -> list[str]:
    """What `rehearse` says, what it warns of, and what it raises."""
    lines: list[str] = []
    with isolated(), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            lines += looks.rehearse(images)
        except Exception as error:
            lines.append(f"the first measurement FAILS: {type(error).__name__}: {error}")
    return lines + [f"WARNS: {warning.message}" for warning in told]


def _check_sample(name: str, sample: Sample, monitor: Any) -> tuple[list[Tensor], str]:
    """The first images of a sampler, in runs of one size, and what there is to say of its first block."""
    count = getattr(monitor, "per_call", min(getattr(monitor, "batch_size", 64), getattr(monitor, "n", 64)))
    seed = getattr(monitor, "seed", 0)
    traces, generator = Traces(sample), torch.Generator("cpu").manual_seed(mixed_key(seed, 0))
    unused, notes = generator.get_state(), []
    try:
        runs = sample_runs(sample, count, seed, 0)
        again = sample_runs(sample, count, seed, 0)
        with isolated():
            as_runs(sample(count, generator))
    except Exception as error:
        return [], f"{name} FAILS: {type(error).__name__}: {error}"
    if lost := sum(int((~torch.isfinite(images)).flatten(1).any(1).sum()) for images in runs):
        return [], (
            f"{name} HOLDS NaN or infinity: {lost} of its first {plural(count, 'image')}, which the first measurement "
            "will refuse"
        )
    ends = [torch.aminmax(images.float()) for images in runs]
    low, high = min(float(end.min) for end in ends), max(float(end.max) for end in ends)
    same = len(runs) == len(again) and all(map(torch.equal, runs, again))
    if torch.equal(generator.get_state(), unused) and same and getattr(monitor, "truths", None) is None:
        notes.append("it leaves its generator unused, and the global ones are seeded for it")
    if not same:
        notes.append("THE SAME SEED GIVES OTHER IMAGES: it draws from a generator of its own, or counts its calls")
    if moved := traces.moved():
        notes.append(f"it moves {', '.join(moved)}, which cannot be put back")
    images, kind = runs[0], str(runs[0].dtype).removeprefix("torch.")
    sizes = {tuple(run.shape[1:]) for run in runs}
    shape = tuple(images.shape) if len(sizes) == 1 else f"{count} images of {len(sizes)} sizes"
    text = f"{name}({count}, generator) gives {shape} {kind} in [{low:.3g}, {high:.3g}]"
    if images.is_floating_point():
        declared = getattr(monitor, "value_range", None)
        text += "" if declared is None else f", declared ({declared[0]:g}, {declared[1]:g})"
        if (
            declared is not None
            and (width := declared[1] - declared[0])
            and (low < declared[0] - width / 4 or high > declared[1] + width / 4)
        ):
            notes.append(
                f"THAT IS ANOTHER RANGE: value_range= says what the numbers mean, declare {range_hint(low, high)} (an "
                "overshoot is clamped)"
            )
    return runs, "; ".join([text, *notes])


def _check_scorer(scorer: Scorer, runs: Sequence[Tensor], truths: GroundTruths | None) -> str:
    arrow = "higher" if scorer.higher_is_better else "lower"
    if not runs:
        return f"{scorer.name}: {arrow} is better; no images to try it on"
    truths, refusal, start = truths if "reference" in scorer.inputs else None, "", 0
    parts: list[Tensor] = []
    try:
        for images in runs:
            inputs = {"reference": truths.of(start, images)} if truths is not None else {}
            with isolated():
                scores, why = score_each(scorer, in_range(images, scorer.value_range), **inputs)
            parts, refusal, start = [*parts, scores], refusal or why, start + len(images)
    except Exception as error:
        return f"{scorer.name} FAILS: {type(error).__name__}: {error}"
    found = torch.cat(parts)
    finite = found[torch.isfinite(found)]
    if refusal and not len(finite):
        return f"{scorer.name} FAILS: {refusal}"
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)
    text = f"{scorer.name}: {low:.4g} to {high:.4g} on these, {arrow} is better"
    lost = f"; {len(found) - len(finite)} of {len(found)} NOT FINITE"
    return text + (lost + f", and left out: {refusal}" * bool(refusal)) * (len(finite) < len(found))


def _scorers(monitor: Any) -> list[Scorer]:
    values = list(vars(monitor).values())
    values += [part for value in values if isinstance(value, dict) for part in value.values()]
    return [value for value in values if isinstance(value, Scorer)]
