"""`qa-hooks watch`."""

from __future__ import annotations

import argparse
import contextlib
import os

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help, add_shared, between, chosen, place, read_device, say

ALARMED = 3  # exit code


def add_watch(commands: Commands) -> None:
    """The parser of `qa-hooks watch`."""
    watch = commands.add_parser(
        "watch",
        help="score the samples that a training run writes, from beside it",
        formatter_class=Help,
        description="Looks at a folder of samples again and again, scores each training step once, plots the values\n"
        "for TensorBoard, keeps best.json and raises alarms: a line on stderr and in alarms.jsonl. The trainer\n"
        "needs no change; its files are only read. The step comes from the names: step_1000/0003.png, sample-12.png.\n"
        "Of several runs each has a folder of its own below --log-dir, and report.html and best.json are of them all.\n"
        "Ctrl-C ends it; the same command goes on. With --once the exit code is 3 when there was an alarm.",
        epilog="examples:\n"
        "  qa-hooks watch runs/a/samples --scorer niqe_bsd100 --log-dir runs/a/watch\n"
        "  qa-hooks watch samples/ --real photos/ --extractor inception --best fd --alarm 'fd>80' 'precision<0.3'\n"
        "  qa-hooks watch visualization/ --scorer psnr niqe_bsd100 --reference valid_hr/ --best psnr\n"
        "  qa-hooks watch runs/*/samples --scorer niqe_bsd100 --log-dir runs/watch\n"
        "  qa-hooks watch samples/ --scorer gmm.safetensors --once || echo look at the run",
    )
    watch.add_argument(
        "folders", metavar="DIR", nargs="+", help="where a run writes its samples; may be empty at first"
    )
    add_shared(watch, "--scorer", nargs="+", default=[])
    add_shared(watch, "--reference", help="ground truths for psnr, ssim, ...: baby.png of baby/baby_1000.png")
    watch.add_argument("--real", metavar="DIR", help="real images, for distances of steps with 20 images and more")
    add_shared(watch, "--extractor")
    add_shared(watch, "--metrics", default="fd,kid", help="with --real: fd, kid, pr")
    watch.add_argument("--step-regex", dest="step", metavar="RE", help="its first group is the step: 'img_(\\d+)'")
    add_shared(watch, "--grid")
    watch.add_argument(
        "--every", type=between(0, ends="none"), default=30.0, metavar="SECONDS", help="between two looks"
    )
    watch.add_argument("--once", action="store_true", help="score what is there and end")
    watch.add_argument(
        "--log-dir", type=place, default="runs/watch", metavar="DIR", help="curves, best.json, alarms.jsonl, state"
    )
    watch.add_argument("--best", metavar="KEY", help="of best.json: a scorer's name, fd, ... (default: the first)")
    watch.add_argument("--mode", choices=["min", "max"], help="which is best, where the key does not say")
    watch.add_argument("--alarm", nargs="+", default=[], metavar="A", help="'KEY<VALUE' or 'KEY>VALUE', in quotes")
    watch.add_argument("--guard", action="store_true", help="with --real: alarms on images as by an exploited reward")
    add_shared(watch, "--device", default="cpu", help="the GPU's memory may be the trainer's")
    add_shared(watch, "--batch-size")
    finish(watch, _watch, alarm="an alarm was raised", resumes=True, waits=True)


def _watch(options: argparse.Namespace) -> Answer:
    from qa_hooks.folders import watch_folder, watch_folders

    with contextlib.suppress(AttributeError, OSError):
        os.nice(10)  # the trainer goes first
    names = ["reference", "real", "extractor", "metrics", "every", "once", "log_dir", "best", "mode", "guard"]
    asked = chosen(options, *names, "batch_size", "step", "grid")
    asked |= {"scorers": options.scorer, "alarms": options.alarm, "device": read_device(options.device), "say": say}
    if len(options.folders) == 1:
        one = watch_folder(options.folders[0], **asked)
        best, runs = one.best, {"": one}
        found = {"best": best, "alarms": one.alarms, "steps": one.steps}
    else:
        several = watch_folders(options.folders, **asked)
        best, runs = several.best, several.runs
        each = {name: {"best": run.best, "alarms": run.alarms, "steps": run.steps} for name, run in runs.items()}
        found = {"best": best, "runs": each}
    text = ""
    if best is not None:
        named = f"{best['run']}, " if "run" in best else ""
        text = f"best: {named}step {best['step']} with {best['key']} {best['value']:.4g}"
    return Answer(text, found, ALARMED if any(run.alarms for run in runs.values()) else 0)
