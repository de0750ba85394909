"""When the watcher of a folder raises the alarm on a distance."""

from __future__ import annotations

import pytest

from qa_hooks.folders.watching.alarms import find_alarms


def found(low: float, value: float, high: float, *, best_high: float) -> list[str]:
    """The alarms at step 4 after three steps of which the best has the distance 10, known up to `best_high`."""
    others = {"fd": 12.0, "fd_low": 11.0, "fd_high": 13.0, "n": 64}
    past = {1: others, 2: {"fd": 10.0, "fd_low": 8.0, "fd_high": best_high, "n": 64}, 3: others}
    return [key for key, _ in find_alarms(4, {"fd": value, "fd_low": low, "fd_high": high, "n": 64}, past, [], [])]


@pytest.mark.parametrize(
    ("low", "value", "high", "best_high", "alarms"),
    [
        (20.5, 30.0, 40.0, 11.0, ["fd"]),  # even its lower end is twice the best
        (19.5, 30.0, 40.0, 11.0, []),  # its own error leaves it below twice the best
        (20.5, 30.0, 40.0, 25.0, []),  # the best one's error leaves that as large as this one may be
        (25.5, 30.0, 40.0, 25.0, ["fd"]),  # clear of both
    ],
)
def test_both_errors_count(low, value, high, best_high, alarms):
    assert found(low, value, high, best_high=best_high) == alarms
