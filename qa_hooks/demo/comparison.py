"""All runs of the demo side by side, and the table that comes out."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qa_hooks._base.files import check_writable
from qa_hooks._base.text import plural
from qa_hooks.demo.data import Images, load_digits_images, load_folder_images
from qa_hooks.demo.evaluation import Evaluator
from qa_hooks.demo.side_by_side import side_by_side
from qa_hooks.demo.tables import mean_std, write_table
from qa_hooks.demo.training import VARIANTS, Job, train
from qa_hooks.drawing.named_rows import named_rows
from qa_hooks.images import save_image, to_uint8


def run_demo(
    *,
    out: str | Path = "runs/demo",
    data: str | Path | None = None,
    variants: tuple[str, ...] = VARIANTS,
    seeds: tuple[int, ...] = (0,),
    steps: int = 1200,
    equal: str = "steps",
    size: int = 32,
    limit: int = 10_000,
    jobs: int = 2,
) -> list[dict[str, Any]]:
    """Train every variant with every seed, side by side as one-thread processes; print a table, write pictures and
    logs.

    Args:
        out: the folder for TensorBoard runs, `samples.png` and `results.json`.
        data: a folder of images; the digits by default.
        variants: some of "plain", "ssim", "niqe".
        seeds: one run of each variant per seed.
        steps: generator steps; with `equal="time"` of the plain variant.
        equal: "steps", or "time": the other variants get as many steps as the plain one's time allows.
        size, limit: of the images read from `data`.
        jobs: processes at a time.

    Returns:
        One dictionary per run: variant, seed, steps, median CPU milliseconds of a step (monitors not counted), fd, is.
    """
    _check_demo(variants, seeds, steps, equal, jobs)
    out = Path(out)
    check_writable(out)
    torch.set_num_threads(1)  # networks this small are slower on more
    images = load_digits_images() if data is None else load_folder_images(data, size=size, limit=limit)
    evaluator = Evaluator(images)
    _describe(images, evaluator)
    template = Job("plain", 0, steps, out, images=images.train)
    lengths = dict.fromkeys(variants, steps) if equal == "steps" else _equal_time_steps(template, variants, evaluator)
    todo = [
        replace(template, variant=variant, seed=seed, steps=lengths[variant], folder=out / f"{variant}-seed{seed}")
        for seed in seeds
        for variant in variants
    ]
    _tell(f"training {plural(len(todo), 'run')} of {max(lengths.values())} steps, {jobs} at a time")
    longest_first = sorted(todo, key=lambda job: -VARIANTS.index(job.variant))
    results = side_by_side(
        functools.partial(_train_job, evaluator),
        todo,
        processes=jobs,
        steps=lambda job: job.steps,
        first=longest_first,
    )
    strips = {"real": images.train[:24]}
    strips |= {f"{v}, seed {seeds[0]}": next(r["strip"] for r in results if r["variant"] == v) for v in variants}
    shown = {name: to_uint8(strip, (-1, 1)) for name, strip in strips.items()}
    save_image(named_rows(shown, scale=3), out / "samples.png")
    plain_results = [{key: value for key, value in result.items() if key != "strip"} for result in results]
    spec = {
        "data": images.name,
        "extractor": evaluator.name,
        "n": template.samples,
        "real": len(images.train),
        "equal": equal,
    }
    (out / "results.json").write_text(json.dumps({"spec": spec, "runs": plain_results}, indent=1))
    real = evaluator.evaluate(images.test)
    print("\n" + format_table(plain_results, variants, real, evaluator.name, template.samples))
    print(f"\n  {out / 'samples.png'}\n  {out / 'results.json'}")
    print(f"  tensorboard --logdir {out}")
    return plain_results


def format_table(
    results: list[dict[str, Any]], variants: tuple[str, ...], real: dict[str, float], extractor: str, samples: int
) -> str:
    """The results as a Markdown table: mean and deviation over seeds, and each seed's value."""
    has_score = "is" in real

    def score(values: list[float]) -> list[str]:
        return [mean_std(values)] if has_score else []

    head = ["variant", "steps", f"FD_{extractor} (n={samples})", "per seed", *(["IS"] if has_score else [])]
    base = [r["ms"] for r in results if r["variant"] == "plain"]
    rows: list[list[Any]] = []
    for variant in variants:
        runs = [r for r in results if r["variant"] == variant]
        milliseconds = sum(r["ms"] for r in runs) / len(runs)
        cost = f"x{milliseconds / (sum(base) / len(base)):.2f}" if base else ""
        distances = [r["fd"] for r in runs]
        each = " ".join(f"{distance:.1f}" for distance in distances)
        cells = [variant, runs[0]["steps"], mean_std(distances), each, *score([r.get("is", 0.0) for r in runs])]
        rows.append([*cells, f"{milliseconds:.1f}", cost])
    rows.append(["held-out real images", "", f"{real['fd']:.1f}", "", *score([real.get("is", 0.0)]), "", ""])
    return write_table([*head, "CPU ms/step", "cost"], rows)


def _check_demo(variants: tuple[str, ...], seeds: tuple[int, ...], steps: int, equal: str, jobs: int) -> None:
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown or not variants:
        raise ValueError(f"variants must be some of {VARIANTS}, got {variants}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds must be different numbers, got {seeds}")
    if steps < 20:
        raise ValueError(f"steps must be at least 20, got {steps}")
    if equal not in ("steps", "time"):
        raise ValueError(f'equal must be "steps" or "time", got {equal!r}')
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")


def _tell(text: str) -> None:
    """Say what is going on, beside the table, which alone goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def _describe(images: Images, evaluator: Evaluator) -> None:
    shape = "x".join(str(length) for length in images.train.shape[1:])
    _tell(f"{images.name}: {len(images.train)} images to train on, {len(images.test)} held out, {shape}")
    if evaluator.accuracy is None:
        _tell(f"features: {evaluator.name}, seeded and untrained (the images have no classes)")
    else:
        _tell(
            f"features: {evaluator.name}, of a classifier trained just now, accuracy {evaluator.accuracy:.3f} held out"
        )


def _equal_time_steps(template: Job, variants: tuple[str, ...], evaluator: Evaluator) -> dict[str, int]:
    """Steps that take the time of `template.steps` plain ones, from a short run of each with its penalty acting."""
    milliseconds = {}
    for variant in dict.fromkeys(("plain", *variants)):
        with tempfile.TemporaryDirectory() as folder:
            short = replace(template, variant=variant, steps=80, folder=Path(folder), samples=200)
            milliseconds[variant] = _train_job(evaluator, short, None)["ms"]
        _tell(f"{variant}: {milliseconds[variant]:.1f} CPU ms a step")
    return {v: round(template.steps * milliseconds["plain"] / milliseconds[v]) for v in variants}


def _train_job(evaluator: Evaluator, job: Job, progress: Any) -> dict[str, Any]:
    with Path(os.devnull).open("w") as null, contextlib.redirect_stdout(null):  # one progress bar for all processes
        return train(job, evaluator, progress)
