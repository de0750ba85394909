"""`qa-hooks demo`, `scorers` and `info`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help, chosen, place, whole


def add_demo(commands: Commands) -> None:
    """The parser of `qa-hooks demo`."""
    demo = commands.add_parser(
        "demo",
        help="a minute or two: a GAN, a super-resolution network or a diffusion model, with a table and a picture",
        formatter_class=Help,
        description="gan: WGAN-GP on handwritten digits, plain and with QAGAN's penalties. sr: a network that doubles\n"
        "the side of a photograph, with and without an SSIM loss. diffusion: a model of digits, tuned on a score with\n"
        "and without a KL term. Each logs to TensorBoard and prints a table; nothing is downloaded.",
        epilog="examples:\n  qa-hooks demo --variants plain ssim --steps 600\n  qa-hooks demo diffusion",
    )
    demo.add_argument(
        "world",
        nargs="?",
        default="gan",
        choices=["gan", "sr", "diffusion"],
        metavar="WORLD",
        help="gan, sr or diffusion",
    )
    demo.add_argument(
        "-o",
        "--output",
        dest="out",
        type=place,
        default="runs/demo",
        metavar="DIR",
        help="folder for TensorBoard runs and pictures",
    )
    demo.add_argument("--data", help="a folder of images instead of the digits; subfolders are its classes")
    demo.add_argument("--variants", nargs="+", default=["plain", "ssim", "niqe"], metavar="V", help="plain, ssim, niqe")
    demo.add_argument(
        "--seeds", nargs="+", type=whole(0), default=[0], metavar="N", help="one run of each variant per seed"
    )
    demo.add_argument(
        "--steps", type=whole(), metavar="N", help="steps of a run (default: gan 1200, sr 300, diffusion 600)"
    )
    demo.add_argument("--equal", default="steps", choices=["steps", "time"], help="what the variants have in common")
    demo.add_argument(
        "--size", type=whole(), default=32, metavar="N", help="with --data: side of the images, 16, 32, 48 or 64"
    )
    demo.add_argument("--limit", type=whole(), default=10_000, metavar="N", help="with --data: how many images to read")
    demo.add_argument("--jobs", type=whole(), default=2, metavar="N", help="processes at a time")
    finish(demo, _demo)


def _demo(options: argparse.Namespace) -> Answer:
    from qa_hooks.demo import run_demo, run_diffusion_demo, run_sr_demo

    steps = {} if options.steps is None else {"steps": options.steps}
    if options.world == "gan":
        names = ("out", "data", "equal", "size", "limit", "jobs")
        variants, seeds = tuple(options.variants), tuple(options.seeds)
        runs = run_demo(variants=variants, seeds=seeds, **steps, **chosen(options, *names))
        return Answer("", {"runs": runs})
    if options.data is not None:
        raise ValueError(f"--data is for demo gan, not for demo {options.world}")
    run = {"sr": run_sr_demo, "diffusion": run_diffusion_demo}[options.world]
    return Answer("", {"rows": run(f"{options.out}/{options.world}", seed=options.seeds[0], **steps)})


def add_scorers(commands: Commands) -> None:
    """The parser of `qa-hooks scorers`."""
    scorers = commands.add_parser(
        "scorers",
        help="every scorer: direction, range, inputs, gradient, licence, cost, installed or not",
        formatter_class=Help,
        description="What --scorer and create_scorer() know. The cost is measured here and now, for one 256 x 256\n"
        "image in a batch of 8 on the CPU, of those that need neither fitting nor a download.",
        epilog="examples:\n  qa-hooks scorers\n  qa-hooks scorers mine.safetensors",
    )
    scorers.add_argument(
        "files", nargs="*", metavar="FILE", help="saved scorers, shown instead: what they are and how well they agree"
    )
    scorers.add_argument("--no-cost", action="store_true", help="do not measure, which takes a few seconds")
    finish(scorers, _scorers)


def _scorers(options: argparse.Namespace) -> Answer:
    from qa_hooks.cli.inventory import rows_of_files, rows_of_scorers
    from qa_hooks.drawing.tables import text_table

    missing = next((name for name in options.files if not Path(name).exists()), None)
    if missing is not None:
        raise ValueError(f"{missing} is no file; `qa-hooks scorers` without a name shows all that have one")
    rows = rows_of_files(options.files) if options.files else rows_of_scorers(cost=not options.no_cost)
    return Answer(text_table(rows, numbers=False), [dict(zip(rows[0], row, strict=True)) for row in rows[1:]])


def add_info(commands: Commands) -> None:
    """The parser of `qa-hooks info`."""
    info = commands.add_parser(
        "info",
        help="versions, extras and devices, for bug reports",
        formatter_class=Help,
        description="Versions of the package and of what it uses, the extras that are installed, and the devices.",
        epilog="example:\n  qa-hooks info",
    )
    finish(info, _info)


def _info(_options: argparse.Namespace) -> Answer:
    from qa_hooks.cli.inventory import describe_environment

    facts = describe_environment()
    return Answer("\n".join(f"{name:<12} {value}" for name, value in facts.items()), facts)
