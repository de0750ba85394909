"""`--engine ray`: what the commands share that can also work on many machines."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from qa_hooks.cli.options import whole

OF_RAY = ("address", "column", "shard_size")
SHARD_SIZE = 4096


def add_engine(parser: argparse.ArgumentParser, help: str) -> None:
    """`--engine`, and the options that only Ray has."""
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help=help)
    parser.add_argument("--address", metavar="A", help="of Ray's cluster, or auto; without it Ray starts here")
    parser.add_argument("--column", metavar="NAME", help="of the images in Parquet files (ray)")
    parser.add_argument(
        "--shard-size", type=whole(), metavar="N", help=f"about so many images a part (ray; {SHARD_SIZE})"
    )


def on_ray(options: argparse.Namespace, *, local: Sequence[str], ray: Sequence[str] = ()) -> bool:
    """Whether the command is to work on Ray.

    Args:
        options: of the command.
        local, ray: options that one of the two has and the other has not.

    Raises:
        ValueError: an option of the other engine, which would do nothing, or processes that were launched for Ray.
    """
    others = local if options.engine == "ray" else (*OF_RAY, *ray)
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(options, name)]
    if given:
        raise ValueError(f"{', '.join(given)} is not for --engine {options.engine}")
    if options.engine == "ray" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("--engine ray starts its own processes: leave torchrun away")
    return bool(options.engine == "ray")


def of_ray(options: argparse.Namespace) -> dict[str, Any]:
    """The options of Ray as keyword arguments."""
    shard_size = SHARD_SIZE if options.shard_size is None else options.shard_size
    return {"address": options.address, "column": options.column, "shard_size": shard_size}
