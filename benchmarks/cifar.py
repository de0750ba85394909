"""QAGAN on CIFAR-10, or on any folder of images, for as many hours as there are: plain, SSIM, NIQE with the hinge.

    python -m benchmarks cifar --data CIFAR10_FOLDER --hours 2 --out DIR [--side 32] [--seeds 0 1 2] [--processes 2]

Nine runs (three penalties, three seeds) are trained in slices, the one that is furthest behind first, by processes of
one thread each. After every `--every` generator steps a run is measured: FD, KID, precision and recall of its moving
average in the features of an ImageNet network, and the inception score of that network's classes. The table is at
equal steps and at equal CPU time. Everything is in DIR as soon as it is known: it may be stopped at any moment, and the
same command goes on where it was. `--side 48` and 64 are for STL-10, CelebA and the like. `--tiny` takes crops of
scikit-image's photographs, a random network, and two slices.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import statistics
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gan_training import VARIANTS, Run
from benchmarks.gpu import load_training
from qa_hooks._base.files import write_text
from qa_hooks.demo.results import Results
from qa_hooks.demo.side_by_side import start_process
from qa_hooks.demo.tables import write_table
from qa_hooks.evaluation import make_reference, measure
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.images import list_images, load_image, make_grid, save_image

METRICS = ("fd", "kid", "pr", "is")
SHOWN = ("fd", "kid", "precision", "recall", "is")


class Settings(NamedTuple):
    """What the results depend on; `data` None is for `--tiny`."""

    out: str
    data: str | None
    side: int
    images: int
    batch: int
    slice: int
    every: int
    n: int
    extractor: str


@functools.lru_cache(maxsize=1)
def training_images(settings: Settings) -> Tensor:
    """uint8 `(N, 3, side, side)`, read once and kept as an array beside the results."""
    path = Path(settings.out) / "images.pt"
    if path.exists():
        return torch.load(path, weights_only=True, mmap=True)
    if settings.data is None or settings.side == 32:
        images = load_training(settings.data, settings.images)
    else:
        paths = list_images(settings.data)
        chosen = paths[:: max(1, len(paths) // settings.images)][: settings.images]
        images = torch.stack([_square(load_image(one), settings.side) for one in chosen])
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    _save(images, path)
    return images


def _square(image: Tensor, side: int) -> Tensor:
    """The middle of an image, resized."""
    short = min(image.shape[1:])
    top, left = ((length - short) // 2 for length in image.shape[1:])
    square = image.expand(3, -1, -1)[None, :, top : top + short, left : left + short].float()
    resized = F.interpolate(square, (side, side), mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _save(value: Any, path: Path) -> None:
    """Never half written."""
    torch.save(value, path.with_suffix(".part"))
    path.with_suffix(".part").replace(path)


@functools.lru_cache(maxsize=1)
def yardstick(settings: Settings) -> tuple[Any, Any]:
    """The extractor, and the real images' statistics."""
    extractor = create_extractor(settings.extractor)
    return extractor, make_reference(extractor, training_images(settings)[-2 * settings.n :], progress=False)


def measured(run: Run, settings: Settings) -> dict[str, list[float]]:
    """Each metric with its interval."""
    extractor, reference = yardstick(settings)
    features = extract_features(extractor, run.images(settings.n), progress=False).values
    network = getattr(extractor.network, "network", None)
    logits = network._fc(features) if hasattr(network, "_fc") else None  # the ImageNet classes
    metrics = METRICS if logits is not None else METRICS[:3]
    found = measure(features, reference, metrics, extractor=extractor, logits=logits)
    return {name: [value.value, value.low, value.high] for name, value in found.items()}


def advance(name: str, settings: Settings) -> dict[str, Any]:
    """One slice of a run, in a process of its own: its state goes to the disk, then a row is returned."""
    torch.set_num_threads(1)
    variant, seed = name.rsplit(", seed ", 1)
    real = training_images(settings)
    held = real[: -2 * settings.n] if settings.data else real
    run = Run(variant, int(seed), held, batch=settings.batch, warmup=max(settings.slice, -(-500 // settings.batch)))
    path, steps, seconds = state_of(name, settings), 0, 0.0
    if path.exists():
        stored = torch.load(path, weights_only=True)
        run.load_state(stored["run"])
        steps, seconds = stored["steps"], stored["row"]["cpu s"]
    begin = time.process_time()
    for _ in range(settings.slice):
        run.step()
    steps, seconds = steps + settings.slice, seconds + time.process_time() - begin
    row: dict[str, Any] = {"run": name, "steps": steps, "cpu s": seconds}
    if steps % settings.every == 0:
        row |= measured(run, settings)
        grid = make_grid(run.images(64), columns=16)
        save_image(grid, path.with_suffix(".png"))
    _save({"run": run.state(), "steps": steps, "row": row}, path)
    return row


def state_of(name: str, settings: Settings) -> Path:
    """The file in which a run goes on."""
    return Path(settings.out) / f"{name.replace(', seed ', '_').replace(', ', '_').lower()}.pt"


def states(names: list[str], settings: Settings) -> dict[str, int]:
    """The steps of each run on the disk."""
    found = {}
    for name in names:
        path = state_of(name, settings)
        found[name] = torch.load(path, weights_only=True)["steps"] if path.exists() else 0
    return found


def add_unrecorded(names: list[str], settings: Settings, results: Results) -> None:
    """The rows of states that were on the disk when their process was killed before it could tell."""
    for path in (state_of(name, settings) for name in names):
        if path.exists():
            row = torch.load(path, weights_only=True)["row"]
            if f"{row['run']}, {row['steps']} steps" not in results:
                results.add(f"{row['run']}, {row['steps']} steps", row)


def work(names: list[str], settings: Settings, results: Results, until: float, processes: int, slices: int) -> None:
    """Advance the runs until the time is over; each slice that has begun is finished."""
    steps, busy, longest = states(names, settings), {}, 0.0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start_process) as pool:
        started: dict[Future[dict[str, Any]], tuple[str, float]] = {}
        while True:
            while len(started) < processes and time.time() + longest < until:
                free = [name for name in names if name not in busy and steps[name] < slices * settings.slice]
                if not free:
                    break
                name = min(free, key=steps.__getitem__)
                busy[name] = True
                started[pool.submit(advance, name, settings)] = name, time.time()
            if not started:
                return
            for done in wait(started, return_when=FIRST_COMPLETED).done:
                name, begin = started.pop(done)
                row = done.result()
                del busy[name]
                steps[name], longest = row["steps"], max(longest, time.time() - begin)
                results.add(f"{name}, {row['steps']} steps", row)
                print(f"{name}: {row['steps']} steps, {row['cpu s']:.0f} CPU s", flush=True)
                write_text(Path(settings.out) / "results.md", report(results))


def report(results: Results) -> str:
    """The table at equal steps and at equal CPU time, means over the seeds with their deviation."""
    rows = [row for row in results.found.values() if "fd" in row]
    runs = sorted({row["run"] for row in results.found.values()})
    parts = [f"{sum(_last(results, run)['cpu s'] for run in runs) / 3600:.2f} CPU hours in {len(runs)} runs.\n"]
    common = [s for s in {row["steps"] for row in rows} if {r["run"] for r in rows if r["steps"] == s} == set(runs)]
    if common:
        chosen = {row["run"]: row for row in rows if row["steps"] == max(common)}
        parts.append(f"At equal steps ({max(common)}):\n\n{_table(chosen)}\n")
    shared = min(max((r["cpu s"] for r in rows if r["run"] == run), default=0.0) for run in runs)
    timed = {run: [r for r in rows if r["run"] == run and r["cpu s"] <= shared] for run in runs}
    if all(timed.values()):
        chosen = {run: max(own, key=lambda row: row["steps"]) for run, own in timed.items()}
        parts.append(f"At equal CPU time (the last look within {shared:.0f} s):\n\n{_table(chosen)}\n")
    return "\n".join(parts)


def _last(results: Results, run: str) -> dict[str, Any]:
    return max((row for row in results.found.values() if row["run"] == run), key=lambda row: row["steps"])


def _table(chosen: dict[str, dict[str, Any]]) -> str:
    columns = [key for key in SHOWN if key in next(iter(chosen.values()))]
    lines = []
    trained = {run.rsplit(", seed ", 1)[0] for run in chosen}
    for variant in (variant for variant in VARIANTS if variant in trained):
        own = [row for run, row in chosen.items() if run.rsplit(", seed ", 1)[0] == variant]
        cells = [_spread([row[column][0] for row in own]) for column in columns]
        steps = _spread([float(row["steps"]) for row in own])
        lines.append([variant, len(own), steps, *cells, _spread([1e3 * row["cpu s"] / row["steps"] for row in own])])
    return write_table(["", "seeds", "steps", *columns, "CPU ms/step"], lines)


def _spread(values: list[float]) -> str:
    deviation = f" +- {statistics.stdev(values):.3g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4g}{deviation}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of images; without it only --tiny runs")
    parser.add_argument("--out", type=Path, required=True, help="results, states of the runs, pictures")
    parser.add_argument("--hours", type=float, default=1.0, help="how long to go on, this time (default: 1)")
    parser.add_argument("--side", type=int, default=32, choices=(32, 48, 64), help="pixels of an image (default: 32)")
    parser.add_argument("--images", type=int, default=50_000, help="at most so many (default: 50000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="of one thread (default: all cores)")
    parser.add_argument("--slice", type=int, default=500, help="generator steps between two states (default: 500)")
    parser.add_argument("--every", type=int, default=2000, help="generator steps between two looks (default: 2000)")
    parser.add_argument("--n", type=int, default=1000, help="images of a look (default: 1000)")
    parser.add_argument("--tiny", action="store_true", help="does it run?")
    options = parser.parse_args(arguments)
    if options.tiny:
        size = {"images": 800, "slice": 2, "every": 4, "n": 60, "batch": 16, "extractor": "random"}
    elif options.data is None:
        parser.error("--data is needed: a folder of images")
    else:
        size = {key: getattr(options, key) for key in ("images", "slice", "every", "n")}
        size |= {"batch": 64, "extractor": "efficientnet_lite0"}
    if size["every"] % size["slice"]:
        parser.error(f"--every {size['every']} must be a multiple of --slice {size['slice']}")
    settings = Settings(str(options.out), None if options.tiny else options.data, options.side, **size)
    kept = {key: value for key, value in settings._asdict().items() if key != "out"}
    kept["data"] = None if settings.data is None else str(Path(settings.data).resolve())
    results = Results(options.out, kept | {"torch": torch.__version__})
    training_images(settings)
    names = [f"{variant}, seed {seed}" for seed in options.seeds for variant in options.variants]
    add_unrecorded(names, settings, results)
    slices = 2 if options.tiny else 10**9
    work(names, settings, results, time.time() + 3600 * options.hours, options.processes, slices)
    print(report(results) if results.found else "the time was too short for one slice")
