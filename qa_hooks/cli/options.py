"""What the commands' parsers share."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

Commands = Any  # argparse's class of sub-parsers is private


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, but not those that say nothing, and leaves examples as they are written."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def add_device(parser: argparse.ArgumentParser, *, batch_size: int) -> None:
    """`--device` and `--batch-size`."""
    parser.add_argument("--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    parser.add_argument("--batch-size", type=int, default=batch_size, metavar="N", help="images at a time")


def scorer_spec(text: str) -> Any:
    """`--scorer`: a name, a file, or a JSON mapping such as '{"type": "psnr", "channel": "y"}'."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None


def read_device(name: str | None) -> str:
    """The device asked for; otherwise this process's GPU, otherwise the CPU."""
    import torch

    if name is not None:
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
        return name
    if torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    return "cpu"


def say(text: str) -> None:
    """Print an outcome; once, also under several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(text)


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
