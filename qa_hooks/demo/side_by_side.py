"""Several training runs as one-thread processes with one bar: networks this small gain nothing from threads."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import torch

from qa_hooks._base.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    function: Callable[[Job, Any], Result],
    jobs: Sequence[Job],
    *,
    processes: int,
    total: int,
    first: Sequence[Job] = (),
) -> list[Result]:
    """`function(job, progress)` for every job, a few at a time; the results in the jobs' order.

    Args:
        function: of the top level of a module; it calls `progress.put(steps)` as it goes.
        jobs: what can be sent to another process.
        processes: at a time.
        total: steps of all jobs together, for the bar.
        first: the jobs in the order in which to start them (the longest first leaves no core waiting).

    Raises:
        Exception: of the first job that fails; the others are cancelled.
    """

    context = multiprocessing.get_context("spawn")
    with (
        context.Manager() as manager,
        Progress("training", total, unit="step") as bar,
        ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        progress = manager.Queue()
        submitted = {id(job): pool.submit(function, job, progress) for job in first or jobs}
        futures = [submitted[id(job)] for job in jobs]
        while not all(future.done() for future in futures):
            time.sleep(0.2)
            while not progress.empty():
                bar.update(progress.get())
            for future in futures:
                if future.done() and future.exception() is not None:
                    pool.shutdown(cancel_futures=True)
                    future.result()
        bar.update(total - bar.done)
        return [future.result() for future in futures]
