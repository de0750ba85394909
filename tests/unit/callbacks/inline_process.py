"""A stand-in for the process that measures: a thread with the same messages, which answers when a test lets it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import ClassVar

from qa_hooks.callbacks.measuring.messages import receive, send
from qa_hooks.callbacks.measuring.worker import serve


class InlineProcess:
    """What `subprocess.Popen` gives, as far as it is used; all of them wait at `gate`."""

    gate = threading.Event()
    started: ClassVar[list[InlineProcess]] = []

    def __init__(self, command, stdin, stdout) -> None:
        questions, answers = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(questions[1], "wb"), os.fdopen(answers[0], "rb")
        self._in, self._out = os.fdopen(questions[0], "rb"), os.fdopen(answers[1], "wb")
        self.pid = self.returncode = None  # nothing that could be signalled
        self.dying = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        self.started.append(self)

    def _serve(self) -> None:
        def answer(facts, tensors):
            while not self.gate.wait(0.01):
                if self.dying.is_set():
                    return
            if not self.dying.is_set():
                send(self._out, facts, tensors)

        try:
            serve(lambda: receive(self._in), answer)
        finally:
            self._in.close()
            self._out.close()

    def poll(self):
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            self.returncode = -signal.SIGKILL
            self.dying.set()
            with contextlib.suppress(OSError):
                self.stdin.close()  # it reads the end of its questions, and goes

    def wait(self, timeout=None) -> int:
        if self.returncode is None:
            self.thread.join(timeout)
        return self.returncode
