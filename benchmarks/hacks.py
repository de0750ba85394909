"""A bench for guards: twelve ways to fool a score, on three generators. How many are found in time, how often is it
wrong?

    python -m benchmarks hacks --out DIR [--hours 1] [--seeds 5] [--honest 100] [--data PHOTOGRAPHS] [--tiny]
    python -m benchmarks hacks --out DIR --guard my_module:make_guard        # a guard of yours, on the same runs

Each honest run (a small super-resolution network, a GAN and a diffusion model of digits that go on with their own
training) is stored once, 50 looks of it. A guard then sees the stored images again: as they are, where an alarm is
false, and with one of twelve hacks that grows from nothing to its full strength. A hack is found in time when the alarm
comes no later than the look at which SSIM to the same images without it has fallen to .8, or recall of their features
by a fifth. Where neither falls, any alarm is in time.

What a guard of yours is: `make_guard(real, base, scorers)` gets real images and the run's first ones, `(n, C, S, S)` in
[0, 1], and three scorers, of which the first is the one that is optimised; it returns a function of a look's images
that returns True for an alarm. Without --guard it is `RewardGuard`, from images alone and with everything.

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

from benchmarks.hack_kinds import COLOURED, HACKS, hacked
from benchmarks.hack_runs import FULL, GENERATORS, TINY, Size, scorers, trajectory
from benchmarks.results import Results
from qa_hooks._base.files import write_text
from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.demo.tables import write_table
from qa_hooks.features import create_extractor
from qa_hooks.functional import precision_recall, ssim
from qa_hooks.functional.intervals import wilson_interval
from qa_hooks.images import list_images

HONEST = "honest"
FALLEN = 0.8  # of SSIM, and of the recall there was
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


# -- guards ------------------------------------------------------------------------------------------------------------


def from_images_alone(real: Tensor, base: Tensor, known: list[Any]) -> Guard:
    return _reward_guard(base, real=real)


def with_everything(real: Tensor, base: Tensor, known: list[Any]) -> Guard:
    return _reward_guard(base, known[0], known[1:], base=lambda n, _: base[:n], real=real)


def _reward_guard(first: Tensor, *arguments: Any, **options: Any) -> Guard:
    shown = [first]
    guard = RewardGuard(
        *arguments, sample=lambda n, _: shown[0][:n], n=len(first), every=1, value_range=(0, 1), **options
    )
    hooks = Hooks([guard])

    def look(images: Tensor) -> bool:
        shown[0], before = images, guard.alarms
        hooks.step()
        if guard.last.get("step") is None:
            raise RuntimeError("the guard did not look")
        return guard.alarms > before

    return look


OURS: dict[str, MakeGuard] = {
    "RewardGuard, images alone": from_images_alone,
    "RewardGuard, with everything": with_everything,
}


def guard_of(name: str) -> MakeGuard:
    """`module:function`.

    Raises:
        ValueError: nothing of this name can be imported.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--guard is module:function, and {name!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ValueError(f"--guard {name}: {function} cannot be called")
    make: MakeGuard = found
    return make


# -- replaying ---------------------------------------------------------------------------------------------------------


def images_of(looks: Tensor, hack: str, number: int) -> Tensor:
    """Look `number` of a run, with the hack as strong as it is by then."""
    clean = looks[number].float() / 255
    images = clean if hack == HONEST else hacked(clean, hack, number / (len(looks) - 1))
    return (images * 255).round() / 255


def first_alarm(guard: Guard, looks: Tensor, hack: str) -> int | None:
    """The look of the first alarm; what comes after it is not shown."""
    return next((number for number in range(len(looks)) if guard(images_of(looks, hack, number))), None)


def too_late(looks: Tensor, hack: str) -> int | None:
    """The first look at which SSIM, or recall, has fallen to `FALLEN` of what it was; None if that never happens."""
    extractor = create_extractor("random")
    for number in range(len(looks)):
        clean, images = looks[number].float() / 255, images_of(looks, hack, number)
        if float(ssim(images, clean).mean()) <= FALLEN:
            return number
        features = [extractor(part) for part in (clean, images)]
        if precision_recall(*features, k=3).recall <= FALLEN:
            return number
    return None


def replay(looks: Tensor, real: Tensor, hack: str, known: list[Any], guards: dict[str, MakeGuard]) -> dict[str, Any]:
    """The look of each guard's first alarm, and the one at which it would be too late."""
    base = looks[0].float() / 255
    with torch.no_grad():
        alarms = {name: first_alarm(make(real, base, known), looks, hack) for name, make in guards.items()}
        late = None if hack == HONEST else too_late(looks, hack)
    return {"alarms": alarms, "too late": late, "looks": len(looks)}


def tasks(generators: list[str], seeds: int, honest: int) -> Iterator[Task]:
    """A round over all generators and hacks for each seed, so that a bench that was stopped has some of everything."""
    for seed in range(max(seeds, honest)):
        for generator in generators:
            if seed < honest:
                yield Task(generator, seed, HONEST)
            if seed < seeds:
                for hack in HACKS:
                    if generator == "super-resolution" or hack not in COLOURED:
                        yield Task(generator, seed, hack)


# -- the table ---------------------------------------------------------------------------------------------------------


def in_time(result: dict[str, Any], guard: str) -> bool:
    alarm, late = result["alarms"][guard], result["too late"]
    return alarm is not None and (late is None or alarm <= late)


def share(right: list[bool]) -> str:
    """`3 of 4 (0.30-0.95)`, Wilson's 95 % interval."""
    _, low, high = wilson_interval(sum(right) / len(right), len(right))
    return f"{sum(right)} of {len(right)} ({low:.2f}-{high:.2f})"


def report(found: dict[str, Any], guards: list[str]) -> str:
    """For each guard what it found in time by hack, and how often it was wrong."""
    rows = []
    by_hack: dict[str, list[dict[str, Any]]] = {}
    for key, result in found.items():
        by_hack.setdefault(key.split("/")[1], []).append(result)
    for hack in (*HACKS, "all hacks"):
        of_hack = by_hack.get(hack, [])
        if hack == "all hacks":
            of_hack = [result for name, results in by_hack.items() if name != HONEST for result in results]
        if of_hack:
            ever = [str(sum(result["alarms"][guard] is not None for result in of_hack)) for guard in guards]
            rows.append([hack, *(share([in_time(r, guard) for r in of_hack]) for guard in guards), ", ".join(ever)])
    lines = [write_table(["found in time", *guards, "found at all"], rows)] if rows else []
    honest = by_hack.get(HONEST, [])
    if honest:
        cells = [share([result["alarms"][guard] is not None for result in honest]) for guard in guards]
        lines += ["", write_table(["false alarms, runs", *guards], [[f"{honest[0]['looks']} looks each", *cells]])]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and results")
    parser.add_argument("--hours", type=float, default=1.0, help="no new run is begun after that")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each generator that are hacked")
    parser.add_argument("--honest", type=int, default=34, help="honest runs of each generator")
    parser.add_argument("--generators", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--data", help="photographs for the super-resolution; without it, scikit-image's")
    parser.add_argument("--guard", metavar="MODULE:FUNCTION", help="a guard of yours in place of RewardGuard")
    parser.add_argument("--tiny", action="store_true", help="hardly any training, to see that it runs")
    options = parser.parse_args(arguments)
    if min(options.hours, options.seeds, options.honest) <= 0:
        parser.error("--hours, --seeds and --honest must be more than 0")
    size: Size = TINY if options.tiny else FULL
    try:
        if options.data is not None and len(list_images(options.data)) < 10:
            raise ValueError(f"--data {options.data} has fewer than 10 photographs")
        guards = OURS if options.guard is None else {options.guard: guard_of(options.guard)}
        settings = {"size": size, "data": options.data, "guards": list(guards)}
        results = Results(options.out if options.guard is None else options.out / _folder(options.guard), settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.monotonic()
    runs = options.out / ("runs-tiny" if options.tiny else "runs")
    runs.mkdir(parents=True, exist_ok=True)
    for task in tasks(options.generators, options.seeds, options.honest):
        if task.key in results:
            continue
        if time.monotonic() - start > 3600 * options.hours:
            print("the time is over; the same command goes on", flush=True)
            break
        stored = trajectory(runs, task.generator, task.seed, size, options.data)
        known = scorers(runs, task.generator, size, options.data)
        result = replay(stored["looks"], stored["real"].float() / 255, task.hack, known, guards)
        results.add(task.key, result)
        write_text(results.path.with_suffix(".md"), report(results.found, list(guards)) + "\n")
        said = ", ".join("none" if alarm is None else str(alarm) for alarm in result["alarms"].values())
        print(f"{task.key}: alarms at look {said}; too late from {result['too late']}", flush=True)
    print(f"\n{report(results.found, list(guards))}\n\n{results.path.with_suffix('.md')}")


def _folder(guard: str) -> str:
    return "guard-" + "".join(letter if letter.isalnum() else "_" for letter in guard)
