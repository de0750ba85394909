"""`qa-hooks report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help


def add_report(commands: Commands) -> None:
    """The parser of `qa-hooks report`."""
    report = commands.add_parser(
        "report",
        help="one page of HTML about one run or several",
        formatter_class=Help,
        description="Curves with their 95 % bands, last values, pictures over time, the best checkpoint, alarms and\n"
        "settings, in one file without links to others, to be mailed. A run is a folder that Hooks(log_dir=...) or\n"
        "qa-hooks watch wrote. Which of two runs is better: qa-hooks compare --paired, on images.",
        epilog="example:\n  qa-hooks report runs/a runs/b -o report.html",
    )
    report.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    report.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the .html file; - is the terminal or a pipe"
    )
    finish(report, _report)


def _report(options: argparse.Namespace) -> Answer:
    from qa_hooks._base.checks import warn
    from qa_hooks.folders import report_runs
    from qa_hooks.folders.reporting.report import is_run, report_page

    runs, others = options.runs, [run for run in options.runs if Path(run).exists() and not is_run(Path(run))]
    if 0 < len(others) < len(runs):  # as runs/* gives them
        runs = [run for run in runs if run not in others]
        warn(f"left out, no log of a run: {', '.join(others[:3])}{f' and {len(others) - 3} more' * bool(others[3:])}")
    if options.output == "-":
        return Answer(report_page(runs), {"output": "-", "runs": runs})
    page = str(report_runs(runs, options.output))
    return Answer(page, {"output": page, "runs": runs})
