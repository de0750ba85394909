"""`qa-hooks select`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_hooks.cli.agreeing import add_judging, add_opinions, judging, read_opinions_of
from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import SCORER, Commands, Help, add_device, place, read_device, scorer_spec, whole

USES = ("monitor", "reward", "cheap")


def add_select(commands: Commands) -> None:
    """The parser of `qa-hooks select`."""
    select = commands.add_parser(
        "select",
        help="which metric to use: scorers tried on rated images, with a recommendation for each use",
        formatter_class=Help,
        description="Scores rated images with every scorer and tells which agrees with people, which cannot be told\n"
        "from the best, what each costs, and which to take: as a monitor (agrees best), as a reward (the best that\n"
        "`qa-hooks doctor` calls usable as one), or cheaply (the fastest of the best). Scores are kept by content:\n"
        "the same command goes on where an interrupted one stopped, and a further scorer costs only its own scores.\n"
        "OUT gets report.txt, report.json, report.png and the scores.",
        epilog="examples:\n"
        "  qa-hooks select mos_with_names.txt tid2013/ --scorers psnr ssim niqe_bsd100 piq:vsi -o report\n"
        "  qa-hooks select data.csv agiqa3k/ --scorers niqe_bsd100 a.safetensors pyiqa:musiq --phases 3 -o report\n"
        "  qa-hooks select data.csv agiqa3k/ --target align --scorers torchmetrics:clip-score -o report",
    )
    add_opinions(select)
    select.add_argument("images", metavar="IMAGES", help="the folder that holds the rated images")
    select.add_argument("--scorers", nargs="+", required=True, type=scorer_spec, metavar="SPEC", help=SCORER)
    select.add_argument("-o", "--output", required=True, type=place, metavar="OUT", help="a folder for the report")
    select.add_argument("--references", metavar="DIR", help="the folder of the references (default: IMAGES)")
    select.add_argument("--target", metavar="R", help="the same as --rating; align: agreement with the prompt")
    select.add_argument(
        "--use", nargs="+", default=list(USES), choices=USES, help="what a recommendation is wanted for"
    )
    select.add_argument(
        "--phases", type=whole(), default=1, metavar="N",
        help="successive halving: all metrics on few contents, the better half on three times as many, N times",
    )  # fmt: skip
    select.add_argument("--cache", metavar="DIR", help="keep the scores there (default: OUT/scores)")
    add_judging(select)
    add_device(select, batch_size=16)
    finish(select, _select, resumes=True)


def _select(options: argparse.Namespace) -> Answer:
    from qa_hooks._base.files import check_writable
    from qa_hooks.ratings import select_metrics

    if options.target is not None:
        if options.rating not in (None, options.target):
            raise ValueError(f"--target {options.target} and --rating {options.rating} name two ratings: name one")
        options.rating = options.target
    check_writable(options.output, name="--output")
    opinions = read_opinions_of(options, options.images)
    selection = select_metrics(
        opinions,
        options.scorers,
        options.cache or Path(options.output) / "scores",
        references=options.references or options.images,
        uses=options.use,
        phases=options.phases,
        batch_size=options.batch_size,
        device=read_device(options.device),
        **judging(options),
    )
    selection.save(options.output)
    return Answer(str(selection), selection.as_dict())
