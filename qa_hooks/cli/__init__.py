"""The `qa-hooks` command: argument parsing only; each command calls one public function."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import select
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qa_hooks import __version__
from qa_hooks._base.text import printable
from qa_hooks.cli.about import add_demo, add_info, add_scorers
from qa_hooks.cli.agreeing import add_agree
from qa_hooks.cli.answers import only_the_answer, tell
from qa_hooks.cli.comparing import add_compare
from qa_hooks.cli.doctor import add_doctor
from qa_hooks.cli.fitting import add_fit
from qa_hooks.cli.folders import add_filter, add_pick, add_score
from qa_hooks.cli.options import Help, Parser
from qa_hooks.cli.rating import add_rate
from qa_hooks.cli.reporting import add_report
from qa_hooks.cli.selecting import add_select
from qa_hooks.cli.watching import add_watch
from qa_hooks.cli.wording import in_options

__all__ = ["main"]
COMMANDS = (
    add_demo,
    add_rate,
    add_fit,
    add_score,
    add_filter,
    add_pick,
    add_compare,
    add_watch,
    add_report,
    add_agree,
    add_select,
    add_doctor,
    add_scorers,
    add_info,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 1 with a message on bad input, 130 after Ctrl-C, 3 after an alarm.

    141 where the reader of the output has gone, as in `qa-hooks scorers | head -1`; nothing is said of it.
    """
    try:
        try:
            return _run(arguments)
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError:
        _reader_gone()
        return 141


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    rank = os.environ.get("RANK", "0")
    words = ["qa-hooks", options.command, *([options.fit] if options.command == "fit" else [])]
    who = " ".join(words) + (f" (process {rank})" if rank != "0" else "")
    try:
        from qa_hooks._base.progress import Heartbeat  # with torch, which takes seconds: --help does without it

        with _words_on_stderr(who, options.parser), Heartbeat(waits=options.waits):
            with only_the_answer(options):
                answer = options.run(options)
            return tell(answer, options.json)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and _reader_gone():
            return 141
        print(printable(f"{who}: {in_options(str(error), options.parser)}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = "; the same command goes on where it stopped" if options.resumes else ""
        print(f"{who}: interrupted{again}", file=sys.stderr)
        return 130


def _reader_gone() -> bool:
    """Whether nobody reads stdout or stderr any more; then what is left of the output goes nowhere."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # no stream, or none of the system's
            poll = select.poll()
            poll.register(stream.fileno(), 0)  # a pipe without a reader is an error, asked for or not
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                gone = True
                with Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())
    return gone


class _Words(logging.Formatter):
    """The command's name, and a message in its options, without control characters."""

    def __init__(self, who: str, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.who, self.parser = who, parser

    def format(self, record: logging.LogRecord) -> str:
        return printable(f"{self.who}: {in_options(super().format(record), self.parser)}")


@contextlib.contextmanager
def _words_on_stderr(who: str, parser: argparse.ArgumentParser) -> Iterator[None]:
    """What the package logs and warns of, a line each, without the place in our source, which helps nobody there."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        logger.warning("%s", message)

    logger, handler = logging.getLogger("qa_hooks"), logging.StreamHandler()
    handler.setFormatter(_Words(who, parser))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with warnings.catch_warnings():
            for kind in (UserWarning, RuntimeWarning):
                warnings.simplefilter("default", kind)  # lines for the user, whatever Python was told to do with them
            warnings.filterwarnings("ignore", r"Image size \(")  # Pillow's, of large pictures, which are read
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _PrintCompletion(argparse.Action):
    """Prints the shell's script and ends, as --version does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("--print-completion needs shtab: pip install 'qa-hooks[completion]'")
        print(shtab.complete(parser, shell=str(values)))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qa-hooks",
        description="Image-quality feedback for training loops; and folders of images scored, filtered and picked.",
        formatter_class=Help,
        epilog="qa-hooks COMMAND --help explains a command, with an example.\n\n"
        "Results are on stdout, as JSON with --json; everything else is on stderr.\n\n"
        "exit codes: 0 it worked; 1 bad input, with a message; 2 a wrong option; 3 an alarm, or images that could not\n"
        "be used (--strict); 130 Ctrl-C: where a command says so, the same command goes on; 141 nobody reads.",
    )
    parser.add_argument("--version", action="version", version=f"qa-hooks {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=["bash", "zsh"],
        default=argparse.SUPPRESS,  # it is no option of a command
        help='completion for the shell: eval "$(qa-hooks --print-completion bash)"',
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
