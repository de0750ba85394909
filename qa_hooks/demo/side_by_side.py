"""Several training runs as one-thread processes with one bar: networks this small gain nothing from threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing.managers import SyncManager
from typing import Any, TypeVar

import torch

from qa_hooks._base.progress import Progress
from qa_hooks.demo.results import Results

Job = TypeVar("Job")
Result = TypeVar("Result")


def start_process() -> None:
    """What a process of the pool does first."""
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """Have this process end with the one that started it, which does not say so when it is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def managed(context: Any) -> Iterator[SyncManager]:
    """A manager whose process ends with this one."""
    manager = SyncManager(ctx=context)
    manager.start(initializer=end_with_parent)
    try:
        yield manager
    finally:
        manager.shutdown()


def side_by_side(
    function: Callable[[Job, Any], Result],
    jobs: Sequence[Job],
    *,
    processes: int,
    steps: Callable[[Job], float],
    first: Sequence[Job] = (),
    results: Results | None = None,
) -> list[Result]:
    """`function(job, progress)` for every job, a few at a time; the results in the jobs' order.

    Args:
        function: of the top level of a module; it calls `progress.put(steps)` as it goes.
        jobs: what can be sent to another process.
        processes: at a time.
        steps: how many a job makes, for the bar.
        first: the jobs in the order in which to start them (the longest first leaves no core waiting).
        results: where each result is kept by `str(job)` as soon as it is known, if it is for JSON; jobs that are
            there already are not run again.

    Raises:
        Exception: of the first job that fails; those that have not begun are left out, the others are kept.
    """
    done = {} if results is None else {str(job): results.found[str(job)] for job in jobs if str(job) in results}
    if results is not None and done:
        print(f"{len(done)} of {len(jobs)} were done before, and are not done again: {results.path}", file=sys.stderr)
    left = [job for job in first or jobs if str(job) not in done]
    total, failed = int(sum(map(steps, left))), None
    context = multiprocessing.get_context("spawn")
    with (
        managed(context) as manager,
        Progress("training", total, unit="step") as bar,
        ProcessPoolExecutor(processes, mp_context=context, initializer=start_process) as pool,
    ):
        progress = manager.Queue()
        running = {pool.submit(function, job, progress): str(job) for job in left}
        while running:
            wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            while not progress.empty():
                bar.update(progress.get())
            for future in [future for future in running if future.done()]:
                name = running.pop(future)
                if future.cancelled():
                    continue
                if error := future.exception():
                    failed = failed or error
                    pool.shutdown(wait=False, cancel_futures=True)
                    continue
                done[name] = future.result()
                if results is not None:
                    results.add(name, done[name])
                    done[name] = results.found[name]
        if failed is not None:
            raise failed
        bar.update(total - bar.done)
        return [done[str(job)] for job in jobs]
