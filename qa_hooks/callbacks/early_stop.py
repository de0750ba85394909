"""The decision to stop, the same on all ranks.

fd = GenerativeMonitor(...)
hooks = Hooks([fd, EarlyStop(fd, "fd", mode="min", patience=10, certain=True)])
"""

from __future__ import annotations

from typing import Any

from qa_hooks._base.checks import check_count, check_weight
from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped
from qa_hooks.callbacks.readings import MetricReader, Reading, from_plain, in_words, to_plain


class EarlyStop(Callback):
    """Ends training when a metric has not become better for a while: on all ranks, at the same step.

    Attached to an optimizer it raises `TrainingStopped` out of `optimizer.step()`, otherwise it sets
    `hooks.should_stop`; the other callbacks of the step run in any case.

    Args:
        monitor, metric, mode: as in `BestCheckpoint`.
        patience: so many measurements in a row without an improvement, and it stops. One that is not finite is none.
        min_delta: an improvement is more than this.
        certain: an improvement is also more than chance: beyond the 95 % intervals of the new and the best value, taken
            as independent. The monitor must give them (`{metric}_low` and `_high`).

    Attributes:
        waited: measurements since the best one.

    Example:
        >>> from qa_hooks.callbacks import ScoreMonitor
        >>> from qa_hooks.scorers import create_scorer
        >>> psnr = ScoreMonitor(create_scorer("psnr"), every=100, images="pred", reference="target")
        >>> stop = EarlyStop(psnr, "mean", patience=5, min_delta=0.01)
    """

    def __init__(
        self,
        monitor: Callback,
        metric: str,
        *,
        mode: str | None = None,
        patience: int,
        min_delta: float = 0.0,
        certain: bool = False,
    ) -> None:
        self._watched = MetricReader(monitor, metric, mode)
        self.reads, self.metric, self.mode = (monitor,), metric, self._watched.mode
        self.patience, self.min_delta = check_count("patience", patience), check_weight("min_delta", min_delta)
        self.certain = certain
        self.waited = 0
        self._best: Reading | None = None

    @property
    def state_key(self) -> str:
        return f"EarlyStop({self.reads[0].state_key}.{self.metric})"

    def due(self, step: int) -> bool:
        return self.reads[0].due(step)

    def on_step_end(self, ctx: Context) -> None:
        reading = self._watched.new(ctx.step, interval=self.certain)
        if reading is None:
            return
        if reading.beats(self._best, self.mode, min_delta=self.min_delta, certain=self.certain):
            self._best, self.waited = reading, 0
            return
        self.waited += 1
        if self.waited >= self.patience:  # again at each one: a run that is resumed past its end stops, too
            raise TrainingStopped(
                f"{self.state_key}: {self.waited} measurements without an improvement; the best was "
                f"{in_words(to_plain(self._best))}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": to_plain(self._best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self._best = int(state["waited"]), from_plain(state["best"])
