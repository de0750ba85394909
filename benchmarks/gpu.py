"""Everything that has to be seen on a GPU, in one command of at most ten minutes: correctness, speed, then training.

    python -m benchmarks gpu --out DIR [--minutes 9] [--data CIFAR10_FOLDER] [--tiny]

First what is computed (against float64 on the CPU, in mixed precision, compiled, without synchronisation), then what it
costs beside its peers, then QAGAN for the minutes that are left. Each result is in DIR/results.json as soon as it is
known and DIR/results.md is the table of it, so the command may be stopped at any moment; the same command goes on
behind the last result. The training is kept as far as it came and not gone on with. `--tiny` is for trying the command
on a CPU. Without `--data` the training has crops of scikit-image's photographs.
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gan_training import train
from benchmarks.timing import device, header
from qa_hooks._base.files import write_text
from qa_hooks.demo.results import Results
from qa_hooks.demo.tables import write_table
from qa_hooks.images import list_images, load_image

SIGNS = {True: "ok", False: "NOT OK", None: "-"}
TRAINING = "training"


def work(tiny: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Checks and measurements in their order."""
    for name, run in gpu_checks.checks(tiny):
        yield name, partial(gpu_checks.without_tf32, run)
    yield from gpu_speed.measurements(tiny)


def load_training(folder: str | None, limit: int) -> Tensor:
    """uint8 `(N, 3, 32, 32)`: the images of a folder, which must be 32x32, or crops of scikit-image's photographs."""
    if folder is not None:
        paths = list_images(folder)
        chosen = paths[:: max(1, len(paths) // limit)][:limit]  # of every class
        with ThreadPoolExecutor() as pool:  # of small files most of the time is not Python's
            images = list(pool.map(load_image, chosen))
        wrong = next((p for p, image in zip(chosen, images, strict=True) if image.shape[1:] != (32, 32)), None)
        if wrong is not None or len(images) < 400:
            raise ValueError(f"--data: at least 400 images of 32x32 are needed, got {len(images)}; see {wrong}")
        return torch.stack([image.expand(3, -1, -1) for image in images])
    from skimage import data

    rng, crops = torch.Generator().manual_seed(0), []
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        image = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)
        for _ in range(limit // 4):
            top, left = (int(torch.randint(side - 31, (), generator=rng)) for side in image.shape[1:])
            crops.append(image[:, top : top + 32, left : left + 32])
    return torch.stack(crops)


def report(results: Results) -> str:
    """The results as a page of Markdown."""
    found = dict(results.found)
    trained = found.pop(TRAINING, None)
    lines = ["# " + results.settings["machine"].replace("\n", "; "), ""]
    bad = [name for name, result in found.items() if result["ok"] is False]
    lines += [f"{len(found)} results, {len(bad)} not ok" + (f": {', '.join(bad)}" if bad else ""), ""]
    rows = [[name, SIGNS[result["ok"]], result["found"], f"{result['s']:.1f}"] for name, result in found.items()]
    lines += [write_table(["", "", "found", "seconds"], rows)]
    if trained is not None:
        measures = [key for key in trained["rows"][0] if key not in ("variant", "seed", "ms")]
        cells = [
            [row["variant"], str(row["seed"]), *(interval(row[key]) for key in measures), f"{row['ms']:.1f}"]
            for row in trained["rows"]
        ]
        lines += ["", f"After {trained['steps']} generator steps each, n = {trained['n']}, in the features of "
                  f"{trained['extractor']}, {trained['images']}:", "",
                  write_table(["variant", "seed", *measures, "ms a step"], cells)]  # fmt: skip
    return "\n".join(lines) + "\n"


def interval(value: list[float]) -> str:
    return "{:.3f} ({:.3f}-{:.3f})".format(*value)


def keep(results: Results, name: str, result: dict[str, Any]) -> None:
    results.add(name, result)
    write_text(results.path.with_suffix(".md"), report(results))


def measure_all(results: Results, tiny: bool, until: Callable[[], bool]) -> None:
    """Run what is not in the results yet; an error is a result, too."""
    pending = work(tiny)
    while not until():
        try:
            name, run = next(pending)
        except StopIteration:
            return
        if name in results:
            continue
        start = time.perf_counter()
        try:
            result = run()
        except Exception as error:
            result = {"ok": False, "found": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error)
                      else type(error).__name__, "trace": traceback.format_exc()[-2000:]}  # fmt: skip
        result["s"] = time.perf_counter() - start
        keep(results, name, result)
        print(f"{SIGNS[result['ok']]:7} {name}: {result['found']}", flush=True)
        if "CUDA error" in result["found"]:  # nothing works in this process any more
            raise SystemExit("the device has failed; run the same command again, it goes on behind this check")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; a check that runs is not cut")
    parser.add_argument("--data", help="a folder of 32x32 images, for example CIFAR-10's, for the training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tiny", action="store_true", help="small work, to see on a CPU that everything runs")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be more than 0, got {options.minutes:g}")
    if device().type != "cuda" and not options.tiny:
        parser.error("no CUDA device here; add --tiny to try the command on the CPU")
    start = time.perf_counter()
    machine = header(["pytorch-msssim", "piq", "kornia", "pyiqa"], torch.get_num_threads())
    settings = {"machine": machine, "tiny": options.tiny, "data": options.data, "seeds": options.seeds}
    try:
        images = load_training(options.data, 400 if options.tiny else 50_000)
        results = Results(options.out, settings)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    warnings.simplefilter("ignore")
    print(machine, flush=True)

    def over() -> bool:
        return time.perf_counter() - start > 60 * options.minutes

    measure_all(results, options.tiny, over)
    if not over() and TRAINING not in results:
        seeds = options.seeds[:1] if options.tiny else options.seeds
        n, every = (200, 10) if options.tiny else (5000, 500)
        named = "scikit-image's crops" if options.data is None else Path(options.data).name
        batch = 16 if options.tiny else 64
        for found in train(images, seeds, until=over, every=every, n=n, extractor=features(), batch=batch):
            keep(results, TRAINING, {**found, "images": f"{len(images)} {named}", "ok": None})
            print(f"training: {found['steps']} steps", flush=True)
            if options.tiny:
                break
    print(f"\n{report(results)}\n{results.path.with_suffix('.md')}")


def features() -> str:
    """The ImageNet network if its packages are installed, otherwise the random one; the table names it."""
    from qa_hooks.features import create_extractor

    try:
        create_extractor("efficientnet_lite0")
    except ImportError:
        return "random"
    return "efficientnet_lite0"
