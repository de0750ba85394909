"""A Ray to work on, and functions that run on it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from qa_hooks._base.checks import warn
from qa_hooks._base.libraries import import_library

RETRIES = 6  # of a task whose worker died: a picture that kills is left out after three deaths


@contextlib.contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected: to the user's own, to the cluster at an address, or to one that ends with this."""
    ray: Any = import_library("ray", needed_by="--engine ray", install="pip install 'qa-hooks[ray]'")
    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **quiet)
    except (ConnectionError, SystemExit) as error:  # Ray ends the process where nobody answers at host:port
        why = "nobody answers" if isinstance(error, SystemExit) else error
        raise ValueError(f"no cluster of Ray at {address!r} ({why}): ray start --head starts one") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def check_device(device: str | None) -> None:
    """`ValueError` unless it is None, "cpu" or "cuda"."""
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}: Ray gives each worker a GPU of its own")


def remote(ray: Any, function: Callable[..., Any], device: str | None) -> tuple[Any, Callable[[], int]]:
    """A function as a task of Ray, and how many of them may be on their way, which changes with the cluster.

    A task takes one core, and a GPU where the device is "cuda", or None on a cluster that has some.
    """
    has_gpu = bool(ray.cluster_resources().get("GPU"))
    if device == "cuda" and not has_gpu:
        warn("no machine of the cluster has a GPU: the work waits until one with a GPU joins (--device cpu needs none)")
    gpus = 1 if device == "cuda" or (device is None and has_gpu) else 0
    options = {"num_cpus": 1, "num_gpus": gpus, "max_retries": RETRIES, "max_calls": 0}  # 0: a worker stays
    task = ray.remote(scheduling_strategy="SPREAD", **options)(function)
    return task, lambda: 2 * int(ray.cluster_resources().get("GPU" if gpus else "CPU", 1)) + 2


def put(ray: Any, value: Any) -> Any:
    """What stands for a value that all tasks take.

    Raises:
        RuntimeError: Ray's object store, and the disk beside it, have no room for the value.
    """
    try:
        return ray.put(value)
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"Ray has no room for the scorers: {reason(error)}. Free disk space under Ray's --temp-dir, or start Ray "
            "with a larger --object-store-memory; the same command goes on where it stopped"
        ) from error


def reason(error: BaseException) -> str:
    """What went wrong in a task, in one line without its full stop."""
    why = getattr(error, "cause", None) or error
    told = " ".join(str(why).split()).partition(" traceback: ")[0]
    return told[:300].rstrip(".") or type(why).__name__
