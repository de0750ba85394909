"""What monitors cost, and the share of wall time that they may take."""

from __future__ import annotations

import logging
import time

from qa_hooks._base.checks import check_share, warn
from qa_hooks._base.processes import any_rank, rank
from qa_hooks.callbacks.callback import Callback
from qa_hooks.writers import Writer, make_tag

LOGGER = logging.getLogger("qa_hooks")

LATE = 5  # turns in a row that a callback may miss before it is said


class Budget:
    """Accounts for the time of budgeted callbacks; one that would exceed the share is put off to its next turn.

    A callback that `acts` is never put off. One that has missed `LATE` turns in a row is named in a warning, once.

    Args:
        share: of wall time, between 0 and 1; None: no limit.
    """

    def __init__(self, share: float | None) -> None:
        self.share = None if share is None else check_share("budget", share)
        self._started, self._first_step, self._spent = 0.0, 0, 0.0
        self._cost: dict[str, float] = {}
        self._last: dict[str, int] = {}  # the step of the last run
        self._told: set[str] = set()
        self._told_late: set[str] = set()

    def start(self, step: int) -> None:
        """Start the clock of the run."""
        self._started, self._first_step = time.perf_counter(), step

    def allows(self, callback: Callback, step: int) -> bool:
        """Whether the callback may run now; its first run always may, since its cost is unknown. Rank 0 decides."""
        key = callback.state_key
        if self.share is None or not callback.budgeted or callback.acts or key not in self._cost:
            return True
        elapsed = time.perf_counter() - self._started
        allowed = any_rank(self._spent + self._cost[key] <= self.share * elapsed and rank() == 0)
        if not allowed and step - self._last[key] >= LATE * callback.every and key not in self._told_late:
            self._told_late.add(key)
            if rank() == 0:
                warn(
                    f"{key} has not run since step {self._last[key]}, and step {step} is too soon again: it takes "
                    f"{self._cost[key]:.3g} s, and monitors may take {100 * self.share:g} % of the time together. It "
                    "sees this run more rarely than its every= says. What is never put off: Hooks(budget=None); what "
                    "costs less: a larger every= or a smaller n= (said once)"
                )
        return allowed

    def spend(self, seconds: float) -> None:
        """Count what was lost to values that were computed elsewhere; a measurement does not cost more for it."""
        self._spent += seconds

    def account(self, callback: Callback, seconds: float, step: int, writer: Writer) -> None:
        """Log the cost of a run, and say once what share of the time it is."""
        key = callback.state_key
        self._spent += seconds
        self._cost[key], self._last[key] = seconds, step
        writer.scalar(make_tag("perf", key, "seconds"), seconds, step)
        steps = step - self._first_step
        if steps and key not in self._told and rank() == 0:
            self._told.add(key)
            between = max(time.perf_counter() - self._started - self._spent, 0.0) / steps * callback.every
            share = seconds / (seconds + between)
            LOGGER.info(
                "%s took %.2f s; every %d steps is %.1f%% of the run", key, seconds, callback.every, 100 * share
            )
