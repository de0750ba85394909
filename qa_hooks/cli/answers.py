"""What every command has in common: `--json`, exit codes in `--help`, and one way to print what it found."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qa_hooks.cli.options import say


class Answer(NamedTuple):
    """What a command found.

    Attributes:
        text: for people; "" prints nothing.
        data: the same for programs, as JSON can hold it.
        code: the exit code.
    """

    text: str
    data: Any
    code: int = 0


Run = Callable[[argparse.Namespace], Answer]
CODES = {0: "it worked", 1: "bad input, with a message", 2: "a wrong option"}


def finish(
    parser: argparse.ArgumentParser,
    run: Run,
    *,
    alarm: str = "",
    resumes: bool = False,
    waits: bool = False,
) -> None:
    """The last word on a command's parser: what runs, `--json`, and the exit codes at the end of `--help`.

    Args:
        alarm: what the exit code 3 means, where the command has it.
        resumes: after Ctrl-C the same command goes on.
        waits: it mostly waits for somebody, so that its silence means nothing.
    """
    parser.add_argument(
        "--json", nargs="?", const="-", type=_json_place, metavar="FILE",
        help="print the result as JSON, and nothing else, on stdout; with a FILE.json write it there, beside the text",
    )  # fmt: skip
    codes = {**CODES, **({3: alarm} if alarm else {}), 130: f"Ctrl-C{'; the same command goes on' * resumes}"}
    listed = "; ".join(f"{code} {what}" for code, what in codes.items())
    parser.epilog = f"{parser.epilog or ''}\n\nexit codes: {listed}".lstrip()
    parser.set_defaults(run=run, resumes=resumes, waits=waits, parser=parser)


def saved(output: object, scorer: Any, text: str = "", **found: Any) -> Answer:
    """The answer of a command that has fitted a scorer and saved it."""
    data = {"output": str(output), "scorer": scorer.name, "fingerprint": scorer.fingerprint, **found}
    return Answer(text or f"{output}: {scorer.name}", data)


def _json_place(name: str) -> str:
    """A file that ends in .json: `--json photos/` would take away a folder that the command is about."""
    if name == "-":
        return name
    if not name.endswith(".json"):
        raise argparse.ArgumentTypeError(f"it takes a file that ends in .json, or nothing (as the last word): {name!r}")
    return name


@contextlib.contextmanager
def only_the_answer(options: argparse.Namespace) -> Iterator[None]:
    """With `--json`, whatever a command prints on its way goes to stderr.

    Raises:
        ValueError: `-o -` wants stdout as well, or the file of `--json` cannot be written.
    """
    if options.json not in (None, "-"):
        from qa_hooks._base.files import check_writable

        check_writable(Path(options.json).parent, name="--json")
    if options.json != "-":
        yield
        return
    if getattr(options, "output", None) == "-" and options.command != "filter":
        raise ValueError("-o - and --json both want stdout: name a file for one of them")
    with contextlib.redirect_stdout(sys.stderr):
        yield


def tell(answer: Answer, place: str | None) -> int:
    """Print an answer, as text or (`place` "-") as JSON, which also goes to a file; returns its exit code."""
    data = json.dumps(_finite(answer.data), indent=2, default=str) if place is not None else ""
    if place == "-":
        say(data)
        return answer.code
    if place is not None and os.environ.get("RANK", "0") == "0":
        from qa_hooks._base.files import write_text

        write_text(place, data + "\n")
    if answer.text:
        say(answer.text)
    return answer.code


def _finite(data: Any) -> Any:
    """Without NaN and infinities, which JSON does not have."""
    if isinstance(data, float) and not math.isfinite(data):
        return None
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if hasattr(data, "_asdict"):
        return _finite(data._asdict())
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return data
