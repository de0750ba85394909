"""`qa-hooks fit mos` and `qa-hooks fit pairs`: a scorer of your own opinions."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qa_hooks.cli.agreeing import add_opinions, read_opinions_of
from qa_hooks.cli.options import (
    EXTRACTORS,
    Commands,
    Help,
    add_device,
    add_held_out,
    add_shared,
    chosen,
    launched_processes,
    place,
    read_device,
    say,
    scorer_file,
)

DESCRIPTION = (
    "Contents are divided, never images: a quarter of them takes no part, and on these it is measured how well the\n"
    "scorer agrees with people. The number and its interval go into the file (`qa-hooks scorers FILE` shows them).\n"
    "A hundred images are enough to begin with; the interval says how little they tell. Before you train on the\n"
    "scorer: `qa-hooks doctor FILE`."
)


def add_mos(kinds: Commands) -> None:
    """The parser of `qa-hooks fit mos`."""
    mos = kinds.add_parser(
        "mos",
        help="a scorer from ratings of images",
        formatter_class=Help,
        description=f"Fits a scorer on ratings of images, in their own units and direction.\n{DESCRIPTION}",
        epilog="examples:\n"
        "  qa-hooks fit mos tid2013/mos_with_names.txt tid2013/distorted_images -o mine.safetensors\n"
        "  qa-hooks fit mos stars.csv photos --columns name=file rating=stars --better higher -o mine.safetensors\n"
        "  qa-hooks fit mos data.csv agiqa3k --rating align --extractor transformers:MODEL -o mine.safetensors",
    )
    add_opinions(mos)
    _add_rest(mos, _fit_mos)


def add_pairs(kinds: Commands) -> None:
    """The parser of `qa-hooks fit pairs`."""
    pairs = kinds.add_parser(
        "pairs",
        help="a scorer from pairs of images of which people said which is better",
        formatter_class=Help,
        description=f"Fits a scorer on judged pairs, such as `qa-hooks rate` writes.\n{DESCRIPTION}",
        epilog="example:\n  qa-hooks rate photos -o pairs.csv\n"
        "  qa-hooks fit pairs pairs.csv photos -o mine.safetensors",
    )
    pairs.add_argument("pairs", metavar="PAIRS", help="a CSV (image_a,image_b,label), a published set, or a folder")
    pairs.add_argument("--format", default="auto", metavar="F", help="auto, imagereward, hpd or diffiqa")
    pairs.add_argument(
        "--link", default="thurstone", choices=["thurstone", "bradley-terry"], help="from scores to probabilities"
    )
    _add_rest(pairs, _fit_pairs)


def _add_rest(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], None]) -> None:
    parser.add_argument("images", metavar="IMAGES", help="the folder of the images")
    parser.add_argument(
        "-o", "--output", required=True, type=place, metavar="FILE", help="the .safetensors file to write"
    )
    parser.add_argument(
        "--about", choices=["image", "alignment"],
        help="alignment: how well an image fits its prompt, with --extractor transformers:MODEL (default: what the "
        "ratings say)",
    )  # fmt: skip
    add_shared(
        parser, "--extractor", default=None, help=f"efficientnet_lite0-stages where it is installed; {EXTRACTORS}"
    )
    parser.add_argument("--weights", metavar="FILE", help="the extractor's weights on disk, where nothing downloads")
    parser.add_argument(
        "--cache", metavar="DIR", help="keeps features, for another fit (default: beside the output, until it is done)"
    )
    add_held_out(parser, share=0.25, of="share of the contents")
    add_device(parser, batch_size=16)
    parser.set_defaults(run=run, resumes=True)


def _fit_mos(options: argparse.Namespace) -> None:
    from qa_hooks.ratings import Ratings, fit_mos

    output = scorer_file(options.output)
    opinions = read_opinions_of(options, options.images)
    if not isinstance(opinions, Ratings):
        raise ValueError(f"{options.ratings} holds preferences, not ratings: qa-hooks fit pairs")
    _fitted(options, output, lambda **how: fit_mos(opinions, **how))


def _fit_pairs(options: argparse.Namespace) -> None:
    from qa_hooks.ratings import fit_pairs, read_preferences

    output = scorer_file(options.output)
    reading = chosen(options, "format", "images")
    _fitted(
        options, output, lambda **how: fit_pairs(read_preferences(options.pairs, **reading), link=options.link, **how)
    )


def _fitted(options: argparse.Namespace, output: Path, fit: Callable[..., Any]) -> None:
    """Fit with the shared options, save, and say what came out."""
    from qa_hooks._base.processes import rank
    from qa_hooks.scorers.opinions.scorer import agreement_text

    if options.weights and options.extractor is None:
        raise ValueError("--weights belongs to an extractor: name it with --extractor")
    extractor = {"type": options.extractor, "weights": options.weights} if options.weights else options.extractor
    own = options.cache is None
    cache = output.with_name(f"{output.name}.features") if own else Path(options.cache)
    how = chosen(options, "held_out", "calibration", "batch_size", "seed")
    how |= {"about": options.about} if options.about else {}
    with launched_processes():
        scorer = fit(extractor=extractor, cache=cache, device=read_device(options.device), **how)
        if rank() == 0:
            scorer.save(output)
            if own:
                shutil.rmtree(cache, ignore_errors=True)
    facts = scorer.facts
    say(f"fitted on {facts['images']} images of {facts['contents']} contents, in {scorer.extractor.name}")
    say(f"agreement with people: {agreement_text(facts)}")
    say(f"{output}: {scorer.name}; before you train on it: qa-hooks doctor {output}")
