"""`qa-hooks fit afine`: from people's judgements, from photographs, or from the published checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from qa_hooks.cli.agreeing import add_reading, read_opinions_of
from qa_hooks.cli.answers import Answer, finish, saved
from qa_hooks.cli.options import (
    Commands,
    Help,
    add_device,
    add_shared,
    between,
    launched_processes,
    place,
    read_device,
    say,
    scorer_file,
    whole,
)

STAGES = "random, efficientnet_lite0-stages, hed-stages, or DINOv2"


def add_afine(kinds: Commands) -> None:
    """The parser of `qa-hooks fit afine`."""
    afine = kinds.add_parser(
        "afine",
        help="a score beside a reference that may be the worse image",
        formatter_class=Help,
        description="A-FINE: fidelity to the reference and naturalness, weighed by which image is the more natural.\n"
        "Trains both parts on an extractor's stages, in three stages, from judged images beside their references\n"
        "(RATINGS and IMAGES) or from pairs that are made of good photographs (--photos). Says how many pairs of\n"
        "held-out contents it puts in the right order. --convert turns the published afine.pth into safetensors.",
        epilog="examples:\n"
        "  qa-hooks fit afine --photos photos/ -o afine.safetensors --cache statistics/\n"
        "  qa-hooks fit afine tid2013/mos_with_names.txt tid2013/ -o afine.safetensors\n"
        "  qa-hooks fit afine mine.csv images/ --columns name=file rating=stars reference=of --better higher "
        "-o afine.safetensors\n"
        "  qa-hooks fit afine triplets.csv diffiqa/ -o afine.safetensors --extractor hed-stages\n"
        "  qa-hooks fit afine --convert afine.pth -o afine.safetensors",
    )
    afine.add_argument("ratings", nargs="?", metavar="RATINGS", help="a file of ratings or preferences, any known set")
    afine.add_argument("images", nargs="?", metavar="IMAGES", help="the folder with its images and their references")
    afine.add_argument("--photos", metavar="DIR", help="good photographs instead of ratings")
    afine.add_argument("--convert", metavar="FILE", help="the published checkpoint instead of a training")
    afine.add_argument("-o", "--output", required=True, type=place, metavar="FILE", help="the .safetensors file")
    add_shared(afine, "--extractor", default="efficientnet_lite0-stages", help=STAGES)
    add_reading(afine)
    afine.add_argument(
        "--least", type=between(0), default=0.0, metavar="D", help="ratings that differ by no more are a tie"
    )
    afine.add_argument(
        "--kind", default="both", choices=["worse", "better", "both"], help="with --photos: than their references"
    )
    afine.add_argument("--crop", type=whole(), default=192, metavar="N", help="with --photos: side of the crops")
    afine.add_argument("--crops", type=whole(), default=1, metavar="N", help="with --photos: crops of each")
    afine.add_argument("--steps", type=whole(), default=1000, metavar="N", help="of each of the three stages")
    afine.add_argument(
        "--held-out",
        type=between(0, 1, ends="none"),
        default=0.2,
        metavar="F",
        help="share of the contents to measure on",
    )
    afine.add_argument(
        "--cache", metavar="DIR", help="keep what was seen of the images; a run that was cut off goes on"
    )
    afine.add_argument(
        "--seed", type=whole(0), default=0, metavar="N", help="of weights, crops and the held-out contents"
    )
    add_device(afine, batch_size=64)
    finish(afine, _fit_afine)


def _fit_afine(options: argparse.Namespace) -> Answer:
    from qa_hooks._base.processes import rank
    from qa_hooks.scorers import AFINE

    asked = [bool(options.ratings), bool(options.photos), bool(options.convert)]
    if sum(asked) != 1 or bool(options.ratings) != bool(options.images):
        raise ValueError("give RATINGS and IMAGES, or --photos DIR, or --convert FILE")
    output = scorer_file(options.output)
    options.resumes = bool(options.cache)  # what Ctrl-C says
    if options.convert:
        scorer: Any = AFINE(options.convert)
        scorer.save(output)
        return saved(output, scorer, f"{output}: the published A-FINE, fingerprint {scorer.fingerprint}")
    with launched_processes():
        scorer = _trained(options)
        if rank() == 0:
            scorer.save(output)
    held = scorer.held_out
    interval = f" ({held['low']:.3f} to {held['high']:.3f})" if "low" in held else ""
    said = f"right in {held['accuracy']:.3f}{interval} of" if "accuracy" in held else "nothing can be said of"
    of = f"{held['pairs']:.0f} held-out pairs of {held.get('contents', 0):.0f} contents"
    return saved(output, scorer, f"{output}: {scorer.name}, {said} {of}", held_out=dict(held))


def _trained(options: argparse.Namespace) -> Any:
    from qa_hooks.scorers import FittedAFINE
    from qa_hooks.sources.grids import find_images

    scorer = FittedAFINE(options.extractor, seed=options.seed).to(read_device(options.device))
    shared: dict[str, Any] = {name: getattr(options, name) for name in ("steps", "batch_size", "held_out", "cache")}
    if options.photos:
        paths = find_images(options.photos)
        return scorer.fit(paths, kind=options.kind, crop=options.crop, crops=options.crops, **shared)
    comparisons = _judged(options)
    say(str(comparisons))
    return scorer.fit_comparisons(comparisons, **shared)


def _judged(options: argparse.Namespace) -> Any:
    """Ratings or preferences: whichever the file is."""
    from qa_hooks.ratings import as_comparisons

    return as_comparisons(read_opinions_of(options), options.images, least=options.least)
