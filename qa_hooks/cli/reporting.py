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
    from qa_hooks._base.text import plural
    from qa_hooks.folders import report_runs
    from qa_hooks.folders.reporting.report import report_page

    files = [run for run in options.runs if Path(run).is_file()]  # of runs/*
    runs = [run for run in options.runs if run not in files]
    if files and runs:
        warn(f"{plural(len(files), 'file')} left out, such as {files[0]}: a run is a folder")
    runs = runs or options.runs
    if options.output == "-":
        return Answer(report_page(runs), {"output": "-", "runs": runs})
    page = str(report_runs(runs, options.output))
    return Answer(page, {"output": page, "runs": runs})
