"""The `qa-hooks` command: argument parsing only; each command calls one public function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 with a message on bad input, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        print(f"qa-hooks {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qa-hooks", description="Image-quality feedback for training loops.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_fit(commands)
    _add_info(commands)
    return parser


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="train WGAN-GP on digits, plain and with QAGAN's penalties, and compare",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Trains each variant as a one-thread process, logs to TensorBoard, and prints a table. "
        "About a minute and a half on two cores with the defaults; nothing is downloaded.",
    )
    demo.add_argument("--out", default="runs/demo", help="folder for TensorBoard runs, samples.png and results.json")
    demo.add_argument("--data", help="a folder of images instead of the digits; subfolders are its classes")
    demo.add_argument("--variants", nargs="+", default=["plain", "ssim", "niqe"], metavar="V", help="plain, ssim, niqe")
    demo.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run of each variant per seed")
    demo.add_argument("--steps", type=int, default=1200, help="generator steps of a run")
    demo.add_argument("--equal", default="steps", choices=["steps", "time"], help="what the variants have in common")
    demo.add_argument("--size", type=int, default=32, help="with --data: side of the images, 16, 32 or 64")
    demo.add_argument("--limit", type=int, default=10_000, help="with --data: how many images to read")
    demo.add_argument("--jobs", type=int, default=2, help="processes at a time")
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from qa_hooks.demo import run_demo

    run_demo(
        out=options.out,
        data=options.data,
        variants=tuple(options.variants),
        seeds=tuple(options.seeds),
        steps=options.steps,
        equal=options.equal,
        size=options.size,
        limit=options.limit,
        jobs=options.jobs,
    )


def _add_fit(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    fit = commands.add_parser("fit", help="fit a model on a folder of images")
    kinds = fit.add_subparsers(dest="kind", required=True, metavar="KIND")
    niqe = kinds.add_parser(
        "niqe",
        help="a model of natural images for NIQE",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Fits NIQE's model of natural images on undistorted photographs and writes it as safetensors.",
    )
    niqe.add_argument("folder", metavar="DIR", help="a folder of photographs")
    niqe.add_argument("-o", "--output", required=True, help="the file to write, for example niqe.safetensors")
    niqe.add_argument("--name", help="of the model; scores are called niqe_NAME (default: the folder's name)")
    niqe.add_argument("--block", type=int, default=96, help="side of the blocks in pixels")
    niqe.add_argument("--color", default="gray", choices=["gray", "y_ycbcr", "y_yiq"], help="the grey conversion")
    niqe.add_argument(
        "--sharpness", type=float, default=0.3, help="keep blocks this sharp relative to their image's sharpest"
    )
    niqe.add_argument("--shrink", type=float, default=0.03, help="share by which the covariance moves to its diagonal")
    niqe.add_argument("--limit", type=int, help="use only the first so many files by name")
    niqe.set_defaults(run=_fit_niqe)


def _fit_niqe(options: argparse.Namespace) -> None:
    from qa_hooks.scorers.niqe import fit_naturalness
    from qa_hooks.writers import check_writable

    check_writable(Path(options.output).parent, name="--output")
    model = fit_naturalness(
        options.folder,
        options.output,
        block=options.block,
        color=options.color,
        sharpness=options.sharpness,
        shrink=options.shrink,
        limit=options.limit,
        name=options.name,
    )
    print(f"{options.output}: fitted on {model.count} blocks")


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    info = commands.add_parser("info", help="versions, extras and devices, for bug reports")
    info.set_defaults(run=_info)


def _info(_options: argparse.Namespace) -> None:
    from qa_hooks.info import describe_environment

    print(describe_environment())
