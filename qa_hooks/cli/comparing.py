"""`qa-hooks compare` and `watch`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from qa_hooks.cli.fitting import EXTRACTORS
from qa_hooks.cli.folders import SCORER
from qa_hooks.cli.options import Commands, Help, add_device, launched_processes, read_device, say, scorer_spec

ALARMED = 3  # exit code
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
        "  qa-hooks compare targets/ sr_a/ sr_b/ --metrics none --scorer psnr ssim --paired --json result.json\n"
        "  torchrun --nproc_per_node 2 -m qa_hooks compare photos/ a/ b/ --extractor inception --cache features/",
    )
    compare.add_argument("real", metavar="REAL_DIR", help="real images; the references of psnr, ssim, ...")
    compare.add_argument("folders", metavar="FAKE_DIR", nargs="+", help="generated images")
    compare.add_argument("--metrics", type=read_metrics, default="fd,kid,pr", metavar="M", help=METRICS)
    compare.add_argument("--scorer", nargs="+", default=[], type=scorer_spec, metavar="SPEC", help=SCORER)
    compare.add_argument("--extractor", default="random", metavar="E", help=EXTRACTORS)
    compare.add_argument(
        "--paired", action="store_true", help="files of one name belong together (one seed, one input)"
    )
    compare.add_argument("--n", type=int, metavar="N", help="images of each folder (default: what the smallest has)")
    compare.add_argument("--n-real", type=int, metavar="N", help="real images (default: all)")
    compare.add_argument("--size", type=int, metavar="N", help="the extractor resizes images to N x N")
    compare.add_argument(
        "--always-judge", action="store_true", help="a verdict also in untrained features (random) and on few images"
    )
    compare.add_argument("--confidence", type=float, default=0.95, metavar="F", help="of the intervals")
    compare.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images")
    compare.add_argument("--json", metavar="FILE", help="also write all numbers there")
    compare.add_argument("--report", metavar="FILE", help="also draw histograms, best and worst images as a PNG")
    compare.add_argument("--cache", metavar="DIR", help="keep features there; what has not changed is not made again")
    add_device(compare, batch_size=64)
    compare.set_defaults(run=_compare)


def read_metrics(text: str) -> tuple[str, ...]:
    """`--metrics fd,kid` or `none`."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names in ((), ("none",)) else names


def _compare(options: argparse.Namespace) -> None:
    from qa_hooks._base.files import check_writable
    from qa_hooks.folders.comparing.compare_folders import compare_folders
    from qa_hooks.folders.comparing.report import check_report, write_report

    if options.report is not None:
        check_report(options.report)
    if options.json is not None:
        check_writable(Path(options.json).parent, name="--json")
    names = ["metrics", "extractor", "paired", "n", "n_real", "seed", "confidence", "batch_size", "cache"]
    names += ["size", "always_judge"]
    with launched_processes():
        result = compare_folders(
            options.real,
            options.folders,
            scorers=options.scorer,
            device=read_device(options.device),
            **{name: getattr(options, name) for name in names},
        )
    if os.environ.get("RANK", "0") != "0":
        return
    for part in (result.real, *result.folders):
        _list_failures(part.label, part.failures | part.refused)
    say(str(result))
    if options.json is not None:
        result.save(options.json)
    if options.report is not None:
        write_report(result, options.report)


def _list_failures(label: str, failures: dict[str, str], *, shown: int = 20) -> None:
    if not failures:
        return
    print(f"{label}: {len(failures)} images with problems:", file=sys.stderr)
    for name, message in list(failures.items())[:shown]:
        print(f"  {name}: {message}", file=sys.stderr)
    if len(failures) > shown:
        print(f"  and {len(failures) - shown} more; --json FILE has all", file=sys.stderr)


def add_watch(commands: Commands) -> None:
    """The parser of `qa-hooks watch`."""
    watch = commands.add_parser(
        "watch",
        help="score the samples that a training run writes, from beside it",
        formatter_class=Help,
        description="Looks at a folder of samples again and again, scores each training step once, plots the values\n"
        "for TensorBoard, keeps best.json and raises alarms: a line on stderr and in alarms.jsonl. The trainer\n"
        "needs no change; its files are only read. The step comes from the names: step_1000/0003.png, sample-12.png.\n"
        "Ctrl-C ends it; the same command goes on. With --once the exit code is 3 when there was an alarm.",
        epilog="examples:\n"
        "  qa-hooks watch runs/a/samples --scorer niqe_bsd100 --log-dir runs/a/watch\n"
        "  qa-hooks watch samples/ --real photos/ --extractor inception --best fd --alarm 'fd>80' 'precision<0.3'\n"
        "  qa-hooks watch samples/ --scorer gmm.safetensors --once || echo look at the run",
    )
    watch.add_argument("folder", metavar="DIR", help="where the run writes its samples; may be empty at first")
    watch.add_argument("--scorer", nargs="+", default=[], type=scorer_spec, metavar="SPEC", help=SCORER)
    watch.add_argument("--real", metavar="DIR", help="real images, for distances of steps with 20 images and more")
    watch.add_argument("--extractor", default="random", metavar="E", help=EXTRACTORS)
    watch.add_argument("--metrics", type=read_metrics, default="fd,kid", metavar="M", help="with --real: fd, kid, pr")
    watch.add_argument("--every", type=float, default=30.0, metavar="SECONDS", help="between two looks")
    watch.add_argument("--once", action="store_true", help="score what is there and end")
    watch.add_argument("--log-dir", default="runs/watch", metavar="DIR", help="curves, best.json, alarms.jsonl, state")
    watch.add_argument("--best", metavar="KEY", help="of best.json: a scorer's name, fd, ... (default: the first)")
    watch.add_argument("--mode", choices=["min", "max"], help="which is best, where the key does not say")
    watch.add_argument("--alarm", nargs="+", default=[], metavar="A", help="'KEY<VALUE' or 'KEY>VALUE', in quotes")
    watch.add_argument("--guard", action="store_true", help="with --real: alarms on an exploited reward")
    watch.add_argument("--device", default="cpu", metavar="D", help="the GPU's memory may be the trainer's")
    watch.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at a time")
    watch.set_defaults(run=_watch, resumes=True)


def _watch(options: argparse.Namespace) -> int:
    from qa_hooks.folders.watching.watcher import watch_folder

    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)  # the trainer goes first
    names = ["real", "extractor", "metrics", "every", "once", "log_dir", "best", "mode", "guard", "batch_size"]
    result = watch_folder(
        options.folder,
        scorers=options.scorer,
        alarms=options.alarm,
        device=read_device(options.device),
        say=lambda line: print(line, flush=True),
        **{name: getattr(options, name) for name in names},
    )
    if result.best is not None:
        print(f"best: step {result.best['step']} with {result.best['key']} {result.best['value']:.4g}")
    return ALARMED if result.alarms else 0
