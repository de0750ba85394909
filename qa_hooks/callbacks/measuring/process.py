"""The process that measures, seen from the one that trains: jobs go in, values come back in their order."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qa_hooks.callbacks.measuring.instruments import Block, Found
from qa_hooks.callbacks.measuring.messages import Facts, Tensors, receive, send
from qa_hooks.callbacks.measuring.worker import settings

PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from qa_hooks.callbacks.measuring.worker import main; main()"


class Job:
    """One measurement.

    Attributes:
        step: that its samples are of.
        blocks: its images, on the CPU; let go of when they have been sent.
        done: set when one of the following is known.
        found: its values.
        seconds: that the other process needed.
        error: what went wrong in the measurement itself.
        lost: why there is no answer: the process died.
    """

    def __init__(self, key: str, step: int, pack: Callable[[], tuple[Facts, Tensors]], blocks: Sequence[Block]) -> None:
        self.key, self.step, self.pack, self.blocks = key, step, pack, list(blocks)
        self.done = threading.Event()
        self.found: Found = {}
        self.seconds = 0.0
        self.error = self.lost = ""


class MeasuringProcess:
    """A process that works through jobs, one after the other; it is started with the first one, and after a death.

    A thread talks to it, so that the process that trains waits for nothing. Monitors of one device share it, and with
    it the networks of their features.

    Args:
        device: where it works.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._known: set[str] = set()  # keys of the instruments that it has been told of
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="qa_hooks measuring", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def submit(self, job: Job) -> None:
        """Have it measured after the jobs before it."""
        self._jobs.put(job)

    def close(self) -> None:
        """End the process, also in the middle of a job, which is lost."""
        if os.getpid() != self._owner:  # a fork of the one that trains, such as a loader's worker
            return
        self._closed = True
        self._jobs.put(None)
        process = self._process
        if process is not None:
            process.kill()
        if threading.current_thread() is not self._thread:  # which may collect the garbage that used it
            self._thread.join(10)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                if self._closed:
                    raise EOFError
                self._measure(job)
            except (EOFError, OSError) as error:
                job.lost = self._death() or str(error)
            except Exception as error:
                job.error = f"{type(error).__name__}: {error}"
            job.blocks = []
            job.done.set()
        self._end()

    def _measure(self, job: Job) -> None:
        if self._process is not None and self._process.poll() is not None:  # it died with nothing to do
            self._end()
        process = self._process or self._start()
        asked, answers = process.stdin, process.stdout
        if asked is None or answers is None:
            raise EOFError
        place = {"key": job.key, "device": str(self.device)}
        if job.key not in self._known:
            facts, tensors = job.pack()
            send(asked, {"do": "use", **place, "instrument": facts, "settings": settings()}, tensors)
            self._known.add(job.key)
        for number, block in enumerate(job.blocks):
            send(asked, {"do": "block", **place}, block)
            job.blocks[number] = {}
        send(asked, {"do": "measure", **place})
        answer, tensors = receive(answers)
        job.found, job.seconds = {**answer.get("found", {}), **tensors}, answer.get("seconds", 0.0)
        job.error = answer.get("error", "")
        if job.error:
            self._known.discard(job.key)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", PROGRAM, *sys.path]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._known = set()
        if self._closed:  # meanwhile
            self._process.kill()
        return self._process

    def _death(self) -> str:
        """How the process ended, in words; it is forgotten, and the next job starts another."""
        process = self._process
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        self._end()
        code = None if process is None else process.returncode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"it was killed by {signal.Signals(-code).name}"
        return "" if code is None else f"it ended with code {code}; what it printed stands above"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what nobody will read
                if stream is not None:
                    stream.close()


_SHARED: dict[str, tuple[MeasuringProcess, set[int]]] = {}


def shared_process(device: torch.device, user: Any) -> MeasuringProcess:
    """The process of a device; `leave_process` is its counterpart, and the last user's call ends it."""
    if str(device) not in _SHARED:
        _SHARED[str(device)] = MeasuringProcess(device), set()
    process, users = _SHARED[str(device)]
    if id(user) not in users:
        users.add(id(user))
        weakref.finalize(user, _leave, process, id(user)).atexit = False  # hooks that nobody closes, in a notebook
    return process


def leave_process(process: MeasuringProcess, user: Any) -> None:
    """Use a process no longer."""
    _leave(process, id(user))


def _leave(process: MeasuringProcess, user: int) -> None:
    known, users = _SHARED.get(str(process.device), (None, set()))
    if known is not process:
        return
    users.discard(user)
    if not users:
        del _SHARED[str(process.device)]
        process.close()
