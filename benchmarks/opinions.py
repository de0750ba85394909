"""Every scorer we ship against thousands of people's ratings: TID2013's labels on stimuli that are made again.

    python -m benchmarks opinions --kodak DIR --ratings DIR [--photos DIR] [--out DIR] [--scorers SPEC ...] [--fit]
    python -m benchmarks opinions --tiny

`--kodak` holds the 24 Kodak photographs, `--ratings` a file tid2013.txt or mos_with_names.txt, `--photos` photographs
of other contents: GMM, KNN and RankScorer are fitted on them, so every content of the table is held out. `--fit` adds
scorers that are fitted on the ratings themselves: `fit mos`, `fit pairs` and `fit afine`, four times on 18 contents
each, judged on the other 6 (`benchmarks.opinions_fit`). Only types whose stimuli pass the rule of
`benchmarks.tid_stimuli` are in the table. Scores are kept in `--out`: the same command goes on where it was stopped.
`--tiny` tries everything on small pictures with ratings that were made up.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.opinions_fit import by_default, fitted_scores, seeds_apart
from benchmarks.results import Results
from benchmarks.tid_stimuli import NAMES, PUBLISHED, TOLERANCE, TYPES, make_tiny, rebuild
from qa_hooks._base.files import whole_file
from qa_hooks._base.hashing import fingerprint
from qa_hooks.drawing.tables import text_table
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.functional import ssim
from qa_hooks.images import list_images, load_image
from qa_hooks.ratings import AgreementReport, Ratings, agreement, read_ratings, report_agreement
from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.scoring import Stimulus, score_stimuli
from qa_hooks.ratings.speed import milliseconds
from qa_hooks.scorers import FunctionScorer, Scorer, create_scorer
from qa_hooks.scorers.giqa.feature_scorer import FeatureScorer

PLAIN = ("psnr", "ssim", "ms_ssim", "niqe_bsd100", "niqe", "lpips", "dists", "perceptual:hed")
PIQ = ("piq:vsi", "piq:fsim", "piq:gmsd", "piq:haarpsi", "piq:mdsi", "piq:vif")
TINY, TINY_TYPES = ("psnr", "ssim"), ("01", "08")
CROP = 128
GREY = (0.299, 0.587, 0.114)


def published_ssim(images: Tensor, reference: Tensor) -> Tensor:
    """SSIM as the literature computes it: grey, the mean of 2 x 2 pixels, then SSIM."""
    pair = [
        nn.functional.avg_pool2d((x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True), 2)
        for x in (images, reference)
    ]
    return ssim(*pair)


def network_distance() -> Scorer:
    """Distance of unit-length maps of EfficientNet-Lite0's stages: LPIPS's form without its weights, nothing fitted."""
    extractor = create_extractor("efficientnet_lite0-stages")
    network: Any = extractor.network

    def distance(images: Tensor, reference: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        for a, b in zip(*(network.stages(extractor.prepare(x)) for x in (images, reference)), strict=True):
            a, b = (nn.functional.normalize(maps, dim=1) for maps in (a, b))
            total = total + (a - b).square().sum(1).mean((1, 2))
        return total

    return FunctionScorer(distance, name="distance in Lite0", higher_is_better=False, inputs={"reference"})


def rebuilt(ratings: Path, stimuli: Path) -> Ratings:
    """The ratings whose stimuli were made again, with their images; content 25 is no photograph."""
    names = [name for name in ("mos_with_names.txt", "tid2013.txt") if (ratings / name).is_file()]
    if not names:
        raise ValueError(f"{ratings} holds neither mos_with_names.txt nor tid2013.txt")
    table = read_ratings(ratings / names[0])
    rows = [
        row
        for row, (content, kind) in enumerate(zip(table.content, table.kind, strict=True))
        if kind in TYPES and content.upper() != "I25"
    ]
    kept = table.select(rows)
    return replace(kept, images=find_images(kept.names, stimuli), across_contents=True)


def check_types(ratings: Ratings, scores: dict[str, Any]) -> dict[str, dict[str, float]]:
    """PSNR's and SSIM's rank correlation of each type beside the published ones, and whether the type passes."""
    found = {}
    for kind in sorted(set(ratings.kind)):
        rows = [row for row, own in enumerate(ratings.kind) if own == kind]
        ours = [
            agreement(scores[name][rows], ratings.goodness[rows], clusters=[ratings.content[row] for row in rows]).value
            for name in ("psnr", "ssim as published")
        ]
        apart = max(abs(own - theirs) for own, theirs in zip(ours, PUBLISHED[kind], strict=True))
        found[kind] = {"psnr": ours[0], "ssim": ours[1], "apart": apart, "passes": apart <= TOLERANCE}
    return found


def crops_of(folder: Path) -> Tensor:
    """Crops `(n, 3, 128, 128)` uint8 that do not overlap, of all photographs of a folder."""
    found = []
    for path in list_images(folder):
        image = load_image(path)
        for top in range(0, image.shape[1] - CROP + 1, CROP):
            for left in range(0, image.shape[2] - CROP + 1, CROP):
                found.append(image[:, top : top + CROP, left : left + CROP].expand(3, -1, -1))
    return torch.stack(found)


def fitted(photos: Path, out: Path) -> dict[str, Scorer]:
    """The scorers that are fitted, on crops of other photographs; kept in `out/scorers`."""
    crops, cache = crops_of(photos).float() / 255, out / "scorers"
    stages, middle = "efficientnet_lite0-stages", "efficientnet_lite0-middle"
    specs: dict[str, dict[str, Any]] = {  # 600 crops are enough for three components of 64 dimensions
        "rank": {"type": "rank", "fit": photos},
        "giqa-knn (middle)": {"type": "giqa-knn", "extractor": middle, "k": 5},
        "giqa-sgm (middle)": {"type": "giqa-sgm", "extractor": middle},
        "giqa-gmm (middle)": {"type": "giqa-gmm", "extractor": middle, "components": 3, "pca": 32},
        "giqa-knn (stages)": {"type": "giqa-knn", "extractor": stages, "k": 1},
        "giqa-sgm (stages)": {"type": "giqa-sgm", "extractor": stages},
        "giqa-gmm (stages)": {"type": "giqa-gmm", "extractor": stages, "components": 3, "pca": 64},
        "giqa-knn (last layer)": {"type": "giqa-knn", "extractor": "efficientnet_lite0", "k": 1},
    }
    made = {}
    for name, spec in specs.items():
        print(f"fitting {name}", flush=True)
        try:
            made[name] = create_scorer({"fit": crops, "cache": cache, **spec})
        except (TypeError, ImportError, ValueError) as error:
            print(f"  left out: {error}", flush=True)
    return made


def scores_in_features(named: dict[str, FeatureScorer], files: list[Path], out: Path) -> dict[str, Any]:
    """Goodness of the images; scorers in the features of one network share them, and they are kept in `out`."""
    found, content = {}, fingerprint(*(path.read_bytes() for path in files))
    for name, scorer in named.items():
        kept = out / "features" / f"{scorer.extractor.name}-{scorer.extractor.fingerprint}-{content}.safetensors"
        if not kept.is_file():
            print(f"features of {len(files)} images in {scorer.extractor.name}", flush=True)
            values = extract_features(scorer.extractor, files, batch_size=8).values
            kept.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(kept) as partial:
                save_file({"values": values.contiguous()}, partial)
        found[name] = scorer.score_features(load_file(kept)["values"]).double().numpy()
    return found


def named_scorers(options: argparse.Namespace) -> tuple[dict[str, Scorer], dict[str, FeatureScorer]]:
    """The scorers that look at images, and those that share an extractor's features."""
    named: dict[str, Scorer] = {}
    plain = TINY if options.tiny else (*PLAIN, *PIQ)
    for spec in (*plain, *options.scorers):
        try:
            scorer = create_scorer(spec)
            named[spec if spec in plain else scorer.name] = scorer
        except Exception as error:  # weights that cannot be had here, packages that are missing
            print(f"{spec} is left out: {str(error).splitlines()[0]}", flush=True)
    in_features: dict[str, FeatureScorer] = {}
    if options.photos is not None:
        for name, scorer in fitted(options.photos, options.out).items():
            if isinstance(scorer, FeatureScorer):
                in_features[name] = scorer
            else:
                named[name] = scorer
    try:
        if not options.tiny:
            named["distance in Lite0"] = network_distance()
    except ImportError as error:
        print(f"the distance in Lite0 is left out: {error}", flush=True)
    named["ssim as published"] = FunctionScorer(
        published_ssim, name="ssim as published", higher_is_better=True, inputs={"reference"}
    )
    return {name: scorer for name, scorer in named.items() if name not in options.leave_out}, in_features


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks opinions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kodak", type=Path, help="the 24 Kodak photographs")
    parser.add_argument("--ratings", type=Path, help="the folder of TID2013's labels")
    parser.add_argument("--photos", type=Path, help="photographs of other contents, to fit on")
    parser.add_argument("--out", type=Path, default=Path("runs/opinions"), help="stimuli, scores and the table")
    parser.add_argument("--scorers", nargs="*", default=[], help="further scorers, such as files of yours")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="scorers that take too long here")
    parser.add_argument("--fit", action="store_true", help="also fit on the ratings, and judge on contents held out")
    parser.add_argument("--time", action="store_true", help="also measure what each scorer costs: on a quiet machine")
    parser.add_argument("--tiny", action="store_true", help="small pictures and ratings that were made up")
    options = parser.parse_args(arguments)
    if not options.tiny and (options.kodak is None or options.ratings is None):
        parser.error("name the Kodak photographs and the labels, --kodak DIR --ratings DIR, or add --tiny")
    return options


def main(arguments: Sequence[str]) -> None:
    options = read_options(arguments)
    size, stimuli_folder = None, options.out / "stimuli"
    if options.tiny:
        options.kodak = options.ratings = options.out / "tiny"
        size, options.fit = make_tiny(options.kodak, TINY_TYPES), True
    rebuild(options.kodak, stimuli_folder, size, kinds=TINY_TYPES if options.tiny else tuple(TYPES))
    ratings = rebuilt(options.ratings, stimuli_folder)
    named, in_features = named_scorers(options)
    stimuli = [
        Stimulus(path, stimuli_folder / f"{content.upper()}.png") if path is not None else None
        for path, content in zip(ratings.images, ratings.content, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, problems = score_stimuli(stimuli, named, options.out / "scores")
        files = [stimulus.image for stimulus in stimuli if stimulus is not None]
        scores.update(scores_in_features(in_features, files, options.out))
    for name, failed in problems.items():
        print(f"{name} failed on {len(failed)} images; the first: {next(iter(failed.values()))}")
    types = check_types(ratings, scores)
    print(text_table([("type", "PSNR", "published", "SSIM", "published", "rebuilt"), *(
        (NAMES[kind], f"{row['psnr']:.3f}", f"{PUBLISHED[kind][0]:.3f}", f"{row['ssim']:.3f}",
         f"{PUBLISHED[kind][1]:.3f}", "yes" if row["passes"] else "no") for kind, row in types.items()
    )]), end="\n\n")  # fmt: skip
    passing = [row for row, kind in enumerate(ratings.kind) if types[kind]["passes"] or options.tiny]
    kept = replace(ratings.select(passing), level=[])
    del scores["ssim as published"]
    scores = {name: values[passing] for name, values in scores.items()}
    if options.fit:
        settings = {"types": sorted(set(kept.kind)), "images": len(kept), "tiny": options.tiny}
        results = Results(options.out / "fit", settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            own = by_default(kept, options.out, scores, tiny=options.tiny)
            known = fitted_scores(kept, stimuli_folder, options.out, results, tiny=options.tiny)
        scores.update({name: values for name, values in known.items() if "seed" not in name or "seed 0" in name})
        lines = [f"  {name}: {short(row[0])} ({short(row[1])}, {short(row[2])})" for name, row in own.items()]
        print("one `qa-hooks fit mos` with its defaults, SRCC on the six contents that it holds out:", *lines, sep="\n")
        print(*seeds_apart(kept, known), sep="\n", end="\n\n")
    report = report_agreement(kept, scores)
    times: dict[str, float] = {}
    if options.time:
        there = [stimulus for stimulus in stimuli if stimulus is not None]
        times = {name: milliseconds(scorer, there) for name, scorer in {**named, **in_features}.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    report.save(options.out / "opinions.json")
    (options.out / "types.json").write_text(json.dumps({"types": types, "milliseconds": times}, indent=1))
    report.draw(options.out / "opinions.png")
    print(report)
    print("\n" + markdown(report, times))


def markdown(report: AgreementReport, times: dict[str, float]) -> str:
    """The table of docs/judges.md; an asterisk marks what cannot be told from the best."""
    kinds = [str(row.group) for row in report.rows if row[:1] == (report.metrics[0],) and row.column == "kind"
             and row.group is not None and row.statistic == "srcc"]  # fmt: skip
    heads = ["scorer", *(NAMES[kind] for kind in kinds), "mean of types", "all together", "pairs"]
    heads += ["ms"] if times else []
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in report.metrics:
        found = [report.value(name, "srcc", "kind", kind) for kind in (*kinds, None)]
        found += [report.value(name, "srcc"), report.value(name, "accuracy")]
        cells = [f"{short(one.value)} ({short(one.low)}, {short(one.high)})" for one in found]
        cells += [f"{times[name]:.0f}" if name in times else "-"] if times else []
        star = "*" if name in report.best else ""
        lines.append(f"| {name}{star} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(value: float) -> str:
    """`.93`, `-.05`, `1.00`."""
    return "-" if not np.isfinite(value) else f"{value:.2f}".replace("0.", ".", 1)
