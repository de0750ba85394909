"""What monitors cost, and the share of wall time that they may take."""

from __future__ import annotations

import logging
import time

from qa_hooks._base.checks import check_share
from qa_hooks._base.processes import any_rank, rank
from qa_hooks.callbacks.callback import Callback
from qa_hooks.writers import Writer, make_tag

LOGGER = logging.getLogger("qa_hooks")


class Budget:
    """Accounts for the time of budgeted callbacks; one that would exceed the share is put off to its next turn.

    Args:
        share: of wall time, between 0 and 1; None: no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = None if share is None else check_share("budget", share)
        self._started, self._first_step, self._spent = 0.0, 0, 0.0
        self._cost: dict[str, float] = {}
        self._told: set[str] = set()

    def start(self, step: int) -> None:
        """Start the clock of the run."""
        self._started, self._first_step = time.perf_counter(), step

    def allows(self, callback: Callback) -> bool:
        """Whether the callback may run now; its first run always may, since its cost is unknown. Rank 0 decides."""
        if self.share is None or not callback.budgeted or callback.state_key not in self._cost:
            return True
        elapsed = time.perf_counter() - self._started
        allowed = self._spent + self._cost[callback.state_key] <= self.share * elapsed
        return any_rank(allowed and rank() == 0)

    def spend(self, seconds: float) -> None:
        """Count what was lost to values that were computed elsewhere; a measurement does not cost more for it."""
        self._spent += seconds

    def account(self, callback: Callback, seconds: float, step: int, writer: Writer) -> None:
        """Log the cost of a run, and say once what share of the time it is."""
        key = callback.state_key
        self._spent += seconds
        self._cost[key] = seconds
        writer.scalar(make_tag("perf", key, "seconds"), seconds, step)
        steps = step - self._first_step
        if steps and key not in self._told and rank() == 0:
            self._told.add(key)
            between = max(time.perf_counter() - self._started - self._spent, 0.0) / steps * callback.every
            share = seconds / (seconds + between)
            LOGGER.info(
                "%s took %.2f s; every %d steps is %.1f%% of the run", key, seconds, callback.every, 100 * share
            )
