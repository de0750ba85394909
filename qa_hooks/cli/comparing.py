"""`qa-hooks compare`."""

from __future__ import annotations

import argparse
import os

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import (
    UNUSED,
    Commands,
    Help,
    add_device,
    add_shared,
    between,
    check_picture,
    chosen,
    launched_processes,
    place,
    read_device,
    say_failures,
    whole,
)
from qa_hooks.cli.wording import in_options

METRICS = "fd, kid, pr (precision, recall, density, coverage), qs, ds; separated by commas; none for scorers alone"


def add_compare(commands: Commands) -> None:
    """The parser of `qa-hooks compare`."""
    compare = commands.add_parser(
        "compare",
        help="compare folders of generated images with real ones and with each other",
        formatter_class=Help,
        description="Prints a table of metrics with their intervals, and of the differences to the first folder with\n"
        "a verdict: better, worse, or cannot tell. All folders are measured on equally many images, in one\n"
        "extractor's features; untrained features give no verdict. Images that cannot be read are listed and counted.",
        epilog="examples:\n"
        "  qa-hooks compare photos/ run_a/samples run_b/samples --extractor inception --report report.png\n"
        "  qa-hooks compare photos/ a/ b/ --metrics kid,qs,ds --extractor dinov2_vits14 --scorer niqe_bsd100\n"
        "  qa-hooks compare targets/ sr_a/ sr_b/ --metrics none --scorer psnr ssim --paired --json > result.json\n"
        "  torchrun --nproc_per_node 2 -m qa_hooks compare photos/ a/ b/ --extractor inception --cache features/",
    )
    compare.add_argument("real", metavar="REAL_DIR", help="real images; the references of psnr, ssim, ...")
    compare.add_argument("folders", metavar="FAKE_DIR", nargs="+", help="generated images")
    add_shared(compare, "--metrics", default="fd,kid,pr", help=METRICS)
    add_shared(compare, "--scorer", nargs="+", default=[])
    add_shared(compare, "--extractor")
    compare.add_argument(
        "--paired", action="store_true", help="files of one name belong together (one seed, one input)"
    )
    compare.add_argument(
        "--n", type=whole(2), metavar="N", help="images of each folder (default: what the smallest has)"
    )
    compare.add_argument("--n-real", type=whole(), metavar="N", help="real images (default: all)")
    add_shared(compare, "--grid")
    compare.add_argument("--size", type=whole(), metavar="N", help="the extractor resizes images to N x N")
    compare.add_argument(
        "--always-judge", action="store_true", help="a verdict also in untrained features (random) and on few images"
    )
    compare.add_argument(
        "--confidence", type=between(0, 1, ends="none"), default=0.95, metavar="F", help="of the intervals"
    )
    compare.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the choice of images")
    compare.add_argument(
        "--report", type=place, metavar="FILE", help="also draw histograms, best and worst images (PNG)"
    )
    compare.add_argument("--cache", metavar="DIR", help="keep features there; what has not changed is not made again")
    add_shared(compare, "--strict")
    add_device(compare, batch_size=64)
    finish(compare, _compare, alarm="images that could not be used (--strict)")


def _compare(options: argparse.Namespace) -> Answer:
    from qa_hooks.folders.comparing.compare_folders import compare_folders
    from qa_hooks.folders.comparing.report import write_report

    check_picture(options.report)
    names = ["metrics", "extractor", "paired", "n", "n_real", "seed", "confidence", "batch_size", "cache"]
    names += ["size", "always_judge", "grid"]
    with launched_processes():
        result = compare_folders(
            options.real,
            options.folders,
            scorers=options.scorer,
            device=read_device(options.device),
            **chosen(options, *names),
        )
    result.notes = [in_options(note, options.parser) for note in result.notes]
    parts = (result.real, *result.folders)
    code = UNUSED if options.strict and any(part.failures | part.refused for part in parts) else 0
    for part in parts:
        say_failures(part.failures | part.refused, label=part.label, where="--json has all")
    if options.report is not None and os.environ.get("RANK", "0") == "0":
        write_report(result, options.report)
    return Answer(str(result), result.as_json(), code)
