"""How often 95 % intervals hold the true value: every interval that is printed anywhere, on simulated data.

    python -m benchmarks coverage --out DIR [--draws 1000] [--tiny]

Set metrics (FD, KID, precision, recall, density, coverage, inception score) on Gaussian features: the real set is held
fixed, and each draw is another set of generated images. The true value is the mean over all draws, which is what the
interval is about (an FD of n images is too large by about c / n; that bias is not chance). Means and their differences
on skewed scores; shares of independent pairs; agreement with people, and shares of pairs, with contents. "outside" is
the share of draws in which an end of the interval lies outside the metric's range, which must be 0.

DIR/results.json has each row as soon as it is known; the same command goes on behind the last one.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from qa_hooks._base.files import write_text
from qa_hooks.demo.results import Results
from qa_hooks.demo.tables import write_table
from qa_hooks.evaluation import Reference
from qa_hooks.evaluation.set_metrics import METRICS, Sets, estimate_metrics
from qa_hooks.functional.clusters import share_interval
from qa_hooks.functional.intervals import (
    Interval,
    bootstrap_interval,
    independent_difference,
    paired_difference,
    wilson_interval,
)
from qa_hooks.ratings.agreeing import agreement

UNBOUNDED = (-math.inf, math.inf)
SET_METRICS = ("fd", "kid", "pr", "is")
CLASSES = 10


class Case(NamedTuple):
    """Named intervals of one draw, `draw(rng)`; the true values, or None for the mean over draws; their ranges."""

    draw: Callable[[torch.Generator], dict[str, Interval]]
    truth: dict[str, float] | None
    limits: dict[str, tuple[float, float]]


def feature_sets(n: int, dim: int, kind: str) -> Case:
    """Set metrics of n generated images against 2000 real ones."""
    rng = torch.Generator().manual_seed(0)
    basis = torch.randn(dim, dim, generator=rng) / dim**0.5
    head = torch.randn(dim, CLASSES, generator=rng)
    real = Reference.of(torch.randn(2000, dim, generator=rng) @ basis)
    factor, shift = {"equal": (1.0, 0.0), "wider": (1.5, 0.0), "collapsed": (0.4, 0.0), "far": (1.0, 0.8)}[kind]

    def draw(noise: torch.Generator) -> dict[str, Interval]:
        fake = factor * torch.randn(n, dim, generator=noise) @ basis + shift
        found = estimate_metrics(Sets(real, fake, logits=fake @ head), SET_METRICS)
        return {name: estimate.interval() for name, estimate in found.items()}

    return Case(draw, None, {name: limits for key in SET_METRICS for name, limits in METRICS[key].values.items()})


def skewed(n: int, noise: torch.Generator) -> Tensor:
    return torch.randn(n, generator=noise, dtype=torch.float64).exp()


def means(n: int) -> Case:
    """Of log-normal scores (mean e^.5), and of their differences by .3, paired and independent."""

    def draw(noise: torch.Generator) -> dict[str, Interval]:
        a, b = skewed(n, noise), skewed(n, noise)
        moved = a + 0.3 + 0.5 * (skewed(n, noise) - math.exp(0.5))
        paired, free = paired_difference(a, moved), independent_difference(a, b + 0.3)
        return {
            "mean": bootstrap_interval(a),
            "difference, paired": Interval(paired.difference, paired.low, paired.high),
            "difference, independent": Interval(free.difference, free.low, free.high),
        }

    truth = {"mean": math.exp(0.5), "difference, paired": 0.3, "difference, independent": 0.3}
    return Case(draw, truth, dict.fromkeys(truth, UNBOUNDED))


def shares(n: int) -> Case:
    """Of independent pairs."""
    probabilities = (0.5, 0.9, 0.99)

    def draw(noise: torch.Generator) -> dict[str, Interval]:
        rows = {p: float((torch.rand(n, generator=noise) < p).double().mean()) for p in probabilities}
        return {f"share of {p}": wilson_interval(share, n) for p, share in rows.items()}

    truth = {f"share of {p}": p for p in probabilities}
    return Case(draw, truth, dict.fromkeys(truth, (0.0, 1.0)))


def rated(contents: int, images: int, noise: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """People's ratings, a metric half of whose error is shared by a content, and the contents."""
    truth = torch.randn(contents, images, generator=noise, dtype=torch.float64)
    error = torch.randn(contents, 1, generator=noise, dtype=torch.float64) / 2**0.5
    scores = truth + error + torch.randn(contents, images, generator=noise, dtype=torch.float64) / 2**0.5
    return scores.flatten(), truth.flatten(), torch.arange(contents).repeat_interleave(images)


def opinions(contents: int, images: int = 10) -> Case:
    """Agreement with people, and the share of pairs in the right order, of several images of each content."""
    statistics = ("srcc", "plcc", "krcc", "accuracy")

    def orders(scores: Tensor, truth: Tensor) -> Tensor:
        scores, truth = scores.view(-1, images), truth.view(-1, images)
        return ((scores[:, ::2] - scores[:, 1::2]) * (truth[:, ::2] - truth[:, 1::2]) > 0).double().flatten()

    def draw(noise: torch.Generator) -> dict[str, Interval]:
        scores, truth, owners = rated(contents, images, noise)
        names = owners.tolist()
        found = {s: agreement(scores, truth, statistic=s, clusters=names) for s in statistics}
        rows = {s: Interval(one.value, one.low, one.high) for s, one in found.items()}
        rows["share of pairs"] = share_interval(orders(scores, truth), names[::2])
        return rows

    # Two normal variables of correlation r: Pearson, Spearman, Kendall; a pair of one content shares half of the error.
    r, within = 1 / 2**0.5, 1 / 1.5**0.5
    right = 0.5 + math.asin(within) / math.pi
    truth = {
        "srcc": 6 / math.pi * math.asin(r / 2),
        "plcc": r,
        "krcc": 2 / math.pi * math.asin(r),
        "accuracy": right,
        "share of pairs": right,
    }
    signed = dict.fromkeys(("srcc", "plcc", "krcc"), (-1.0, 1.0))
    return Case(draw, truth, {**signed, "accuracy": (0.0, 1.0), "share of pairs": (0.0, 1.0)})


def cases(tiny: bool) -> Iterator[tuple[str, str, Callable[[], Case]]]:
    """Groups, what differs in them, and how each is made."""
    for n in (20,) if tiny else (20, 50, 200, 1000):
        yield "means", f"n = {n}", lambda n=n: means(n)
        yield "shares", f"n = {n}", lambda n=n: shares(n)
    for contents in (12,) if tiny else (6, 12, 20, 60, 200):
        yield "opinions", f"{contents} contents", lambda contents=contents: opinions(contents)
    for n in (60,) if tiny else (60, 200, 1000):
        for kind in ("equal", "far") if tiny else ("equal", "wider", "collapsed", "far"):
            yield "sets", f"{kind}, n = {n}", lambda n=n, kind=kind: feature_sets(n, 8 if tiny else 32, kind)


def covered(case: Case, draws: int, title: str) -> dict[str, dict[str, float]]:
    """By name: the share of draws whose interval holds the true value, and whose ends lie outside the range."""
    found: dict[str, list[Interval]] = {}
    for number in tqdm(range(draws), desc=title, leave=False, disable=None):
        for name, interval in case.draw(torch.Generator().manual_seed(number)).items():
            found.setdefault(name, []).append(interval)
    rows = {}
    for name, intervals in found.items():
        values = np.array(intervals, dtype=np.float64)
        truth = values[:, 0].mean() if case.truth is None else case.truth[name]
        low, high = case.limits[name]
        rows[name] = {
            "covered": float(((values[:, 1] <= truth) & (truth <= values[:, 2])).mean()),
            "outside": float(((values[:, 1] < low) | (values[:, 2] > high)).mean()),
            "width": float(np.median(values[:, 2] - values[:, 1])),
            "truth": float(truth),
        }
    return rows


def report(results: Results, draws: int) -> str:
    parts = [f"Share of {draws} draws in which the 95 % interval held the true value.\n"]
    for group in dict.fromkeys(name.split(": ")[0] for name in results.found):
        mine = {n.split(": ")[1]: row for n, row in results.found.items() if n.startswith(f"{group}: ")}
        columns = list(dict.fromkeys(column for row in mine.values() for column in row["rows"]))
        table = [
            [name, *(f"{100 * row['rows'][c]['covered']:.1f}" if c in row["rows"] else "" for c in columns)]
            for name, row in mine.items()
        ]
        parts.append(write_table(["", *columns], table) + "\n")
    outside = max(row["outside"] for result in results.found.values() for row in result["rows"].values())
    parts.append(f"Intervals that reach outside the range: {100 * outside:.1f} %\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results.json and results.md")
    parser.add_argument("--draws", type=int, default=1000, help="simulations of each row (default: 1000)")
    parser.add_argument("--tiny", action="store_true", help="few rows, 20 draws: does it run?")
    options = parser.parse_args(arguments)
    if options.draws < 1:
        parser.error(f"--draws {options.draws} must be at least 1")
    torch.set_num_threads(1)
    draws = 20 if options.tiny else options.draws
    results = Results(options.out, {"draws": draws, "tiny": options.tiny, "torch": torch.__version__})
    for group, name, make in cases(options.tiny):
        if (title := f"{group}: {name}") in results:
            continue
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows = covered(make(), draws, title)
        results.add(title, {"rows": rows, "seconds": time.perf_counter() - begin})
    text = report(results, draws)
    write_text(options.out / "results.md", text)
    print(text)
