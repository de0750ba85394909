"""The share of wall time that monitors may take, by a clock that the tests turn themselves."""

from __future__ import annotations

import pytest

from qa_hooks.callbacks import Callback
from qa_hooks.callbacks.budget import Budget
from qa_hooks.writers import MemoryWriter


class Costly(Callback):
    budgeted, every = True, 10

    def __init__(self, key: str = "costly") -> None:
        self.key = key

    @property
    def state_key(self) -> str:
        return self.key


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("qa_hooks.callbacks.budget.time.perf_counter", clock)
    return clock


def test_what_the_next_run_will_cost_counts_before_it_is_spent(clock):
    """2 s of 100 s are spent and 2 more would be: 4 % of the run, whatever has been spent until now."""
    budget, monitor = Budget(0.04), Costly()
    budget.start(0)
    budget.account(monitor, 2.0, 10, MemoryWriter())
    clock.now = 100 + 60
    assert not budget.allows(monitor, 20)  # 2 s are under 4 % of 60 s, 4 s are not
    clock.now = 100 + 99.9
    assert not budget.allows(monitor, 20)
    clock.now = 100 + 100.1
    assert budget.allows(monitor, 20)


def test_the_first_run_is_free_and_all_monitors_share_the_time(clock):
    budget, one, other = Budget(0.1), Costly("one"), Costly("other")
    budget.start(0)
    assert budget.allows(one, 20)
    budget.account(one, 1.0, 10, MemoryWriter())
    budget.account(other, 5.0, 10, MemoryWriter())
    clock.now = 100 + 65  # of 6.5 s, 6 are spent
    assert not budget.allows(one, 20)
    clock.now = 100 + 71
    assert budget.allows(one, 20)
    assert not budget.allows(other, 20)  # 6 + 5 s
    clock.now = 100 + 111
    assert budget.allows(other, 20)


def test_a_callback_that_is_not_budgeted_and_a_budget_without_a_share_never_wait(clock):
    free = Costly()
    free.budgeted = False
    for budget, callback in ((Budget(0.01), free), (Budget(None), Costly())):
        budget.start(0)
        budget.account(callback, 1000.0, 10, MemoryWriter())
        assert budget.allows(callback, 20)


def test_what_is_told_is_the_share_of_the_run(clock, caplog):
    """10 s for 10 steps besides the monitor, which takes 2.5 s each 10 steps: a fifth."""
    budget, monitor, writer = Budget(None), Costly(), MemoryWriter()
    budget.start(0)
    clock.now = 100 + 12.5
    with caplog.at_level("INFO", logger="qa_hooks"):
        budget.account(monitor, 2.5, 10, writer)
    assert "costly took 2.50 s; every 10 steps is 20.0% of the run" in caplog.text
    assert writer.scalars == {"qa_perf/costly/seconds": [(10, 2.5)]}


def test_a_callback_that_acts_is_counted_and_never_put_off(clock):
    budget, brake, other = Budget(0.01), Costly("brake"), Costly("other")
    brake.acts = True
    budget.start(0)
    budget.account(brake, 50.0, 10, MemoryWriter())
    budget.account(other, 0.1, 10, MemoryWriter())
    clock.now = 100 + 200
    assert budget.allows(brake, 20)
    assert not budget.allows(other, 20)  # what the brake took is gone


def test_a_monitor_that_is_put_off_for_long_is_named_once(clock):
    budget, monitor = Budget(0.01), Costly()
    budget.start(0)
    budget.account(monitor, 2.0, 10, MemoryWriter())
    for step in (20, 30, 40, 50):
        assert not budget.allows(monitor, step)
    with pytest.warns(UserWarning, match=r"costly has not run since step 10, and step 60 .*Hooks\(budget=None\)"):
        assert not budget.allows(monitor, 60)
    assert not budget.allows(monitor, 70)  # a second warning would be an error
