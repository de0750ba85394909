"""`qa-hooks doctor`."""

from __future__ import annotations

import argparse

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help, read_device, scorer_spec, whole


def add_doctor(commands: Commands) -> None:
    """The parser of `qa-hooks doctor`."""
    doctor = commands.add_parser(
        "doctor",
        help="can a metric be a reward? gradient, batch, bf16, order, cost, hackability, measured",
        formatter_class=Help,
        description="Tries a metric in every way in which metrics are known to fail, and says whether it is usable as\n"
        "a reward, as a monitor only, or broken (exit code 3). Without --images the pictures are drawn on the\n"
        "spot: discs on top of each other, which have the statistics of photographs. Full-reference metrics\n"
        "are tried on degraded copies of the pictures, against the pictures.",
        epilog="examples:\n  qa-hooks doctor niqe_bsd100\n  qa-hooks doctor pyiqa:musiq --images photographs --json",
    )
    doctor.add_argument(
        "scorer", type=scorer_spec, help="a name, library:metric, a .safetensors file, or a JSON mapping"
    )
    doctor.add_argument("--images", metavar="DIR", help="photographs to try it on; the first two that are large enough")
    doctor.add_argument(
        "--size", type=whole(8), default=256, metavar="PX", help="side of the pictures, such as your crops'"
    )
    doctor.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    finish(doctor, _doctor, alarm="the metric is broken")


def _doctor(options: argparse.Namespace) -> Answer:
    from qa_hooks.rewards.doctor import BROKEN, diagnose, read_pictures
    from qa_hooks.scorers import create_scorer

    scorer = create_scorer(options.scorer).to(read_device(options.device))
    images = read_pictures(options.images, options.size, scorer) if options.images else None
    diagnosis = diagnose(scorer, images, size=options.size)
    return Answer(str(diagnosis), diagnosis.as_dict(), 3 if diagnosis.verdict == BROKEN else 0)
