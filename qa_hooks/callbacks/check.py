"""A dry run of hooks: every sampler and every scorer is called once, and the report says what the run would do."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import is_another_range, range_hint
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key
from qa_hooks._base.reach import Traces
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Callback, Monitor
from qa_hooks.callbacks.measuring.monitor import MeasuringMonitor
from qa_hooks.callbacks.reward_guard.guard import RewardGuard
from qa_hooks.images import Range, RangeGuard
from qa_hooks.losses.loss import QALoss
from qa_hooks.penalties.penalty import CriticPenalty
from qa_hooks.scorers.score_source import first_refusal, score_each
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.reference_images import ReferenceImages, as_runs
from qa_hooks.sources.samples import (
    Sample,
    SampleSet,
    call_key,
    in_range,
    sample_blocks,
    sample_runs,
)
from qa_hooks.weighting.weighter import Weighter
from qa_hooks.writers import GuardedWriter


def check_run(callbacks: Iterable[Callback], writer: GuardedWriter, track: Mapping[str, Any]) -> str:
    """What a run with these callbacks would do, one line for each thing.

    Everything runs as it would in the run: in `isolated`, which leaves no trace. What fails is told and nothing is
    raised. A function that several monitors ask for the same images is tried once.
    """
    lines: list[str] = []
    tried: dict[tuple[int, ...], _Trial] = {}
    for callback in callbacks:
        lines.append(f"{callback!r}")
        lines += [f"    {line}" for line in _lines(callback, tried)]
    lines += [f"track {name}: {type(part).__name__}{_idle(part)}" for name, part in track.items()]
    return "\n".join([*lines, f"values go to {writer.check()}"])


def _idle(part: Any) -> str:
    """Why a loss, penalty or weighter will have no curve; "" where it will."""
    if not isinstance(part, QALoss | CriticPenalty | Weighter) or not part.is_off():
        return ""
    return "; it is SWITCHED OFF BY ITS WEIGHTS, computes nothing and has no curve (ScoreMonitor watches a score)"


class _Trial(NamedTuple):
    """A sampler's first block: its images, whether they come again, whether it drew from its generator, what it moved.

    `error` is what it raised instead.
    """

    runs: list[Tensor]
    same: bool = True
    drew: bool = True
    moved: list[str] | None = None
    error: str = ""


def _lines(callback: Callback, tried: dict[tuple[int, ...], _Trial]) -> Iterator[str]:
    if not isinstance(callback, Monitor):
        return
    looks = callback.looks if isinstance(callback, RewardGuard) else callback
    runs: list[Tensor] = []
    for name in ("sample", "images", "base"):
        sample = getattr(looks, name, None)
        if callable(sample) and not isinstance(sample, nn.Module):
            runs, line = _check_sample(name, sample, looks, tried)
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


def _try_sample(sample: Sample, count: int, seed: int) -> _Trial:
    traces, generator = Traces(sample), torch.Generator("cpu").manual_seed(mixed_key(seed, 0))
    unused = generator.get_state()
    try:
        runs = sample_runs(sample, count, seed, 0)
        again = sample_runs(sample, count, seed, 0)
        with isolated():
            as_runs(sample(count, generator))
    except Exception as error:
        return _Trial([], error=f"{type(error).__name__}: {error}")
    same = len(runs) == len(again) and all(map(torch.equal, runs, again))
    return _Trial(runs, same, not torch.equal(generator.get_state(), unused), traces.moved())


def _check_sample(
    name: str, sample: Sample, monitor: Any, tried: dict[tuple[int, ...], _Trial]
) -> tuple[list[Tensor], str]:
    """The first images of a sampler, in runs of one size, and what there is to say of its first calls."""
    count = getattr(monitor, "per_call", min(getattr(monitor, "batch_size", 64), getattr(monitor, "n", 64)))
    seed = getattr(monitor, "seed", 0)
    key = call_key(sample, count, seed, 0)
    trial = tried[key] = tried[key] if key in tried else _try_sample(sample, count, seed)
    runs, notes = trial.runs, []
    if trial.error:
        return [], f"{name} FAILS: {trial.error}"
    if lost := sum(int((~torch.isfinite(images)).flatten(1).any(1).sum()) for images in runs):
        return [], (
            f"{name} HOLDS NaN or infinity: {lost} of its first {plural(count, 'image')}, which the first measurement "
            "will refuse"
        )
    ends = [torch.aminmax(images.float()) for images in runs]
    low, high = min(float(end.min) for end in ends), max(float(end.max) for end in ends)
    if not trial.drew and trial.same and getattr(monitor, "truths", None) is None:
        notes.append("it leaves its generator unused, and the global ones are seeded for it")
    if not trial.same:
        notes.append("THE SAME SEED GIVES OTHER IMAGES: it draws from a generator of its own, or counts its calls")
    if trial.moved:
        notes.append(f"it moves {', '.join(trial.moved)}, which cannot be put back")
    images, kind = runs[0], str(runs[0].dtype).removeprefix("torch.")
    sizes = {tuple(run.shape[1:]) for run in runs}
    shape = tuple(images.shape) if len(sizes) == 1 else f"{count} images of {len(sizes)} sizes"
    text = f"{name}({count}, generator) gives {shape} {kind} in [{low:.3g}, {high:.3g}]"
    if images.is_floating_point():
        declared = getattr(monitor, "value_range", None)
        if declared is not None:
            text += f", declared ({declared[0]:g}, {declared[1]:g})"
            notes += _range_notes(torch.cat([run.flatten() for run in runs]), declared)
    n = getattr(monitor, "n", count)
    if n > count:  # further calls: with other noise, and for what is left
        two_calls = SampleSet(sample, count + (n % count or count), count, seed)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                for _ in sample_blocks(two_calls):
                    pass
            except Exception as error:
                return runs, f"{text}; THEN IT FAILS: {type(error).__name__}: {error}"
        notes += [f"WARNS: {warning.message}" for warning in told]
    return runs, "; ".join([text, *notes])


def _range_notes(values: Tensor, declared: Range) -> Iterator[str]:
    """What there is to say of values outside the declared range: how many there are, and what they look like."""
    low, high = (float(end) for end in torch.aminmax(values.float()))
    share = float(((values < declared[0]) | (values > declared[1])).double().mean())
    if is_another_range(values, declared):
        yield (
            f"THAT IS ANOTHER RANGE: value_range= says what the numbers mean, declare {range_hint(low, high)} "
            f"({share:.0%} of the values lie outside), unless the network is untrained and still finds its range"
        )
    elif max(declared[0] - low, high - declared[1]) > (declared[1] - declared[0]) / 4:
        yield f"{share:.1%} of the values overshoot that range, and are clamped"
    else:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            RangeGuard(declared)(predictions={"samples": values.reshape(1, 1, 1, -1)})
        yield from (f"WARNS: {warning.message}" for warning in told)


def _check_scorer(scorer: Scorer, runs: list[Tensor], truths: ReferenceImages | None) -> str:
    """What a scorer says of the first images that it does not refuse."""
    arrow, start, refusal = "higher" if scorer.higher_is_better else "lower", 0, ""
    for images in runs:
        try:
            compared = truths is not None and "reference" in scorer.inputs
            inputs = {"reference": truths.of(start, images)} if truths is not None and compared else {}
            with isolated():
                scores, refused = score_each(scorer, in_range(images, scorer.value_range), **inputs)
        except Exception as error:
            return f"{scorer.name} FAILS: {type(error).__name__}: {error}"
        known, start, refusal = scores[torch.isfinite(scores)], start + len(images), refusal or first_refusal(refused)
        if len(known):
            text = f"{scorer.name}: {float(known.min()):.4g} to {float(known.max()):.4g} on these, {arrow} is better"
            if refusal:
                return f"{text}; LEFT OUT: {refusal}"
            return (
                f"{text}; {len(scores) - len(known)} of {len(scores)} NOT FINITE" if len(known) < len(scores) else text
            )
    if runs:
        return f"{scorer.name} FAILS: {refusal or f'{start} of {start} NOT FINITE'}"
    return f"{scorer.name}: {arrow} is better; no images to try it on"


def _scorers(monitor: Any) -> list[Scorer]:
    values = list(vars(monitor).values())
    values += [part for value in values if isinstance(value, dict) for part in value.values()]
    return [value for value in values if isinstance(value, Scorer)]
