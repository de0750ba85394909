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
from torch import Tensor

from benchmarks.opinions_fit import AFINE, TINY, by_default, fitted_scores, seeds_apart, stage_features
from benchmarks.opinions_scorers import AS_PUBLISHED, as_published, named_scorers, scores_in_features
from benchmarks.tid_stimuli import NAMES, PUBLISHED, SIZE, TOLERANCE, TYPES, make_tiny, rebuild
from qa_hooks.demo.results import Results
from qa_hooks.drawing.tables import text_table
from qa_hooks.features import create_extractor
from qa_hooks.ratings import AgreementReport, Ratings, agreement, read_ratings, report_agreement
from qa_hooks.ratings.images import find_images
from qa_hooks.ratings.opinion_features import rated_features
from qa_hooks.ratings.scoring import Stimulus, score_stimuli
from qa_hooks.ratings.speed import milliseconds

USUAL, TINY_TYPES = ("01", "06", "08", "10", "11"), ("01", "08")


def rebuilt(ratings: Path, stimuli: Path, kinds: Sequence[str]) -> Ratings:
    """The ratings whose stimuli were made again, with their images; content 25 is no photograph."""
    names = [name for name in ("mos_with_names.txt", "tid2013.txt") if (ratings / name).is_file()]
    if not names:
        raise ValueError(f"{ratings} holds neither mos_with_names.txt nor tid2013.txt")
    table = read_ratings(ratings / names[0])
    rows = [
        row
        for row, (content, kind) in enumerate(zip(table.content, table.kind, strict=True))
        if kind in kinds and content.upper() != "I25"
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
            for name in AS_PUBLISHED
        ]
        apart = max(abs(own - theirs) for own, theirs in zip(ours, PUBLISHED[kind], strict=True))
        found[kind] = {"psnr": ours[0], "ssim": ours[1], "apart": apart, "passes": apart <= TOLERANCE}
    return found


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks opinions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kodak", type=Path, help="the 24 Kodak photographs")
    parser.add_argument("--ratings", type=Path, help="the folder of TID2013's labels")
    parser.add_argument("--photos", type=Path, help="photographs of other contents, to fit on")
    parser.add_argument("--out", type=Path, default=Path("runs/opinions"), help="stimuli, scores and the table")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(USUAL), help="TID2013's numbers")
    parser.add_argument("--scorers", nargs="*", default=[], help="further scorers, such as files of yours")
    parser.add_argument("--leave-out", nargs="*", default=[], metavar="NAME", help="scorers that take too long here")
    parser.add_argument("--fit", action="store_true", help="also fit on the ratings, and judge on contents held out")
    parser.add_argument(
        "--afine", nargs="*", default=list(AFINE), metavar="EXTRACTOR", help="of --fit: hed-stages is slow"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the A-FINEs of --fit")
    parser.add_argument("--check", action="store_true", help="only say which types are rebuilt")
    parser.add_argument("--time", action="store_true", help="also measure what each scorer costs: on a quiet machine")
    parser.add_argument("--tiny", action="store_true", help="small pictures and ratings that were made up")
    options = parser.parse_args(arguments)
    if not options.tiny and (options.kodak is None or options.ratings is None):
        parser.error("name the Kodak photographs and the labels, --kodak DIR --ratings DIR, or add --tiny")
    return options


def main(arguments: Sequence[str]) -> None:
    options = read_options(arguments)
    size, stimuli_folder = SIZE, options.out / "stimuli"
    if options.tiny:
        options.kodak = options.ratings = options.out / "tiny"
        options.types, options.fit = list(TINY_TYPES), True
        size = make_tiny(options.kodak, options.types)
    rebuild(options.kodak, stimuli_folder, options.types, size)
    ratings = rebuilt(options.ratings, stimuli_folder, options.types)
    named, in_features = (as_published(), {}) if options.check else named_scorers(options)
    stimuli = [
        Stimulus(path, stimuli_folder / f"{content.upper()}.png") if path is not None else None
        for path, content in zip(ratings.images, ratings.content, strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores, problems = score_stimuli(stimuli, named, options.out / "scores")
        files = [stimulus.image for stimulus in stimuli if stimulus is not None]
        features: dict[str, Tensor] = {}
        if options.tiny:
            features["random"] = rated_features(create_extractor(TINY), files, cache=options.out / "features").values
        elif options.fit:
            features = stage_features(ratings, stimuli_folder, options.out / "statistics")
        scores.update(scores_in_features(in_features, files, options.out, features))
    for name, failed in problems.items():
        print(f"{name} failed on {len(failed)} images; the first: {next(iter(failed.values()))}")
    types = check_types(ratings, scores)
    print(text_table([("type", "PSNR", "published", "SSIM", "published", "rebuilt"), *(
        (NAMES[kind], f"{row['psnr']:.3f}", f"{PUBLISHED[kind][0]:.3f}", f"{row['ssim']:.3f}",
         f"{PUBLISHED[kind][1]:.3f}", "yes" if row["passes"] else "no") for kind, row in types.items()
    )]), end="\n\n")  # fmt: skip
    if options.check:
        return
    passing = [row for row, kind in enumerate(ratings.kind) if types[kind]["passes"] or options.tiny]
    kept = replace(ratings.select(passing), level=[])
    scores = {name: values[passing] for name, values in scores.items() if name not in AS_PUBLISHED}
    if options.fit:
        settings = {"types": sorted(set(kept.kind)), "images": len(kept), "tiny": options.tiny}
        results = Results(options.out / "fit", settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            chosen = {name: values[passing] for name, values in features.items()}
            own = by_default(kept, chosen, scores, tiny=options.tiny)
            afine = dict.fromkeys(options.afine, options.seeds)
            known = fitted_scores(kept, chosen, stimuli_folder, options.out, results, afine, tiny=options.tiny)
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
