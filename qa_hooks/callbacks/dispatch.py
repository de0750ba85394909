"""How callbacks are run: in order, isolated from the user's run, within the budget; one that fails is switched off."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qa_hooks._base.checks import warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import rank
from qa_hooks.callbacks.budget import Budget
from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped
from qa_hooks.callbacks.settings import TAG, plain_settings, settings_text
from qa_hooks.sources.samples import OnePass
from qa_hooks.writers import GuardedWriter

MEANS = "the means of what is tracked or recorded"


class Dispatch:
    """Runs the callbacks of a run that are still switched on.

    Args:
        callbacks: in their order.
        budget: the share of wall time that monitors may take together.

    Raises:
        TypeError: something that is no callback.
        ValueError: two of one `state_key`, or one that stands before another whose results it reads.
    """

    def __init__(self, callbacks: Iterable[Callback], budget: float | None) -> None:
        self.active, self.budget = list(callbacks), Budget(budget)
        keys: set[str] = set()
        claims: dict[Path, str] = {}
        for position, callback in enumerate(self.active):
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be qa_hooks Callbacks, got {type(callback).__name__}")
            key = callback.state_key
            if key in keys:
                raise ValueError(f"two callbacks have the state key {key!r}; give one of them another name=")
            keys.add(key)
            claimed = None if callback.claims is None else callback.claims.resolve()
            if claimed is not None and claimed in claims:
                raise ValueError(
                    f"{key} and {claims[claimed]} would both keep their files in {claimed}: give each its own"
                )
            if claimed is not None:
                claims[claimed] = key
            for needed in callback.reads:
                if not any(earlier is needed for earlier in self.active[:position]):
                    raise ValueError(
                        f"{key} reads {needed.state_key}, which must come before it in the list of callbacks"
                    )
        self._left_out: list[tuple[Callback, Context]] = []  # at the last step, since two were under way
        self._unseen: list[str] = []  # whose values no writer took
        self._told_unseen = False
        self._measuring = [callback for callback in self.active if type(callback).arrived is not Callback.arrived]

    def begin(self, writer: GuardedWriter, track: Mapping[str, Any], step: int) -> None:
        """Before the first step: the clock starts, the log has the settings; what will be lost or mixed up is told."""
        self.budget.start(step)
        if step <= 1 and writer.earlier is not None:
            warn(
                f"{writer.earlier} holds the values of an earlier run, and this one begins at step 1: they are mixed "
                "in one log, in which the new values replace the old ones from their step on. Give each run a log_dir "
                "of its own; a run that goes on loads its state first (hooks.load_state_dict); Hooks is made once, "
                "before the loop"
            )
        writer.settings(plain_settings(self.active, track))
        writer.text(TAG, settings_text(self.active, track), step)

    def start(self, ctx: Context) -> list[TrainingStopped]:
        """Before the first step."""
        return self._run("on_train_start", self.active, ctx)

    def step(self, ctx: Context) -> list[TrainingStopped]:
        """Run the callbacks that are due after a step. Returns the `TrainingStopped` exceptions that they raised."""
        if _dropped(ctx):  # between the steps
            self._unseen.append(MEANS)
        stops = self.land(ctx)
        self._left_out = []
        return stops + self._at_step([callback for callback in self.active if callback.due(ctx.step)], ctx)

    def land(self, ctx: Context, *, wait: bool = False) -> list[TrainingStopped]:
        """Take in the values of earlier steps that have come, one at a time, each with the callbacks that read it.

        Args:
            ctx: of the present step.
            wait: for all that are under way.
        """
        stops: list[TrainingStopped] = []
        for monitor in [monitor for monitor in self._measuring if monitor.pending]:
            while monitor in self._measuring and (step := monitor.arrived(wait=wait)) is not None:
                then = replace(ctx, step=step, images={}, terms={}, late=True)
                stops += self._run("take_in", [monitor], then)
                readers = [callback for callback in self.active if monitor in callback.reads]
                stops += self._run("on_step_end", readers, then)
        return stops

    def catch_up(self) -> list[TrainingStopped]:
        """Measure the last step where it was left out because two were under way, and take its values in.

        All that was under way has been taken in. Everything is as it would have been in the step: the images that the
        loop handed over, and the callbacks that read the monitor.
        """
        left_out, self._left_out = self._left_out, []
        monitors = [callback for callback, _ in left_out if callback in self.active]
        if not monitors:
            return []
        readers = [callback for callback in self.active if any(monitor in callback.reads for monitor in monitors)]
        ctx = left_out[0][1]
        return self._at_step([*monitors, *readers], ctx) + self.land(ctx, wait=True)

    def end(self, ctx: Context) -> list[TrainingStopped]:
        """After the last step."""
        if _dropped(ctx):
            self._unseen.append(MEANS)
        stops = self._run("on_train_end", self.active, ctx)
        self._tell_unseen()
        return stops

    def _at_step(self, callbacks: list[Callback], ctx: Context) -> list[TrainingStopped]:
        """Run them as callbacks of one step: they share their samples, and what nobody writes is told at the end."""
        if not callbacks and not self._unseen:
            return []
        samples = _one_pass(callbacks, ctx)
        try:
            return self._run("on_step_end", callbacks, replace(ctx, samples=samples))
        finally:
            samples.close()
            self._tell_unseen()

    def _run(self, event: str, callbacks: list[Callback], ctx: Context) -> list[TrainingStopped]:
        if not callbacks:
            return []
        with isolated():
            return [stop for callback in list(callbacks) for stop in self._call(callback, event, ctx)]

    def _call(self, callback: Callback, event: str, ctx: Context) -> list[TrainingStopped]:
        measured = callback.budgeted and event == "on_step_end"
        if measured and not ctx.late:
            if callback.postponed(ctx.step):
                self._left_out.append((callback, replace(ctx, samples=None)))
                return []
            if not self.budget.allows(callback, ctx.step):
                return []
        if ctx.samples is not None and not _is_ours(callback):
            ctx.samples.forget()
            ctx = replace(ctx, samples=None)
        start, stops = time.perf_counter(), []
        try:
            getattr(callback, event)(ctx)
        except TrainingStopped as stop:
            stops.append(stop)
        except Exception as error:
            if callback in self.active:
                self.active.remove(callback)
            if event == "take_in":  # otherwise what it has drawn before still lands
                self._measuring.remove(callback)
            if rank() == 0 or not callback.budgeted:
                readers = ", ".join(reader.state_key for reader in self.active if callback in reader.reads)
                told = f"{error}; {readers} has no values any more" if readers else f"{error}"
                warn(f"{callback.state_key} failed and is switched off for the rest of the run: {told}")
        if _dropped(ctx) and getattr(callback, "folder", None) is None:  # otherwise it has written files
            self._unseen.append(callback.state_key)
        if event == "take_in" or ctx.late:
            self.budget.spend(time.perf_counter() - start)
        elif measured and callback in self.active:
            self.budget.account(callback, time.perf_counter() - start, ctx.step, ctx.writer)
            _dropped(ctx)  # what it costs is of no use without what it gives
        return stops

    def _tell_unseen(self) -> None:
        """Say once, at the end of the first step that dropped something, what to write."""
        if self._unseen and not self._told_unseen and rank() == 0:
            self._told_unseen = True
            names = ", ".join(dict.fromkeys(self._unseen))
            warn(
                f"{names}: these hooks have no writer, so what is measured and drawn is written nowhere. Hooks(..., "
                'log_dir="runs/a") shows it in TensorBoard, writer=... in another log, and folder=... of a callback '
                "keeps its pictures as files; writer=MemoryWriter() if its .last is all that you want (said once)"
            )
        self._unseen = []


def _dropped(ctx: Context) -> bool:
    """Whether something has been written since this was last asked, in a run without a writer."""
    writer = ctx.writer
    if not isinstance(writer, GuardedWriter) or not writer.dropped:
        return False
    writer.dropped = False
    return True


def _one_pass(due: list[Callback], ctx: Context) -> OnePass:
    """The samples that they may share; where one of them fails here, each makes its own, and it fails at its turn."""
    try:
        return OnePass(asked for callback in due if _is_ours(callback) for asked in callback.asks(ctx))
    except Exception:
        return OnePass()


def _is_ours(callback: Callback) -> bool:
    """Whether it is a class of this package, which leaves the networks as they are.

    One of the user's may exchange weights for a measurement, or for the callbacks after it: it gets samples of its own,
    and what was made before it is forgotten.
    """
    return type(callback).__module__.partition(".")[0] == __name__.partition(".")[0]
