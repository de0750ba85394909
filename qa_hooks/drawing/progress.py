"""How far long work is: a bar on a terminal, a line now and then in a file or a pipe."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from qa_hooks._base.processes import rank, world_size

LOG = logging.getLogger("qa_hooks.progress")
EVERY = 15.0  # seconds between two lines


class Progress:
    """A context in which `update` says how many more are done; rank 0 speaks.

    Args:
        what: is done, one word.
        total: how many there are.
        unit: what one of them is.
        shown: False is silent.
    """

    def __init__(self, what: str, total: int, *, unit: str = "image", shown: bool = True) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.shown = shown and rank() == 0
        self.done = 0
        self._began = self._said = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self.shown and sys.stderr.isatty():
            from tqdm import tqdm

            share = f" (share 1 of {world_size()})" if world_size() > 1 else ""
            self._bar = tqdm(total=self.total, desc=self.what + share, unit=self.unit)
        elif self.shown and self.total:
            LOG.info("%s: %d %ss", self.what, self.total, self.unit)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, count: int, *, failed: int = 0) -> None:
        """Count further items as done, and say how many of all items failed."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
            if failed:
                self._bar.set_postfix(failed=failed)
            return
        now = time.monotonic()
        if self.shown and now - self._said > EVERY and self.done:
            self._said = now
            left = (now - self._began) / self.done * (self.total - self.done)
            problems = f", {failed} with problems" if failed else ""
            LOG.info("%s: %d of %d%s, about %.0f s left", self.what, self.done, self.total, problems, left)
