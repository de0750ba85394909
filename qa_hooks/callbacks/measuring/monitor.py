"""A monitor whose numbers are computed in the step, or elsewhere while training goes on.

Drawn in the step, computed elsewhere:

    step 500     `draw`: samples of this step's weights, in `isolated`, kept as they are; the other process gets them
    step 501...  training goes on
    step 517     the values have come: `land` writes them at step 500, and callbacks that read this monitor are called
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator
from typing import Any

import torch

from qa_hooks._base.checks import warn
from qa_hooks._base.processes import gather_rows, is_distributed
from qa_hooks.callbacks.callback import Context, Monitor
from qa_hooks.callbacks.measuring.instruments import Block, Found, Instrument, in_order
from qa_hooks.callbacks.measuring.process import Job, MeasuringProcess, leave_process, shared_process
from qa_hooks.writers import make_tag

LOG = logging.getLogger("qa_hooks")

PENDING = 2  # measurements of one monitor that are under way: one is computed, the next one waits
DEATHS = 3  # of the process in a row, and the monitor is switched off
PATIENCE = 10.0  # seconds after which it is said what is waited for
_KEYS = itertools.count()


class MeasuringMonitor(Monitor):
    """A monitor that draws images and measures them with an instrument, here or elsewhere.

    Args:
        every: steps between two measurements.
        where: None computes in the step. "process", "cpu", "cuda:1", ... computes in a process of its own while
            training goes on: on the device where the step would have computed, or on the one that is named.

    Attributes:
        here: the device where the step would compute; the images' device where it is not known before.
    """

    def __init__(self, *, every: int, where: str | None = None) -> None:
        super().__init__(every=every)
        self.where = check_where(where)
        self.here: torch.device | None = None
        self._key = f"{next(_KEYS)}"
        self.pending: list[Job] = []  # in the order of their steps; jobs out of a saved state are done
        self._process: MeasuringProcess | None = None
        self._deaths = 0
        self._told_busy = False

    def draw(self, ctx: Context) -> Iterator[Block]:
        """This process's images, block by block."""
        raise NotImplementedError(f"{type(self).__name__} must define draw(ctx)")

    def instrument(self) -> Instrument:
        """What they are measured with."""
        raise NotImplementedError(f"{type(self).__name__} must define instrument()")

    def land(self, ctx: Context, found: Found) -> None:
        """Take in the values of the step `ctx.step`, and write them."""

    # -- in the step ------------------------------------------------------------------------------------------------

    def on_train_start(self, ctx: Context) -> None:
        if self.where is not None and ctx.world_size > 1:  # made before the process group, and maybe on one rank alone
            self._failure = _one_process(self.where)  # told to all in the first measurement: none waits for another

    def local(self, ctx: Context) -> Any:
        if self.where is not None:
            blocks = []
            for block in self.draw(ctx):
                self.here = self.here or block["images"].device
                blocks.append({name: part.to("cpu", copy=True) for name, part in block.items()})
            return blocks
        instrument = self.instrument()
        rows = [instrument.rows(block) for block in self.draw(ctx)]
        return torch.cat(rows) if rows else torch.zeros(0, 0, dtype=instrument.dtype, device="cpu")

    def reduce(self, ctx: Context, part: Any) -> None:
        if self.where is not None:
            job = Job(self._key, ctx.step, self.instrument().packed, part)
            self.pending.append(job)
            self._process = shared_process(self.place, self)
            self._process.submit(job)
            return
        self.land(ctx, self.instrument().values(in_order(gather_rows(part))))

    # -- later ------------------------------------------------------------------------------------------------------

    def postponed(self, step: int) -> bool:
        busy = self.where is not None and len(self.pending) >= PENDING
        if busy and not self._told_busy:
            self._told_busy = True
            warn(
                f"{self.state_key}: step {step} is not measured, since steps {' and '.join(self._steps())} are "
                "still being computed elsewhere; a larger every= or a smaller n= keeps up, and hooks.close() measures "
                "the run's last step after all (said once)"
            )
        return busy

    def awaits(self, step: int) -> bool:
        return any(job.step == step for job in self.pending)

    def arrived(self, *, wait: bool = False) -> int | None:
        if not self.pending:
            return None
        if wait:
            self._wait(self.pending[0])
        return self.pending[0].step if self.pending[0].done.is_set() else None

    def take_in(self, ctx: Context) -> None:
        job = self.pending.pop(0)
        if job.error:
            raise RuntimeError(f"step {job.step} could not be measured: {job.error}")
        if job.lost:
            self._deaths += 1
            words = f"the process that measures died while it was at step {job.step}: {job.lost}"
            if self._deaths >= DEATHS:
                raise RuntimeError(f"{words}; that is {DEATHS} times in a row")
            warn(f"{self.state_key}: {words}. This point is left out, and the next one gets a new process")
            return
        self._deaths = 0
        if job.seconds:
            ctx.writer.scalar(make_tag("perf", self.state_key, "elsewhere_seconds"), job.seconds, job.step)
        self.land(ctx, job.found)

    def detach(self) -> None:
        self.pending = []
        if self._process is not None:
            leave_process(self._process, self)
            self._process = None

    def late(self) -> dict[str, Any]:
        """What a state keeps of measurements that are under way: it waits for their values; {} where there are none."""
        for job in self.pending:
            self._wait(job)
        kept = [{"step": job.step, "found": job.found} for job in self.pending if not (job.error or job.lost)]
        return {"late": kept} if kept else {}

    def load_late(self, state: dict[str, Any]) -> None:
        """The inverse of `late`: the values land at the next step."""
        self.pending = []
        for entry in state.get("late", []):
            job = Job(self._key, int(entry["step"]), lambda: self.instrument().packed(), [])  # asked by nobody
            job.found = dict(entry["found"])
            job.done.set()
            self.pending.append(job)

    @property
    def place(self) -> torch.device:
        """Where the numbers are computed."""
        if self.where not in (None, "process"):
            return torch.device(str(self.where))
        return self.here or torch.device("cpu")

    def _steps(self) -> list[str]:
        return [str(job.step) for job in self.pending]

    def _wait(self, job: Job) -> None:
        if not job.done.wait(PATIENCE):
            start = time.perf_counter()
            LOG.warning("waiting for %s of step %d", self.state_key, job.step)
            job.done.wait()
            LOG.warning("it came after %.1f s", PATIENCE + time.perf_counter() - start)


def check_where(where: Any) -> str | None:
    """A place to compute in; `ValueError` for a device that is not there, and on several processes."""
    if where is None:
        return None
    if not isinstance(where, str) or not where:
        raise ValueError(f'where must be "process", a device such as "cpu" or "cuda:1", or None, got {where!r}')
    if where != "process":
        try:
            torch.zeros(1, device=where, dtype=torch.float32).item()  # "meta" has no numbers
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f'where={where!r} is neither "process" nor a device that is here: {reason}') from None
    if is_distributed():
        raise _one_process(where)
    return where


def _one_process(where: str) -> ValueError:
    return ValueError(
        f"where={where!r} is for training in one process: on several ones leave it out, and they share the measurement"
    )
