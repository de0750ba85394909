"""The price of a guard's limits: what is found in time against false alarms, for wider and narrower ones.

    python -m benchmarks hack_limits --out DIR [--half choose] [--tolerances 0.5 1 2] [--patience 1 2] [--without KIND]

DIR is one that `python -m benchmarks hacks --out DIR` has filled: its measured looks are judged again with other
limits. By default those of the half that limits may be chosen on. A tolerance multiplies the widths against the base;
--without leaves measurements out, so that it is seen what each is good for.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from benchmarks.hack_looks import GUARDS, HONEST, Measured, read_measured
from benchmarks.hack_runs import GENERATORS
from benchmarks.hacks import share, tasks
from qa_hooks.demo.tables import write_table
from qa_hooks.rewards.alarm_rule import KINDS, TOLERANCE

TOLERANCES = (0.25, 0.5, 0.75, 1.0, TOLERANCE, 1.5, 2.0, 3.0)
SEEDS = 1000  # those that are there


def price(runs: dict[str, list[Measured]], tolerances: list[float], patiences: list[int], without: list[str]) -> str:
    """The table of it.

    Args:
        runs: under "honest" and "hacked".
        tolerances, patiences: each of them with each.
        without: kinds that are not judged.
    """
    rows = []
    for patience, tolerance in itertools.product(patiences, tolerances):
        row = [str(patience), f"{tolerance:g}"]
        for known in GUARDS.values():
            limits: dict[str, Any] = {"patience": patience, "tolerance": tolerance, "without": without}
            found = [run.in_time(run.alarm(known, **limits)) for run in runs["hacked"]]
            wrong = [run.alarm(known, **limits) is not None for run in runs["honest"]]
            row += [share(found) if found else "-", share(wrong) if wrong else "-"]
        rows.append(row)
    heads = [f"{name}: {what}" for name in GUARDS for what in ("in time", "false alarms")]
    return write_table(["patience", "tolerance", *heads], rows)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks hack_limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the bench")
    parser.add_argument("--half", choices=("choose", "report"), default="choose")
    parser.add_argument("--generators", nargs="+", choices=list(GENERATORS), default=list(GENERATORS))
    parser.add_argument("--tolerances", nargs="+", type=float, default=list(TOLERANCES))
    parser.add_argument("--patience", nargs="+", type=int, default=[2])
    parser.add_argument("--without", nargs="+", choices=list(KINDS), metavar="KIND", default=[], help=", ".join(KINDS))
    options = parser.parse_args(arguments)
    if min(options.tolerances) <= 0 or min(options.patience) < 1:
        parser.error("--tolerances must be more than 0, and --patience at least 1")
    runs: dict[str, list[Measured]] = {"honest": [], "hacked": []}
    for task in tasks(options.generators, SEEDS, SEEDS, options.half):
        path = options.out / "looks" / task.file
        if path.exists():
            runs["honest" if task.hack == HONEST else "hacked"].append(read_measured(path))
    if not runs["honest"] or not runs["hacked"]:
        parser.error(f"{options.out / 'looks'} has no measured runs: fill it with python -m benchmarks hacks --out")
    print(price(runs, options.tolerances, options.patience, options.without))
