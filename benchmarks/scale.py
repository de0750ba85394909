"""Scoring many images with Ray: the numbers of one process, the speed against the scorer's own, and the memory.

    python -m benchmarks scale photos/ gmm.safetensors --workers 2

Rows: the scorer on decoded arrays; decoding; `score_folder` in one process; `score_dataset` with so many workers, of a
Ray that has been started before. Then the largest difference between both tables; the share of the scorer in the CPU
time of `ScoreBatches` on decoded arrays, called in a loop; and the memory of a process that scores one shard of the
data, and four of them one after the other.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qa_hooks import create_scorer, score_folder
from qa_hooks.images import list_images, load_image
from qa_hooks.integrations.ray import ScoreBatches, score_dataset
from qa_hooks.integrations.ray.shards import find_shards

BATCH = 32
SHARED, ROUNDS = 4096, 7  # images of which the shares are taken, and how often


def main(arguments: list[str]) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("scorer")
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--shard-size", type=int, default=4096)
    options.add_argument("--peak-of", type=int, help="score so many shards and print the peak memory; used inside")
    chosen = options.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.peak_of:
        print(_peak(chosen.folder, chosen.scorer, chosen.shard_size, chosen.peak_of))
        return
    paths = list_images(chosen.folder)
    print(f"{len(paths)} images, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("| work | images/s | wall s | CPU s of this process |\n|---|---|---|---|")
    decoded = _timed("decoding alone, one thread", len(paths), lambda: [load_image(path) for path in paths])
    scorer = create_scorer(chosen.scorer)
    same = [image for image in decoded if image.shape == decoded[0].shape]

    def score() -> None:
        with torch.no_grad():
            for start in range(0, len(same), BATCH):
                scorer(torch.stack(same[start : start + BATCH]))

    _timed("the scorer on decoded arrays", len(same), score)
    with tempfile.TemporaryDirectory() as folder:
        csv, parts = Path(folder, "t.csv"), Path(folder, "t")
        one = _timed(
            "score_folder, one process",
            len(paths),
            lambda: score_folder(chosen.folder, chosen.scorer, csv, batch_size=BATCH, progress=False),
        )
        import ray

        ray.init(num_cpus=chosen.workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        many = _timed(
            f"score_dataset, {chosen.workers} workers",
            len(paths),
            lambda: score_dataset(
                chosen.folder, chosen.scorer, parts, shard_size=chosen.shard_size, batch_size=BATCH, progress=False
            ),
        ).read()
        _shares(chosen.scorer, torch.stack(same[:SHARED]).permute(0, 2, 3, 1).contiguous().numpy())
        ray.shutdown()
        found = many.columns[scorer.name][torch.tensor([path not in many.failures for path in many.paths])]
        expected = one.columns[scorer.name]
        print(f"largest difference: {float(((found - expected) / expected).abs().max()):.1e} of the score")
    command = [sys.executable, "-m", "benchmarks", "scale", str(chosen.folder), chosen.scorer]
    for count in (1, 4):
        told = subprocess.run(
            [*command, "--shard-size", str(chosen.shard_size), "--peak-of", str(count)],
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"peak memory after {count} shards: {told.stdout.strip()}")
    print(f"load {os.getloadavg()[0]:.1f}")


def _timed(work: str, images: int, function):  # type: ignore[no-untyped-def]
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"| {work} | {images / wall:.0f} | {wall:.1f} | {cpu:.1f} |", flush=True)
    return result


def _shares(spec: str, images: np.ndarray[Any, Any]) -> None:
    """CPU time of an image: of the scorer alone, and of `ScoreBatches` in a loop.

    The two take turns, and of each the least of the rounds counts; other work on the machine makes the others longer.
    In an actor of Ray Data nothing takes turns with it, and the share came out between .49 and 1.19: it is not
    measured there.
    """
    scorer, score = create_scorer(spec), ScoreBatches(spec, batch_size=BATCH)
    tensors = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())

    def alone() -> None:
        with torch.no_grad():
            for batch in tensors.split(BATCH):
                scorer(batch)

    def batches() -> None:
        for start in range(0, len(images), 8 * BATCH):
            score({"image": images[start : start + 8 * BATCH]})

    found = dict.fromkeys((alone, batches), math.inf)
    for _ in range(ROUNDS):
        for work in found:
            start = time.process_time()
            work()
            found[work] = min(found[work], (time.process_time() - start) / len(images))
    print("| on decoded arrays | CPU ms an image | share of the scorer |\n|---|---|---|")
    for name, seconds in (("scorer", found[alone]), ("ScoreBatches", found[batches])):
        print(f"| {name} | {1000 * seconds:.3f} | {found[alone] / seconds:.2f} |")


def _peak(folder: Path, scorer: str, shard_size: int, count: int) -> str:
    score, images = ScoreBatches(scorer, batch_size=BATCH), 0
    for shard in find_shards(folder, shard_size=shard_size)[:count]:
        images += sum(1 for _ in score.stream(shard.images()))
    status = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss would be the parent's
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    return f"{peak:.0f} MB, {images} images"
