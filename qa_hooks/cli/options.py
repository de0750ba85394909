"""The options that several commands share, and functions that read them."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from qa_hooks._base.text import meant, plural, printable

LOG = logging.getLogger("qa_hooks.cli")
Commands = Any  # argparse's class of sub-parsers is private


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but not those that say nothing, and leaves examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False, "", []):
            return action.help
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says with its own usage what is wrong, and what was probably meant."""

    typed: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        self.typed = sys.argv[1:] if args is None else list(args)
        found, rest = super().parse_known_args(args, namespace)
        if rest and self._subparsers is None:  # the parser above would show its own usage
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        chosen = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if chosen:
            message += meant(chosen[1], re.findall(r"[\w-]+", chosen[2]))
        if self._subparsers is None:
            for word in (word.partition("=")[0] for word in self.typed if word.startswith("--")):
                if not any(known.startswith(word) for known in self._option_string_actions):
                    message += f"; there is no {word}{meant(word, self._option_string_actions)}"
        super().error(message)


def scorer_spec(text: str) -> Any:
    """`--scorer`: a name, a file, or a JSON mapping such as '{"type": "psnr", "channel": "y"}'."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None


def share(text: str) -> float | int:
    """`--keep`: 0.8 is a share, 100 a number of images."""
    try:
        value = int(text) if text.isdigit() and text != "1" else float(text)
    except ValueError:
        value = 0
    if not 0 < value <= (1 if isinstance(value, float) else math.inf):
        raise argparse.ArgumentTypeError(f"it must be a share such as 0.8, or a number of images, got {text!r}")
    return value


def whole(least: int = 1) -> Callable[[str], int]:
    """The type of an option that is a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"it must be a whole number of at least {least}, got {text!r}")
        return value

    return read


def between(low: float, high: float = math.inf, *, ends: str = "both") -> Callable[[str], float]:
    """The type of an option that is a number; `ends` says which ends are allowed: "both", "low" or "none"."""
    words = {"both": f"from {low:g} to {high:g}", "low": f"from {low:g} to below {high:g}"}
    said = words.get(ends, f"above {low:g} and below {high:g}")
    if high == math.inf:
        said = f"above {low:g}" if ends == "none" else f"of at least {low:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = low < value < high or (value == low and ends != "none") or (value == high and ends == "both")
        if not inside or math.isinf(value):
            raise argparse.ArgumentTypeError(f"it must be a number {said}, got {text!r}")
        return value

    return read


def read_metrics(text: str) -> tuple[str, ...]:
    """`--metrics fd,kid` or `none`."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names in ((), ("none",)) else names


SCORER = 'a name from `qa-hooks scorers`, a .safetensors file, or JSON: \'{"type": "psnr", "channel": "y"}\''
EXTRACTORS = (
    "random (no download), efficientnet_lite0 (extra offline), inception, dinov2_vits14, or a torchvision network such "
    "as resnet50"
)
SHARED: dict[str, dict[str, Any]] = {
    "--scorer": {"type": scorer_spec, "metavar": "SPEC", "help": SCORER},
    "--reference": {
        "metavar": "DIR",
        "help": "references: baby.png of baby.jpg or baby_x2_SR.png",
    },
    "--overwrite": {"action": "store_true", "help": "score anew instead of continuing an existing table"},
    "--strict": {"action": "store_true", "help": "exit code 3 when there were images that could not be used"},
    "--keep": {"type": share, "metavar": "F", "help": "a share (1: all), or a number of images"},
    "--extractor": {"default": "random", "metavar": "E", "help": EXTRACTORS},
    "--metrics": {"type": read_metrics, "metavar": "M"},
    "--grid": {"metavar": "G", "help": "cut grids of images: 8x4+2 (in a row, rows, pixels between), or auto"},
    "--device": {"metavar": "D", "help": "cpu, cuda, cuda:1, mps (default: a GPU where there is one)"},
    "--batch-size": {"type": whole(), "default": 32, "metavar": "N", "help": "images at a time"},
}


def add_shared(parser: argparse._ActionsContainer, name: str, **own: Any) -> None:
    """An option of the table `SHARED`, with what is different in this command."""
    parser.add_argument(name, **{**SHARED[name], **own})


def add_device(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """`--device` and `--batch-size`."""
    add_shared(parser, "--device")
    add_shared(parser, "--batch-size", default=batch_size)


METHODS = "ecdf, minmax, sigmoid or none"


def _method(text: str) -> str | None:
    if text not in ("ecdf", "minmax", "sigmoid", "none"):
        raise argparse.ArgumentTypeError(f"it must be {METHODS}, got {text!r}")
    return None if text == "none" else text


def add_held_out(parser: argparse.ArgumentParser, *, share: float = 0.2, of: str = "share") -> None:
    """`--held-out`, `--calibration` and `--seed`."""
    parser.add_argument(
        "--held-out", type=between(0, 1, ends="none"), default=share, metavar="F", help=f"{of} kept for the calibration"
    )
    parser.add_argument("--calibration", type=_method, default="ecdf", metavar="M", help=f"{METHODS}: map to [0, 1]")
    parser.add_argument("--seed", type=whole(0), default=0, metavar="N", help="of the split and the fit")


def scorer_file(name: str) -> Path:
    """`--output` of a scorer, which can be written: known before the long work, not after it."""
    from qa_hooks._base.files import check_writable

    output = Path(name)
    if output.suffix != ".safetensors" or output.is_dir():
        raise ValueError(f"--output must be a file ending in .safetensors, got {name!r}")
    check_writable(output.parent, name="--output")
    return output


def chosen(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Options as keyword arguments of the function that a command calls."""
    return {name: getattr(options, name) for name in names}


def read_device(name: str | None) -> str:
    """The device asked for; otherwise this process's GPU, otherwise the CPU."""
    import torch

    if name is not None:
        try:
            torch.zeros(1, device=name, dtype=torch.float32)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
        return name
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return "cpu"


def say(text: object, *, error: bool = False) -> None:
    """Print an outcome, or tell on stderr what went wrong, with the command's name; once under several processes."""
    if os.environ.get("RANK", "0") != "0":
        return
    if error:
        LOG.warning("%s", text)
    else:
        print(printable(text), flush=True)


UNUSED = 3  # exit code of --strict


SHOWN = 20  # problems of images
NAMED = 3  # of the images that have one problem


def say_failures(failures: Mapping[str, str], *, label: str = "", where: str, total: int | None = None) -> None:
    """List on stderr the images that had problems, `total` in all; `where` says who has all of them."""
    if failures:
        total = total or len(failures)
        lines = [f"{f'{label}: ' if label else ''}{plural(total, 'image')} with problems:"]
        alike: dict[str, list[str]] = {}
        for name, message in failures.items():
            alike.setdefault(message, []).append(printable(name, one_line=True))
        for message, names in list(alike.items())[:SHOWN]:
            text = printable(message, one_line=True)
            if len(names) > NAMED:
                lines.append(f"  {', '.join(names[:NAMED])} and {len(names) - NAMED} more: {text}; {where}")
            else:
                lines += [f"  {name}: {text}" for name in names]
        left = total - sum(len(names) for names in list(alike.values())[:SHOWN])
        if left:
            lines.append(f"  and {left} more; {where}")
        say("\n".join(lines), error=True)


def place(text: str) -> str:
    """A file or folder to write; "-" would be one of that name."""
    if text == "-":
        raise argparse.ArgumentTypeError("it cannot be written to the terminal: name a file or folder, ./- if it is -")
    return text


def check_picture(path: str | None) -> None:
    """`ValueError` unless `--report` can be written, before the long work and not after it."""
    from qa_hooks.folders.comparing.report import check_report

    if path is not None:
        check_report(path)


@contextlib.contextmanager
def launched_processes() -> Iterator[None]:
    """Under `torchrun` with several processes: their group, over gloo, which is on every machine; little is sent."""
    import torch.distributed as dist

    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield
        return
    # The processes wait for the slowest of them at the end.
    dist.init_process_group("gloo", timeout=timedelta(days=2))
    try:
        yield
    finally:
        dist.destroy_process_group()
