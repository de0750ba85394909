"""A-FINE trained here: what it knows on photographs it has not seen, against metrics that trust the reference.

    python -m benchmarks afine --images BSD100 [--seeds 0 1 2] [--crop 96] [--steps 1000] [--cache DIR] [--only ROW ...]
    python -m benchmarks afine --speed [--batch 32] [--side 224] [--runs 7]

The first command trains on the degradations of four fifths of the photographs (by name) and judges on the rest: pairs
whose order is known, in two cases. "worse": the reference is the photograph. "better": the reference is a degraded one,
and an image before it on its ladder is compared with it or with another one. A pair is right when the metric puts the
better image first; ties count half. Chance is 0.5, and a metric that trusts its reference has 0 in "beats": pairs of an
image that is better than the reference with the reference itself. The second command measures speed with random weights
against a loop over single images, as the published program works.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.afine_speed import speed
from qa_hooks.functional.clusters import share_interval
from qa_hooks.functional.degradations import blur, jpeg
from qa_hooks.images import list_images, load_image
from qa_hooks.scorers import Comparisons, FittedAFINE, create_scorer, ladder_comparisons
from qa_hooks.scorers.perceptual import unit

PEERS = ("psnr", "ssim", "ms_ssim", "niqe_bsd100", "perceptual:hed")
FAMILY = (
    "A-FINE, efficientnet_lite0-stages, both",
    "A-FINE, efficientnet_lite0-stages, worse",
    "A-FINE, efficientnet_lite0-stages, better",
    "A-FINE, random, both",
    "A-FINE, hed-stages, both",
)
ROWS = (*PEERS, *FAMILY)
HELD_SHARE = 5  # one photograph in so many is held out
CASES = ("worse", "better", "beats", "unseen")


def centre_crop(path: Path, side: int) -> Tensor:
    image = load_image(path)
    image = image.expand(3, -1, -1)
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side].contiguous()


def judged(crops: list[Tensor], seed: int) -> dict[str, Comparisons]:
    """The cases, on held-out crops; those of the ladders share their items."""
    both = ladder_comparisons(crops, seed=seed + 1000)
    better = part(both, "better")
    against = (better.test == better.reference)[better.pairs].any(1)
    cases = {"worse": part(both, "worse"), "better": better.with_pairs(~against), "beats": better.with_pairs(against)}
    return {**cases, "unseen": softened(crops)}


def scored(measure: Callable[[Comparisons], Tensor], cases: dict[str, Comparisons]) -> dict[str, Tensor]:
    """Which pairs of each case are right, from the goodness of every item."""
    ladders, other = measure(cases["worse"]), measure(cases["unseen"])
    return {case: right(other if case == "unseen" else ladders, items) for case, items in cases.items()}


def softened(crops: list[Tensor]) -> Comparisons:
    """Sharp originals against references that were softened in ways that no training ladder has: two-step ones."""
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: jpeg(blur(x, 1.0), 40),
        lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        moved,
        lambda x: x.mul(31).round().div(31),
    ]
    pictures: list[Any] = []
    test, reference, pairs, content = [], [], [], []
    for number, crop in enumerate(crops):
        original = len(pictures)
        pictures.append(crop)
        for way in ways:
            soft = (way(crop[None].float() / 255)[0].clamp(0, 1) * 255).round().to(torch.uint8)
            pictures.append(soft)
            test += [original, len(pictures) - 1]
            reference += [len(pictures) - 1] * 2
            pairs.append((len(test) - 2, len(test) - 1))
            content += [str(number)] * 2
    rows = [torch.tensor(values) for values in (test, reference, pairs)]
    return Comparisons(pictures, *rows, better=torch.ones(len(pairs)), content=content)


def moved(images: Tensor) -> Tensor:
    """Motion along the rows, seven pixels."""
    padded = torch.nn.functional.pad(images, (3, 3, 0, 0), mode="reflect")
    return padded.unfold(3, 7, 1).mean(-1)


@torch.no_grad()
def goodness(scorer: Any, items: Comparisons) -> Tensor:
    """Of every item, one reference at a time."""
    found = torch.zeros(len(items.test))
    groups: dict[int, list[int]] = {}
    for item, place in enumerate(items.reference.tolist()):
        groups.setdefault(place, []).append(item)
    known: dict[int, float] = {}  # of scorers that need no reference
    for place, members in groups.items():
        pictures = torch.stack([items.pictures[p] for p in items.test[members].tolist()]).float() / 255
        if scorer.inputs:
            reference = (items.pictures[place].float() / 255).expand_as(pictures)
            found[members] = scorer.goodness(pictures, reference=reference)
            continue
        for row, item in enumerate(members):
            test = int(items.test[item])
            if test not in known:
                known[test] = float(scorer.goodness(pictures[row : row + 1]))
            found[item] = known[test]
    return found


@torch.no_grad()
def perceptual_goodness(scorer: Any, items: Comparisons) -> Tensor:
    """The same of the perceptual distance, with the maps of a picture taken once for a ladder."""
    kept: dict[int, list[Tensor]] = {}

    def maps(place: int) -> list[Tensor]:
        if place not in kept:
            picture: Any = items.pictures[place]
            kept[place] = [unit(x) for x in scorer.extractor.stages(picture[None].float() / 255)]
            if len(kept) > 12:
                kept.pop(next(iter(kept)))
        return kept[place]

    found = []
    for test, reference in torch.stack([items.test, items.reference], 1).tolist():
        differences = [x - y for x, y in zip(maps(test), maps(reference), strict=True)]
        found.append(-torch.stack([each.square().sum(1).mean() for each in differences]).mean())
    return torch.stack(found)


def distance_goodness(fitted: FittedAFINE, cache: str | None, items: Comparisons) -> Tensor:
    return -fitted.judge(items, cache=cache)


def part(both: Comparisons, kind: str) -> Comparisons:
    """Of the pairs of all ladders those whose reference is the photograph ("worse"), or is beaten ("better")."""
    if kind == "both":
        return both
    beaten = both.beats_reference
    shown = beaten | (both.test == both.reference)
    has_better = torch.zeros(len(both.pictures), dtype=torch.bool)
    has_better[both.reference[beaten]] = True
    keep = shown[both.pairs].all(1) & has_better[both.reference[both.pairs[:, 0]]]
    return both.with_pairs(keep if kind == "better" else ~has_better[both.reference[both.pairs[:, 0]]])


def right(scores: Tensor, items: Comparisons) -> Tensor:
    """Of every pair 1, 0, or 1/2 for a tie."""
    gap = (scores[items.pairs[:, 0]] - scores[items.pairs[:, 1]]).sign()
    return 0.5 + 0.5 * gap * (2 * items.better - 1).sign()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a folder of photographs, for example BSD100")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--crop", type=int, default=96)
    parser.add_argument("--steps", type=int, default=1000, help="of each of the three stages")
    parser.add_argument("--limit", type=int, help="use only the first so many photographs")
    parser.add_argument("--cache", help="a folder that keeps the statistics")
    parser.add_argument("--json", help="write the accuracies there as they come")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help="these rows of the table; HED is slow")
    parser.add_argument("--speed", action="store_true", help="measure speed with random weights instead")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.speed:
        torch.set_num_threads(1)
        speed(options.batch, options.side, options.runs)
        return
    if not options.images:
        parser.error("name a folder of photographs: --images DIR")
    warnings.simplefilter("ignore", UserWarning)
    torch.set_num_threads(1)
    crops = [centre_crop(path, options.crop) for path in list_images(options.images)[: options.limit]]
    split = len(crops) - len(crops) // HELD_SHARE  # NIQE's model of BSD100 was fitted on these, too
    trained, held = crops[:split], crops[split:]
    print(f"{len(trained)} photographs to train on, {len(held)} to judge on, crops of {options.crop}; load {load()}")
    cases, table = judged(held, 0), {}
    print("| metric | " + " | ".join(f"{case} ({len(cases[case].pairs)} pairs)" for case in CASES) + " |")
    print("|---|" + "---|" * len(CASES))
    both = ladder_comparisons(trained)
    for label in options.only or ROWS:
        measures = []
        if label in PEERS:
            scorer = create_scorer(label)
            own = perceptual_goodness if label == "perceptual:hed" else goodness
            measures.append(functools.partial(own, scorer))
        else:
            extractor, kind = label.removeprefix("A-FINE, ").split(", ")
            for seed in options.seeds:
                fitted = FittedAFINE(extractor, part="distance", seed=seed)
                fitted.fit_comparisons(part(both, kind), cache=options.cache, steps=options.steps, warn_below=0)
                measures.append(functools.partial(distance_goodness, fitted, options.cache))
        found = [scored(measure, cases) for measure in measures]
        show(label, {case: [each[case] for each in found] for case in CASES}, cases, table, options.json)
    print(f"load at the end {load()}")


def show(
    label: str,
    found: dict[str, list[Tensor]],
    cases: dict[str, Comparisons],
    table: dict[str, Any],
    path: str | None,
) -> None:
    """One line of the table: the mean over seeds with an interval over contents, and the values of the seeds."""
    cells, table[label] = [], {}
    for case, seeds in found.items():
        interval = share_interval(torch.stack(seeds).mean(0), cases[case].pair_content)
        each = [float(values.mean()) for values in seeds]
        table[label][case] = {"value": interval.value, "low": interval.low, "high": interval.high, "seeds": each}
        spread = " (" + " ".join(f"{value:.3f}" for value in each) + ")" if len(each) > 1 else ""
        cells.append(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]{spread}")
    print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    if path is not None:
        Path(path).write_text(json.dumps({"load": load(), "table": table}, indent=1))


def load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())
