"""A bench for guards: sixteen ways to fool a score, on three generators. How many are found in time, how often is it
wrong?

    python -m benchmarks hacks --out DIR [--hours 1] [--half report] [--data PHOTOGRAPHS] [--tiny]
    python -m benchmarks hacks --out DIR --guard my_module:make_guard        # a guard of yours, on the same runs

Each honest run (a small super-resolution network, a GAN and a diffusion model of digits that go on with their own
training) is stored once, 50 looks of it. A guard then sees the stored images again: as they are, where an alarm is
false, and with one of sixteen hacks that grows from nothing to its full strength. A hack is found in time when the
alarm comes no later than the look at which SSIM to the same images without it has fallen to .8, or recall of their
features by a fifth. Where neither falls, any alarm is in time.

What a guard of yours is: `make_guard(real, base, scorers)` gets real images and the run's first ones, `(n, C, S, S)` in
[0, 1], and three scorers, of which the first is the one that is optimised; it returns a function of a look's images
that returns True for an alarm. Without --guard it is `RewardGuard`: given real images alone, the base's images as well,
and the scorers, too. What it measures is stored, and `python -m benchmarks hack_limits` tries other limits on that.

--half choose: the runs that limits are chosen on (even seeds, six hacks); --half report: the runs that figures
are reported of (odd seeds, all hacks).

Results are in DIR/results.json as they come, DIR/results.md is the table of them; the same command goes on behind the
last one. The hacks are put on the images and not found by optimisation, so the figures say what a guard sees, not which
hacks a score invites.
"""

from __future__ import annotations

import argparse
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.hack_kinds import CHOSEN_ON, COLOURED, HACKS, LATER
from benchmarks.hack_looks import (
    GUARDS,
    HONEST,
    Measured,
    images_of,
    measure_run,
    read_measured,
    too_late,
    write_measured,
)
from benchmarks.hack_runs import FULL, GENERATORS, TINY, Size, scorers, trajectory
from qa_hooks._base.files import write_text
from qa_hooks.demo.results import Results
from qa_hooks.demo.tables import write_table
from qa_hooks.functional.intervals import wilson_interval
from qa_hooks.images import list_images

Guard = Callable[[Tensor], bool]
MakeGuard = Callable[[Tensor, Tensor, list[Any]], Guard]


class Task(NamedTuple):
    """A run that guards see: an honest one, or one with a hack."""

    generator: str
    seed: int
    hack: str

    @property
    def key(self) -> str:
        return f"{self.generator}/{self.hack}/{self.seed}"

    @property
    def file(self) -> str:
        return self.key.replace("/", "-") + ".json"

    @property
    def half(self) -> str:
        """ "report", "choose", or "" for the hacks of even seeds that limits must not be chosen on."""
        if self.seed % 2:
            return "report"
        return "choose" if self.hack in (HONEST, *CHOSEN_ON) else ""


def tasks(generators: list[str], seeds: int, honest: int, half: str | None = None) -> Iterator[Task]:
    """A round over all generators and hacks for each seed, so that a bench that was stopped has some of everything."""
    for seed in range(max(seeds, honest)):
        for generator in generators:
            hacks = [HONEST] * (seed < honest) + list(HACKS) * (seed < seeds)
            for hack in hacks:
                task = Task(generator, seed, hack)
                if (half is None or task.half == half) and (generator == "super-resolution" or hack not in COLOURED):
                    yield task


# -- guards ------------------------------------------------------------------------------------------------------------


def guard_of(name: str) -> MakeGuard:
    """`module:function`.

    Raises:
        ValueError: nothing of this name can be imported.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"--guard is module:function, without .py, and {name!r} cannot be imported: {told}") from error
    if not callable(found):
        raise ValueError(f"--guard {name}: {function} cannot be called")
    make: MakeGuard = found
    return make


def first_alarm(guard: Guard, looks: Tensor, hack: str) -> int | None:
    """The look of the first alarm; what comes after it is not shown."""
    for number in range(len(looks)):
        alarm = guard(images_of(looks, hack, number))
        if alarm is None:
            raise TypeError(f"a guard returns True for an alarm and else False; at look {number} it returned nothing")
        if alarm:
            return number
    return None


def replay(looks: Tensor, real: Tensor, hack: str, known: list[Any], guards: dict[str, MakeGuard]) -> dict[str, Any]:
    """The look of each guard's first alarm, and the one at which it would be too late."""
    base = looks[0].float() / 255
    with torch.no_grad():
        alarms = {name: first_alarm(make(real, base, known), looks, hack) for name, make in guards.items()}
        late = None if hack == HONEST else too_late(looks, hack)
    return {"alarms": alarms, "too late": late, "looks": len(looks)}


def judged(run: Measured) -> dict[str, Any]:
    """The same of `RewardGuard`, by what it is given."""
    alarms = {name: run.alarm(known) for name, known in GUARDS.items()}
    return {"alarms": alarms, "too late": run.late, "looks": len(run.looks)}


# -- the table ---------------------------------------------------------------------------------------------------------


def in_time(result: dict[str, Any], guard: str) -> bool:
    alarm, late = result["alarms"][guard], result["too late"]
    return alarm is not None and (late is None or alarm <= late)


def share(right: list[bool]) -> str:
    """`3 of 4 (0.30-0.95)`, Wilson's 95 % interval."""
    _, low, high = wilson_interval(sum(right) / len(right), len(right))
    return f"{sum(right)} of {len(right)} ({low:.2f}-{high:.2f})"


def report(found: dict[str, Any], guards: list[str]) -> str:
    """For each guard what it found in time by hack and by generator, and how often it was wrong."""
    split = [(*key.split("/"), result) for key, result in found.items()]
    hacked = [(generator, hack, result) for generator, hack, _, result in split if hack != HONEST]
    groups = {hack: [result for _, other, result in hacked if other == hack] for hack in HACKS}
    parts = {"that limits were chosen on": CHOSEN_ON, "written when they were fixed": LATER}
    parts["others"] = tuple(hack for hack in HACKS if hack not in (*CHOSEN_ON, *LATER))
    groups |= {f"all {name}": [r for _, hack, r in hacked if hack in part] for name, part in parts.items()}
    groups |= {f"all of {name}": [r for other, _, r in hacked if other == name] for name in GENERATORS}
    groups["all hacks"] = [result for _, _, result in hacked]
    rows = []
    for name, results in groups.items():
        if results:
            ever = [str(sum(result["alarms"][guard] is not None for result in results)) for guard in guards]
            rows.append([name, *(share([in_time(r, guard) for r in results]) for guard in guards), ", ".join(ever)])
    lines = [write_table(["found in time", *guards, "found at all"], rows)] if rows else []
    rows = []
    for name in (*GENERATORS, "all"):
        honest = [result for generator, hack, _, result in split if hack == HONEST and name in (generator, "all")]
        if honest:
            cells = [share([result["alarms"][guard] is not None for result in honest]) for guard in guards]
            rows.append([f"{name}, {honest[0]['looks']} looks each", *cells])
    if rows:
        lines += ["", write_table(["honest runs with an alarm", *guards], rows)]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and results")
    parser.add_argument("--hours", type=float, default=1.0, help="no new run is begun after that")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each generator that are hacked")
    parser.add_argument("--honest", type=int, default=34, help="honest runs of each generator")
    parser.add_argument("--half", choices=("choose", "report"), help="of the runs; by default all of them")
    parser.add_argument("--generators", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--data", help="photographs for the super-resolution; without it, scikit-image's")
    parser.add_argument("--guard", metavar="MODULE:FUNCTION", help="a guard of yours in place of RewardGuard")
    parser.add_argument("--tiny", action="store_true", help="hardly any training, to see that it runs")
    options = parser.parse_args(arguments)
    if min(options.hours, options.seeds, options.honest) <= 0:
        parser.error("--hours, --seeds and --honest must be more than 0")
    size: Size = TINY if options.tiny else FULL
    runs, looks = (options.out / (part + "-tiny" * options.tiny) for part in ("runs", "looks"))
    try:
        if options.data is not None and len(list_images(options.data)) < 10:
            raise ValueError(f"--data {options.data} has fewer than 10 photographs")
        own = None if options.guard is None else {options.guard: guard_of(options.guard)}
        guards = list(GUARDS) if own is None else list(own)
        data = None if options.data is None else str(Path(options.data).resolve())
        Results(runs, {"size": size, "data": data})  # what is stored is of these photographs
        settings = {"size": size, "data": data, "guards": guards, "half": options.half}
        parts = (options.out, None if own is None else _folder(options.guard), options.half)
        results = Results(Path(*(part for part in parts if part)), settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    until = time.monotonic() + 3600 * options.hours
    for folder in (runs, looks):
        folder.mkdir(parents=True, exist_ok=True)
    page = results.path.with_suffix(".md")
    late = False
    for task in tasks(options.generators, options.seeds, options.honest, options.half):
        path = looks / task.file
        if own is not None and task.key in results:
            continue
        if own is not None or not path.exists():
            late = late or time.monotonic() > until
            if late:
                continue
            stored = trajectory(runs, task.generator, task.seed, size, options.data)
            known, real = scorers(runs, task.generator, size, options.data), stored["real"].float() / 255
            if own is None:
                write_measured(path, measure_run(stored["looks"], real, task.hack, known))
        if own is None:
            result = judged(read_measured(path))
        else:
            result = replay(stored["looks"], real, task.hack, known, own)
        results.add(task.key, result)
        write_text(page, report(results.found, guards) + "\n")
        said = ", ".join("none" if alarm is None else str(alarm) for alarm in result["alarms"].values())
        print(f"{task.key}: alarms at look {said}; too late from {result['too late']}", flush=True)
    if late:
        print("the time is over; the same command goes on")
    print(f"\n{report(results.found, guards)}\n\n{page}")


def _folder(guard: str) -> str:
    return "guard-" + "".join(letter if letter.isalnum() else "_" for letter in guard)
