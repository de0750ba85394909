"""What the weight, the mode and the hinge of the NIQE penalty do: the tables in docs/penalties.md.

    python -m benchmarks niqe_weight [--data DIR] [--steps 400] [--seeds 0 1 2] [--jobs 2] [--settings NAME ...]

The images are the demo's digits, or those of a folder with a subfolder for each class.

Each line is one training: Frechet distance, inception-style score, the last distance of the critic's maps from the
model, and the distance of real maps, where the hinge sits.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from qa_hooks.demo import Evaluator, Images, load_digits_images, load_folder_images, training
from qa_hooks.penalties import QAGANPenalty

SETTINGS: dict[str, dict[str, Any]] = {
    "weight 0.1": {"quality_weight": 0.1, "hinge": False},
    "weight 0.1, hinge": {"quality_weight": 0.1, "hinge": True},
    "weight 0.1, sample": {"quality_weight": 0.1, "niqe_mode": "sample", "hinge": False},
    "weight 1": {"quality_weight": 1.0, "hinge": False},
    "weight 1, hinge": {"quality_weight": 1.0, "hinge": True},
}


def run(setting: str, seed: int, steps: int, data: Images, evaluator: Evaluator) -> str:
    """One training, as a line of text."""
    torch.set_num_threads(1)
    made: list[QAGANPenalty] = []

    def make_penalty(_variant: str, *, gp_weight: float, warmup: int) -> QAGANPenalty:
        options = {"gp_weight": gp_weight, "warmup": warmup, **SETTINGS[setting]}
        made.append(QAGANPenalty("niqe", value_range=(-1, 1), **options))
        return made[-1]

    training.make_penalty = make_penalty
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):
        result = training.train(training.Job("niqe", seed, steps, Path(folder), images=data.train), evaluator)
    term = made[-1].parts["niqe"]
    level = term.model.provenance[f"{term.mode}_distance"] if term.model else math.nan
    last = float(made[-1].terms.get("niqe", math.nan))  # a warm-up has none
    quality = ", ".join(f"{name.upper()} {result[name]:.2f}" for name in ("fd", "is") if name in result)
    return f"{setting:20} seed {seed}: {quality}, term {last:.2f}, real maps {level:.2f}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--data", type=Path, help="a folder of images, as for qa-hooks demo (default: digits)")
    parser.add_argument("--limit", type=int, default=5000, help="images of --data (default: 5000)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load_folder_images(options.data, limit=options.limit) if options.data else load_digits_images()
    evaluator = Evaluator(data)
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pairs = [(setting, seed) for setting in options.settings for seed in options.seeds]
        shared = (options.steps, data, evaluator)
        for line in pool.map(run, *zip(*((*pair, *shared) for pair in pairs), strict=True)):
            print(line, flush=True)
