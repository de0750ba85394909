"""Read one metric of a monitor, with its interval and its step; all ranks get the same values."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from qa_hooks._base.processes import rank, shared, together
from qa_hooks._base.text import meant
from qa_hooks.callbacks.callback import Callback, Monitor

MODES = ("min", "max")  # by whether higher is better


class Reading(NamedTuple):
    """A measurement. `low` and `high` bound its 95 % interval, and are NaN where the monitor gives none."""

    step: int
    value: float
    low: float = math.nan
    high: float = math.nan

    def beats(self, other: Reading | None, mode: str, *, min_delta: float = 0.0, certain: bool = False) -> bool:
        """Whether this is better than the other by more than `min_delta`; what is not finite never is.

        With `certain`, by more than chance as well, taking the errors of the two as independent:
        |difference| > sqrt(a^2 + b^2), where a and b are the widths of the two intervals' sides that face each other.
        What has no interval beats nothing then, and is beaten by what lies beyond it for certain (its b counts as 0).
        """
        if not math.isfinite(self.value):
            return False
        if other is None:
            return True
        gain = other.value - self.value if mode == "min" else self.value - other.value
        if certain:
            own, best = self.high - self.value, other.value - other.low
            if mode == "max":
                own, best = self.value - self.low, other.high - other.value
            if not gain > math.hypot(own, 0.0 if math.isnan(best) else best):
                return False
        return gain > min_delta


class MetricReader:
    """One metric of one monitor.

    Raises:
        TypeError: a monitor without `.last`.
        ValueError: a mode other than "min" and "max", one that the monitor contradicts, none where the monitor does not
            know the direction, or a metric that the monitor says it does not measure.
    """

    def __init__(self, monitor: Callback, metric: str, mode: str | None) -> None:
        if not isinstance(monitor, Callback) or not isinstance(getattr(monitor, "last", None), dict):
            raise TypeError(
                "monitor must be a callback that measures and has .last, such as ScoreMonitor, got "
                f"{type(monitor).__name__}"
            )
        if mode not in (None, *MODES):
            raise ValueError(f'mode must be "min" (lower is better) or "max", got {mode!r}')
        measures: tuple[str, ...] = getattr(monitor, "measures", ())
        if measures and metric not in measures:
            raise ValueError(
                f"{monitor.state_key} measures no {metric!r}{meant(metric, measures)}; "
                f"it measures {', '.join(measures)}"
            )
        self.monitor, self.metric, self.mode = monitor, metric, _direction(monitor, metric, mode)

    @property
    def spec(self) -> str | None:
        """The spec of this metric (`monitor.spec[metric]`); None if the monitor has none."""
        spec = getattr(self.monitor, "spec", None)
        found = spec.get(self.metric) if isinstance(spec, dict) else spec
        return None if found is None else str(found)

    def new(self, step: int, *, interval: bool = False, spec: str | None = None) -> Reading | None:
        """The measurement of this step, None when there is none: rank 0's, on all ranks.

        Raises:
            ValueError: an unknown metric, with `interval` one without an interval, or one that is measured in another
                way than `spec`.
            RuntimeError: the same, on the other ranks.
        """
        reading = None
        with together():
            if rank() == 0:
                reading = self._own(step, interval, spec)
        return shared(reading)

    def _own(self, step: int, interval: bool, spec: str | None) -> Reading | None:
        last: dict[str, float] = self.monitor.last  # type: ignore[attr-defined]
        if last.get("step") != step:
            return None
        if self.metric not in last:
            raise ValueError(
                f"{self.monitor.state_key} measures no {self.metric!r}; it has {sorted(set(last) - {'step'})}"
            )
        bounds = [float(last.get(f"{self.metric}_{side}", math.nan)) for side in ("low", "high")]
        if interval and any(f"{self.metric}_{side}" not in last for side in ("low", "high")):
            raise ValueError(
                f"{self.monitor.state_key} gives no interval for {self.metric!r}, which certain=True needs; it has "
                f"{sorted(set(last) - {'step'})}"
            )
        if spec is not None and spec != self.spec:
            raise ValueError(
                f"the best so far is a value of {spec}, and this one is of {self.spec}: these cannot be compared; give "
                "each its own folder"
            )
        return Reading(step, float(last[self.metric]), *bounds)


def _direction(monitor: Callback, metric: str, mode: str | None) -> str:
    """The mode that is given, which must not contradict what the monitor knows, or what it knows.

    Raises:
        ValueError: neither says the direction, or they say different ones.
    """
    higher = monitor.higher_is_better(metric) if isinstance(monitor, Monitor) else None
    if higher is None:
        if mode is None:
            raise ValueError(
                f'which direction of {metric!r} is better? Write mode="min" (lower) or mode="max"; '
                f"{monitor.state_key} does not say"
            )
        return mode
    known = MODES[higher]
    if mode not in (None, known):
        word = "higher" if higher else "lower"
        raise ValueError(
            f'{word} is better for {metric!r} of {monitor.state_key}, so that mode="{mode}" keeps the worst; '
            f'leave it out or write mode="{known}"'
        )
    return known


def to_plain(reading: Reading | None) -> dict[str, Any]:
    """The reading as a dictionary for states and JSON, without unknown values; {} for None."""
    if reading is None:
        return {}
    known = {name: value for name, value in reading._asdict().items() if math.isfinite(value)}
    return {**known, "step": int(reading.step)}


def from_plain(plain: dict[str, Any]) -> Reading | None:
    """The inverse of `to_plain`."""
    if "step" not in plain:
        return None
    bounds = (float(plain.get(side, math.nan)) for side in ("low", "high"))
    return Reading(int(plain["step"]), float(plain.get("value", math.nan)), *bounds)


def in_words(plain: dict[str, Any]) -> str:
    """The dictionary of `to_plain` as text, for messages."""
    return f"{plain['value']:.6g} at step {plain['step']}" if "value" in plain else "none"
