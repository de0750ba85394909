"""`qa-hooks agree`."""

from __future__ import annotations

import argparse
from typing import Any

from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.options import Commands, Help, between, check_picture, chosen, place

STATISTICS = ("srcc", "krcc", "plcc", "plcc_logistic", "accuracy")
COLUMNS = ("kind", "level", "content")


def add_agree(commands: Commands) -> None:
    """The parser of `qa-hooks agree`."""
    agree = commands.add_parser(
        "agree",
        help="how well metrics agree with people: correlations and pairwise accuracy, with intervals",
        formatter_class=Help,
        description="Joins people's ratings (or preferences) with tables of scores by the images' names, and tells\n"
        "how well each metric agrees with people: Spearman's, Kendall's and Pearson's correlation (also after a\n"
        "logistic fit) and the share of pairs within a content in the right order, where a tie of the metric counts\n"
        "half and ties of people are left out. Intervals are over whole contents; the best metric is compared with\n"
        "every other on the same images, corrected after Holm.",
        epilog="examples:\n"
        "  qa-hooks score tid2013/ --scorer niqe_bsd100 -o niqe.csv\n"
        "  qa-hooks agree mos_with_names.txt niqe.csv\n"
        "  qa-hooks agree mine.csv scores.csv --columns name=file rating=stars content=scene --better higher",
    )
    add_opinions(agree)
    agree.add_argument("tables", metavar="TABLE", nargs="+", help="tables of `qa-hooks score`, or CSVs: path,METRIC")
    agree.add_argument("--metrics", nargs="+", default=[], metavar="METRIC", help="only these columns of the tables")
    for way in ("higher", "lower"):
        agree.add_argument(
            f"--{way}", nargs="+", default=[], metavar="METRIC", help=f"{way} is better, where a table does not say"
        )
    add_judging(agree)
    agree.add_argument("--report", type=place, metavar="FILE", help="also draw the agreement of each metric (PNG)")
    finish(agree, _agree)


def add_opinions(parser: argparse.ArgumentParser) -> None:
    """`RATINGS` and what its reading needs."""
    parser.add_argument("ratings", metavar="RATINGS", help="a published set's file or folder, or a table of yours")
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """What the reading of a file of opinions needs."""
    parser.add_argument("--format", default="auto", metavar="F", help="the form of the file, where it is ambiguous")
    parser.add_argument("--rating", metavar="R", help="which of a file's ratings, such as align of AGIQA-3K")
    parser.add_argument(
        "--columns", nargs="+", type=_pair, default=[], metavar="WHAT=COLUMN",
        help="of a table of yours: name, rating, content, kind, level, split, rater, reference, prompt",
    )  # fmt: skip
    parser.add_argument(
        "--better", dest="direction", choices=["higher", "lower"], help="which is better in a table of yours"
    )
    parser.add_argument("--split", metavar="S", help="only the images of this split")


def add_judging(parser: argparse.ArgumentParser) -> None:
    """What the numbers are made of."""
    parser.add_argument(
        "--statistics", nargs="+", choices=STATISTICS, metavar="S",
        help=f"of {', '.join(STATISTICS)}; the first one decides which metric is best (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--by",
        nargs="*",
        choices=COLUMNS,
        metavar="C",
        help="tell it also by these columns (default: those that there are)",
    )
    parser.add_argument(
        "--cluster", default="content", choices=["content", "prompt", "rater", "none"],
        help="what belongs together; without it in the file each image is on its own",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", type=between(0, 1, ends="none"), default=0.95, metavar="F", help="of the intervals"
    )


def read_opinions_of(options: argparse.Namespace, images: str | None = None) -> Any:
    """The ratings or preferences that the options name."""
    from qa_hooks.ratings.reading_opinions import read_opinions

    return read_opinions(
        options.ratings,
        options.format,
        images=images,
        rating=options.rating,
        columns=dict(options.columns) or None,
        higher_is_better={"higher": True, "lower": False, None: None}[options.direction],
        split=options.split,
    )


def judging(options: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_judging` as keyword arguments."""
    cluster = "" if options.cluster == "none" else options.cluster
    return {
        "statistics": options.statistics, "by": options.by, "cluster": cluster, "confidence": options.confidence
    }  # fmt: skip


def _pair(text: str) -> tuple[str, str]:
    name, sign, column = text.partition("=")
    if not sign or not name or not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not WHAT=COLUMN, such as name=file")
    return name, column


def _agree(options: argparse.Namespace) -> Answer:
    from qa_hooks.ratings import join_scores, report_agreement

    check_picture(options.report)
    opinions = read_opinions_of(options)
    scores = join_scores(opinions.names, options.tables, **chosen(options, "metrics", "higher", "lower"))
    report = report_agreement(opinions, scores, **judging(options))
    if options.report is not None:
        report.draw(options.report)
    return Answer(str(report), report.as_dict())
