"""`qa-hooks rate`."""

from __future__ import annotations

import argparse

from qa_hooks._base.text import plural
from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help, between, chosen, place, say, whole


def add_rate(commands: Commands) -> None:
    """The parser of `qa-hooks rate`."""
    rate = commands.add_parser(
        "rate",
        help="judge pairs of images in the browser, for a scorer of your own",
        formatter_class=Help,
        description="Shows two images side by side on a page of this machine and takes better, worse or no difference\n"
        "by key. The pair comes next whose answer is expected to tell most; sides are drawn at random. Each answer is\n"
        "on disk before the next pair; a second tab or a killed process loses nothing, and the same command goes on.\n"
        "On another machine: ssh -L 8000:127.0.0.1:8000, with --port 8000 there.",
        epilog="examples:\n"
        "  qa-hooks rate outputs -o pairs.csv --rater anna\n"
        "  qa-hooks rate outputs -o ben.csv --rater ben --pairs pairs.csv      the pairs that anna judged\n"
        "  qa-hooks rate enhanced -o pairs.csv --reference originals --hidden  is it better than the original?\n"
        "  qa-hooks fit pairs pairs.csv outputs -o mine.safetensors            a folder of several raters' files, too",
    )
    rate.add_argument("folder", metavar="DIR", help="the images; those of one content are compared")
    rate.add_argument(
        "-o", "--output", required=True, type=place, metavar="FILE", help="the CSV of answers; it goes on"
    )
    rate.add_argument("--rater", default="", metavar="NAME", help="who answers, for the column rater")
    rate.add_argument(
        "--by", default="auto", choices=["auto", "name", "folder", "any"],
        help="what makes one content: files of one name in several folders, one folder, or no matter",
    )  # fmt: skip
    rate.add_argument("--reference", metavar="DIR", help="references named like the contents, shown in the middle")
    rate.add_argument("--hidden", action="store_true", help="compare each image with its reference, unnamed")
    rate.add_argument("--pairs", metavar="FILE", help="ask about the pairs of this CSV, such as another rater's")
    rate.add_argument(
        "--repeats", type=between(0, 1), default=0.1, metavar="F", help="share of questions that come twice"
    )
    rate.add_argument("--count", type=whole(), metavar="N", help="stop asking after so many pairs")
    rate.add_argument("--port", type=whole(0), default=0, metavar="N", help="of the page; 0 takes a free one")
    rate.add_argument("--seed", type=whole(0), metavar="N", help="of what is drawn")
    finish(rate, _rate, resumes=True, waits=True)


def _rate(options: argparse.Namespace) -> Answer:
    from qa_hooks.ratings.asking.rate import rate

    how = chosen(options, "rater", "by", "reference", "hidden", "pairs", "repeats", "count", "port", "seed")
    said = rate(options.folder, options.output, tell=say, **how)
    again = f"; {said['same']} of {said['again']} repeats answered the same way" if said["again"] else ""
    found = {"output": options.output, **said}
    return Answer(f"{options.output}: {said['answered']} of {plural(said['total'], 'pair')}{again}", found)
