"""`qa-hooks score`, `filter` and `pick`."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qa_hooks._base.text import plural, printable
from qa_hooks.cli.answers import Answer, finish
from qa_hooks.cli.engine import add_engine, of_ray, on_ray
from qa_hooks.cli.options import (
    UNUSED,
    Commands,
    Help,
    add_device,
    add_shared,
    chosen,
    launched_processes,
    place,
    read_device,
    say,
    say_failures,
    whole,
)

if TYPE_CHECKING:
    from qa_hooks.folders.scoring.score_table import ScoreTable


def add_score(commands: Commands) -> None:
    """The parser of `qa-hooks score`."""
    score = commands.add_parser(
        "score",
        help="score a folder of images into a table",
        formatter_class=Help,
        description="Writes a CSV with a row per image: raw scores and, where a scorer has a calibration, calibrated\n"
        "ones; and beside it a JSON that says what the columns mean. It is written as it grows: the same command goes\n"
        "on where an interrupted one stopped. Images that cannot be read are listed at the end.",
        epilog="examples:\n"
        "  qa-hooks score samples/ --scorer niqe_bsd100 gmm.safetensors -o scores.csv\n"
        "  qa-hooks score outputs/ --scorer psnr ssim --reference targets/ -o scores.csv\n"
        "  torchrun --nproc_per_node 2 -m qa_hooks score samples/ --scorer gmm.safetensors -o scores.csv\n"
        "  qa-hooks score laion/ --scorer niqe_bsd100 --engine ray --address auto -o scores/",
    )
    score.add_argument(
        "folder", metavar="SOURCE", help="a folder of images, sub-folders included; ray also reads Parquet and tars"
    )
    add_shared(score, "--scorer", nargs="+", required=True)
    score.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="the table; - is the terminal or a pipe; of ray a folder"
    )
    add_engine(score, "ray: many machines, into a folder of Parquet files")
    add_shared(score, "--grid")
    score.add_argument("--tiles", type=whole(), metavar="N", help="score tiles of N x N pixels instead of whole images")
    score.add_argument("--overlap", type=whole(0), default=0, metavar="N", help="pixels that neighbouring tiles share")
    add_shared(score, "--reference")
    add_shared(score, "--overwrite")
    add_shared(score, "--strict")
    add_device(score, batch_size=32)
    finish(score, _score, alarm="images that could not be scored (--strict)", resumes=True)


def _score(options: argparse.Namespace) -> Answer:
    from qa_hooks.folders import score_folder

    if on_ray(options, local=("tiles", "overlap", "reference", "grid")):
        return _score_with_ray(options)
    piped = options.output == "-"
    if piped and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("-o - needs one process: several work on one file, name it")
    with launched_processes(), contextlib.ExitStack() as stack:
        output = options.output
        if piped:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory()), "scores.csv")
        table = score_folder(
            options.folder,
            options.scorer,
            output,
            device=read_device(options.device),
            resume=not options.overwrite,
            **chosen(options, "tiles", "overlap", "reference", "batch_size", "grid"),
        )
        if piped:
            _write_out(Path(output).read_bytes())
    say_failures(table.failures, where="all are in the JSON beside the table")
    head = table.summary() if piped else f"{options.output}: {table.summary()}"
    text = "\n".join([head, *(f"  {line}" for line in table.digest())])
    if piped:  # stdout has the table
        say(text, error=True)
    names = [scorer["name"] for scorer in table.spec.get("scorers", [])]
    found = {
        "output": options.output,
        "images": len(set(table.paths)),
        "failures": table.failures,
        "scorers": {name: _facts(table, name) for name in names},
    }
    return Answer("" if piped else text, found, UNUSED if options.strict and table.failures else 0)


def _facts(table: ScoreTable, name: str) -> dict[str, Any]:
    """Counts, mean with its interval, median and ends of a scorer's scores."""
    paths, scores = table.per_image(name)
    known = scores[scores.isfinite()].double()
    ends = [float(known.min()), float(known.quantile(0.5)), float(known.max())] if len(known) else [None] * 3
    found = dict(zip(("lowest", "median", "highest"), ends, strict=True))
    of_mean = {f"mean{part}": value if math.isfinite(value) else None
               for part, value in zip(("", "_low", "_high"), table.mean(name), strict=True)}  # fmt: skip
    return {
        "higher_is_better": table.higher_is_better(name),
        "images": len(known),
        **of_mean,
        **found,
        "without": len(paths) - len(known),
    }


def _score_with_ray(options: argparse.Namespace) -> Answer:
    from qa_hooks.integrations.ray import score_dataset

    if options.output == "-":
        raise ValueError("-o - is not for --engine ray, which writes a folder of Parquet files: name one")
    scored = score_dataset(
        options.folder,
        options.scorer,
        options.output,
        resume=not options.overwrite,
        **of_ray(options),
        **chosen(options, "batch_size", "device"),
    )
    all_are = f"all are in the column problem of {options.output}"
    say_failures(scored.failures, where=all_are, total=scored.problems)
    found = {
        "output": options.output,
        "images": scored.images,
        "problems": scored.problems,
        "failures": scored.failures,
    }
    return Answer(f"{options.output}: {scored.summary()}", found, UNUSED if options.strict and scored.problems else 0)


def _write_out(data: bytes) -> None:
    """Bytes on stdout; on a terminal without control characters."""
    if sys.stdout.isatty():
        data = printable(data.decode("utf-8", "surrogateescape")).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def add_filter(commands: Commands) -> None:
    """The parser of `qa-hooks filter`."""
    filtered = commands.add_parser(
        "filter",
        help="list the best images of a table",
        formatter_class=Help,
        description="Writes the paths of the best images of a table, best first, one per line, relative to the scored\n"
        "folder. Equal scores keep the table's order; images without a score are left out. With tiles an image's\n"
        "score is the mean of its tiles.",
        epilog="examples:\n"
        "  qa-hooks filter scores.csv --keep 0.8 -o list.txt\n"
        "  qa-hooks filter scores.csv --keep 100 --by niqe_bsd100 --null | rsync -a0 --files-from=- samples/ best/",
    )
    filtered.add_argument("table", metavar="TABLE", help="a table of `qa-hooks score`, or a CSV with a column path")
    add_shared(filtered, "--keep", required=True)
    filtered.add_argument("--by", metavar="COLUMN", help="the column to go by; needed when there are several scorers")
    direction = filtered.add_mutually_exclusive_group()
    for way in ("higher", "lower"):
        direction.add_argument(
            f"--{way}-is-better",
            dest="higher_is_better",
            action="store_const",
            const=way == "higher",
            help="where the table does not say",
        )
    filtered.add_argument("-o", "--output", default="-", metavar="FILE", help="the list; - is the terminal")
    filtered.add_argument("-0", "--null", action="store_true", help="end each path with a NUL instead of a line end")
    finish(filtered, _filter)


def _filter(options: argparse.Namespace) -> Answer:
    from qa_hooks.folders import filter_scores

    kept, count = filter_scores(
        options.table,
        None if options.output == "-" else options.output,
        **chosen(options, "keep", "by", "higher_is_better", "null"),
    )
    found = {"output": options.output, "kept": kept, "images": count}
    if options.json == "-":
        return Answer("", found)
    if options.output == "-":
        end = "\0" if options.null else "\n"
        _write_out("".join(path + end for path in kept).encode("utf-8", "surrogateescape"))
        return Answer("", found)
    return Answer(f"{options.output}: {len(kept)} of {plural(count, 'image')}", found)


def add_pick(commands: Commands) -> None:
    """The parser of `qa-hooks pick`."""
    pick = commands.add_parser(
        "pick",
        help="copy or link the best images of a folder",
        formatter_class=Help,
        description="Scores a folder and puts the best images into OUT/images under the same relative names, with\n"
        "OUT/manifest.csv (every image: score, kept or not, rank), OUT/contact_sheet.png (best to worst) and\n"
        "OUT/scores.csv, from which the same command goes on where an interrupted one stopped.",
        epilog="examples:\n"
        "  qa-hooks pick samples/ --scorer gmm.safetensors --keep 0.9 --out picked/\n"
        "  qa-hooks pick samples/ --scorer niqe_bsd100 --keep 100 --out best100/ --link",
    )
    pick.add_argument("folder", metavar="DIR", help="a folder of images, sub-folders included")
    chosen_by = pick.add_mutually_exclusive_group(required=True)
    add_shared(chosen_by, "--scorer")
    chosen_by.add_argument("--scores", metavar="TABLE", help="a table of `qa-hooks score` of DIR, instead of scoring")
    pick.add_argument("--by", metavar="COLUMN", help="of that table; needed when it has several scorers")
    add_shared(pick, "--keep", default=0.9)
    add_shared(pick, "--grid")
    pick.add_argument(
        "-o",
        "--output",
        dest="out",
        required=True,
        type=place,
        metavar="DIR",
        help="the folder to make, not in the other",
    )
    pick.add_argument("--link", action="store_true", help="symbolic links instead of copies")
    add_shared(pick, "--reference")
    pick.add_argument("--recall", action="store_true", help="also tell how much of the variety is left")
    add_shared(pick, "--overwrite")
    add_device(pick, batch_size=32)
    finish(pick, _pick, resumes=True)


def _pick(options: argparse.Namespace) -> Answer:
    from qa_hooks.folders import pick_folder

    with launched_processes():
        picked = pick_folder(
            options.folder,
            options.scorer,
            options.out,
            device=read_device(options.device),
            resume=not options.overwrite,
            **chosen(options, "keep", "link", "reference", "recall", "batch_size", "grid", "scores", "by"),
        )
    say_failures(picked.failures, where="all are in the JSON beside the table")
    found = {
        "out": str(picked.out),
        "kept": picked.kept,
        "images": len(set(picked.table.paths) | set(picked.failures)),
        "failures": picked.failures,
        "scorer": picked.scorer_name,
        "higher_is_better": picked.higher_is_better,
    }
    return Answer(picked.summary(), found)
