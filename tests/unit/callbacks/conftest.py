"""What the tests of measurement beside the training share."""

from __future__ import annotations

import threading

import pytest
from inline_process import InlineProcess

from qa_hooks.callbacks.measuring import process


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A process of one test is in no other one."""
    yield
    for shared, _ in list(process._SHARED.values()):
        shared.close()
    process._SHARED.clear()


@pytest.fixture
def inline(monkeypatch):
    """The process is a thread of this one, which answers at once."""
    monkeypatch.setattr(process.subprocess, "Popen", InlineProcess)
    monkeypatch.setattr(InlineProcess, "started", [])
    InlineProcess.gate = threading.Event()
    InlineProcess.gate.set()
    return InlineProcess
