"""How far long work is: a bar on a terminal; in a file or a pipe a line every 30 seconds, from a thread of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

from qa_hooks._base.processes import rank, world_size
from qa_hooks._base.text import plural

LOG = logging.getLogger("qa_hooks.progress")
EVERY = 30.0  # seconds between two lines
Item = TypeVar("Item")

_running: list[Progress] = []  # the innermost last
_beating: list[Heartbeat] = []


class Progress:
    """A context in which `update` says how many more are done; rank 0 speaks.

    Args:
        what: is done, a word or two.
        total: how many there are; None where nobody knows.
        unit: what one of them is.
        shown: False is silent.
    """

    def __init__(self, what: str, total: int | None, *, unit: str = "image", shown: bool = True) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.shown = shown and rank() == 0
        self.done, self.failed, self.note = 0, 0, ""
        self._began = time.monotonic()
        self._bar: Any = None
        self._heartbeat: Heartbeat | None = None

    def __enter__(self) -> Progress:
        if not self.shown:
            return self
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            share = f" (share 1 of {world_size()})" if world_size() > 1 else ""
            self._bar = tqdm(total=self.total, desc=self.what + share, unit=self.unit)
            return self
        if self.total:
            LOG.info("%s: %s", self.what, plural(self.total, self.unit))
        _running.append(self)
        if not _beating:
            self._heartbeat = Heartbeat()
            self._heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self in _running:
            _running.remove(self)
        if self._heartbeat is not None:
            self._heartbeat.__exit__()

    def update(self, count: int = 1, *, failed: int = 0, note: str = "") -> None:
        """Count further items as done; say how many of all items failed, and anything else in a few words."""
        self.done, self.failed, self.note = self.done + count, failed, note or self.note
        if self._bar is not None:
            self._bar.update(count)
            said = [f"failed={failed}"] * bool(failed) + [note] * bool(note)
            if said:
                self._bar.set_postfix_str(", ".join(said))

    def line(self) -> str:
        """How far it is, in words."""
        parts = [f"{self.what}: {self.done}" + (f" of {self.total}" if self.total else f" {self.unit}s")]
        parts += [f"{self.failed} with problems"] * bool(self.failed) + [self.note] * bool(self.note)
        if self.done and self.total:
            left = (time.monotonic() - self._began) / self.done * (self.total - self.done)
            parts.append(f"about {left:.0f} s left")
        return ", ".join(parts)


def counted(
    items: Iterable[Item], what: str, *, total: int | None = None, unit: str = "image", shown: bool = True
) -> Iterator[Item]:
    """The items one after another, with a `Progress`.

    Example:
        >>> list(counted([1, 2], "numbers", shown=False))
        [1, 2]
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(what, total, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.update()


class Heartbeat:
    """A context in which a line says every 30 seconds what the work is at, unless stderr is a terminal.

    Args:
        waits: the work waits for somebody else; nothing is said while it does, but while a `Progress` runs.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self.waits = waits
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Heartbeat:
        piped = sys.stderr is not None and not sys.stderr.isatty()
        if piped and rank() == 0 and not _beating:
            _beating.append(self)
            self._thread = threading.Thread(target=self._beat, name="qa_hooks heartbeat", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self in _beating:
            _beating.remove(self)
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        began = time.monotonic()
        while not self._end.wait(EVERY):
            running = list(_running)
            if running:
                LOG.info("%s", running[-1].line())
            elif not self.waits:
                LOG.info("at work for %.0f s", time.monotonic() - began)
