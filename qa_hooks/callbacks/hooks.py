"""Hooks: the callbacks of one run, in order, and the writer they share.

    hooks = Hooks([SampleGrid(sample, every=500), NaNGuard()], log_dir="runs/a", track={"qagan": penalty})
    for step, real in enumerate(loader):
        ...                                        # the user's own step
        optimizer.step()
        hooks.step(fake=fake)                      # or, before the loop: hooks.attach(optimizer)

What happens when:

    attach / with Hooks(...)    nothing yet, but an unwritable log folder has already raised
    first step                  on_train_start, then as below; monitors run once
    each call of a tracked part its terms are added to running means (no synchronisation)
    optimizer step k            values of earlier steps that were computed elsewhere and have come are taken in
                                the callbacks get the terms that are new since the last step
                                callbacks with k % every == 0, in order, isolated from the run
                                k % log_every == 0: means are written (one all-reduce)
    close / end of the block    means are written, on_train_end; without either, means are written when Python ends
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.at_exit import at_exit
from qa_hooks._base.checks import check_call, check_count, warn
from qa_hooks._base.processes import any_rank, is_distributed, rank, world_size
from qa_hooks.callbacks.attachment import Attachment
from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped
from qa_hooks.callbacks.capture import Captures, Handed, detached
from qa_hooks.callbacks.dispatch import Dispatch
from qa_hooks.callbacks.means import Means
from qa_hooks.callbacks.run_state import RunState
from qa_hooks.callbacks.tracking import Terms, Tracking
from qa_hooks.writers import GuardedWriter, TensorBoardWriter, Writer, check_writer


class Hooks:
    """Ordered callbacks and a writer; a context manager; one per optimizer (of a GAN: the generator's).

    Args:
        callbacks: in the order in which they run; two with one `state_key` raise.
        writer: where values go; or `log_dir`, for a `TensorBoardWriter` in that folder. Only rank 0 writes.
        track: `{"qagan": penalty, "ohem": weighter}`: their `.terms` are logged as `qa_loss/{track}/{term}` (a
            weighter's as `qa_weight/...`), the mean of all calls since the last point, and their state (`run_state()`,
            or `state_dict()` of other objects) travels in `state_dict()`.
        budget: the largest share of wall time that all monitors together may take (0.05 = 5 %); a monitor that would
            exceed it is put off to its next turn, and named in a warning when it missed five in a row. One that may
            stop or change the run (`RewardGuard` with "stop" or "scale") is counted and never put off. None: no limit.
        log_every: steps between two points of the logged means.
        strict: whether `load_state_dict` raises on missing and unknown keys.

    Raises:
        ValueError: a duplicate key, a folder that cannot be written, something in `track` without `.terms`.

    Example:
        >>> from qa_hooks.writers import MemoryWriter
        >>> writer = MemoryWriter()
        >>> with Hooks([], writer=writer, log_every=1) as hooks:
        ...     hooks.record(loss=2.0)
        ...     hooks.step()
        >>> writer.scalars
        {'qa_train/loss/mean': [(1, 2.0)]}
    """

    def __init__(
        self,
        callbacks: Iterable[Callback] = (),
        *,
        writer: Writer | None = None,
        log_dir: str | Path | None = None,
        track: Mapping[str, Any] | None = None,
        budget: float | None = None,
        log_every: int = 50,
        strict: bool = True,
    ) -> None:
        if not isinstance(callbacks, Iterable) or not isinstance(track, (Mapping, type(None))):
            raise TypeError("callbacks must be a list of callbacks, and track a mapping of names to losses, penalties")
        self.callbacks = list(callbacks)
        self._callbacks = Dispatch(self.callbacks, budget)
        self.log_every, self.strict = check_count("log_every", log_every), strict
        self._means = Means()
        self._tracking = Tracking(track or {}, self._means)
        self.track = self._tracking.track
        if writer is not None and log_dir is not None:
            raise ValueError("give writer or log_dir, not both")
        if writer is not None:
            check_writer(writer)
        self._owns_writer, self._lacks_writer = writer is None, writer is None and log_dir is None
        if writer is None and log_dir is not None and rank() == 0:
            writer = TensorBoardWriter(log_dir)
        self._writer = GuardedWriter(writer if rank() == 0 else None)
        self.step_count, self.should_stop = 0, False
        self._captures = Captures(self._count_silence)
        self._attachment: Attachment | None = None
        self._on_stop: Callable[[], Any] | None = None
        self._running = self._over = False

    def step(self, step: int | None = None, **images: Tensor | Sequence[Tensor]) -> None:
        """Call it after each optimizer step.

        Args:
            step: the number of optimizer steps made so far; counted when it is left out.
            images: tensors for the callbacks, for example `fake=fake`, without their graph; a list where sizes differ.

        Raises:
            RuntimeError: Hooks is attached to an optimizer, which already calls this.
        """
        if self._attachment is not None:
            raise RuntimeError("these hooks are attached to an optimizer, which calls them: remove hooks.step()")
        handed = {name: detached(name, image) for name, image in images.items()}
        self._advance(self.step_count + 1 if step is None else check_count("step", step, least=0), handed)

    def attach(self, optimizer: Any, *, on_stop: Callable[[], Any] | None = None) -> Hooks:
        """Let the optimizer call the hooks after each of its steps: no edit of the loop.

        Wrappers (`AcceleratedOptimizer`, ...) are unwrapped. Steps that a GradScaler skips do not count. The step
        number is taken from the optimizer's state where it has one, so that the x axis survives a resume.

        Monitors see the weights as this step leaves them. An average of the weights (EMA) that the loop updates after
        `optimizer.step()` is one update behind then: call `hooks.step()` after `ema.update()` instead of this.

        Args:
            optimizer: of torch, or a wrapper with `.optimizer`.
            on_stop: for frameworks with a polite way to stop. A callback that ends training on one rank then sets
                `should_stop` and calls `on_stop()` on all of them, after the same step, and nothing is raised. (What
                `NaNGuard("stop")` sees in the gradients is still raised, before the step, on all ranks.) On several
                processes that costs one small all-reduce after steps on which a callback was due.

        Raises:
            TypeError: not an optimizer, or an `on_stop` that cannot be called.
            RuntimeError: already attached, or `step()` has been called, or the optimizer has hooks already.
        """
        if on_stop is not None:
            check_call("on_stop", on_stop, "on_stop()")
        if self._attachment is not None or self._running or self._over:
            raise RuntimeError("attach() goes with neither a second attach(), nor calls of step(), nor closed hooks")
        self._attachment, self._on_stop = Attachment(optimizer, self.callbacks, self._after_optimizer_step), on_stop
        try:
            for callback in self.callbacks:
                callback.attach(self._attachment.optimizer)
        except BaseException:
            self._end()
            raise
        return self

    def use_writer(self, writer: Writer) -> Hooks:
        """Log to this writer, unless these hooks were made with a `writer` or `log_dir`; `close` leaves it open."""
        check_writer(writer)
        if self._lacks_writer:
            self._writer = GuardedWriter(writer if rank() == 0 else None)
            self._owns_writer = self._lacks_writer = False
        return self

    def capture(self, name: str, module: nn.Module) -> None:
        """Keep the module's last output for the callbacks as `ctx.images[name]`.

        What monitors make it put out does not count. An output that is no batch of images (N, 1 or 3, H, W) is refused
        with one warning.
        """
        self._captures.add(name, module)

    def check(self) -> str:
        """Call every sampler and scorer and try the writer: what the run would do, in words; nothing is changed."""
        from qa_hooks.callbacks.check import check_run

        with self._captures.pausing():
            said = check_run(self.callbacks, self._writer, self.track)
        if self._attachment is not None:
            self._attachment.checked()
        return said

    def record(self, **scalars: Tensor | float) -> None:
        """Log values of your own as `qa_train/{name}/mean`, averaged between points; tensors are not synchronised."""
        self._count_silence()
        for name, value in scalars.items():
            self._tracking.record(name, value)

    def close(self) -> None:
        """Write what is pending and end the run; values that are computed elsewhere are waited for.

        A measurement of the last step that was left out, since two were under way, is made now: with the weights as
        they are now, so close before you load others. After an error, as in a `finally`, it is not made.
        """
        if self._running:
            ended = sys.exc_info()[0] or TrainingStopped
            self._finish(wait=True, catch_up=issubclass(ended, TrainingStopped))
            self._dispatch(self._callbacks.end, self._context({}))
        if self._attachment is not None:
            self._attachment.close()
        self._end()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, TrainingStopped):
            return self.close()
        if self._running and not is_distributed():  # no collectives: the other ranks may be elsewhere
            self._finish(wait=False)
        return self._end()

    def __repr__(self) -> str:
        where = "" if self._writer.name is None else f", writer={self._writer.name}"
        return f"Hooks({self.callbacks}{where}, track={sorted(self.track)}, step={self.step_count})"

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain tensors and numbers. No collective: any rank may call it.

        What has been logged so far is put on disk, so that the curve of a run which is killed later has no gap. Values
        that are computed elsewhere are waited for, and are part of the state until they have been taken in.
        Unfinished means are saved per rank. They are exact after a resume if each rank loads its own state, or if you
        save at a multiple of `log_every`. If every rank loads rank 0's state, rank 0's pending values are used for all
        ranks.
        """
        self._writer.flush()
        return RunState(self.callbacks, self.track, self._means).gather(self.step_count)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; `ValueError` with `strict`, when callbacks or tracked parts do not fit it."""
        self.step_count = RunState(self.callbacks, self.track, self._means).restore(state, strict=self.strict)

    def _after_optimizer_step(self, known: int | None) -> None:
        following, first = self.step_count + 1, not self._running
        if known is not None and self.step_count and known != following:
            warn(
                f"the loaded hooks are at step {self.step_count}, the optimizer makes step {known}; the optimizer's "
                "count is used"
            )
        self._advance(following if known is None else known, {})
        alone = self.should_stop and not is_distributed()  # a value of an earlier step may have come
        if self._on_stop is not None and (first or alone or any(c.due(self.step_count) for c in self.callbacks)):
            self.should_stop = any_rank(self.should_stop)
            if self.should_stop:
                self._on_stop()

    def _advance(self, step: int, images: Mapping[str, Handed]) -> None:
        if self._over:
            raise RuntimeError("these hooks are closed; make new ones for another run")
        if not self._running:
            self._running = True
            self._callbacks.begin(self._writer, self.track, step)
            at_exit(self._end_unclosed)
            self._dispatch(self._callbacks.start, self._context(images))
        self.step_count = step
        self._dispatch(self._callbacks.step, self._context(images, self._tracking.take()))
        if step % self.log_every == 0:
            self._means.write(self._writer, step)

    def _context(self, images: Mapping[str, Handed], terms: Terms | None = None) -> Context:
        seen = {**self._captures.images, **images}
        return Context(self.step_count, seen, terms or {}, self._writer, rank(), world_size())

    def _dispatch(self, run: Callable[[Context], list[TrainingStopped]], ctx: Context) -> None:
        with self._captures.pausing():
            stops = run(ctx)
        for stop in stops:  # after the other callbacks of this step: one of them may keep the best checkpoint
            told, self.should_stop = self.should_stop, True
            if self._attachment is not None and self._on_stop is None:
                raise stop
            if not told:
                warn(f"{stop}; hooks.should_stop is set")

    def _count_silence(self) -> None:
        if self._attachment is not None:
            self._attachment.count_silence()

    def _finish(self, *, wait: bool, catch_up: bool = False) -> None:
        """Write the means, and the values that were computed elsewhere: all, or those that have come."""
        self._means.write(self._writer, self.step_count)
        with self._captures.pausing():
            stops = self._callbacks.land(self._context({}), wait=wait)
            self.should_stop |= bool(stops + (self._callbacks.catch_up() if catch_up else []))

    def _end(self) -> None:
        for callback in self.callbacks:
            callback.detach()
        if self._attachment is not None:
            self._attachment.end()
        self._captures.end()
        self._tracking.end()
        self._callbacks.active, self._running, self._over = [], False, True
        if self._owns_writer:
            self._writer.close()
        else:
            self._writer.flush()

    def _end_unclosed(self) -> None:
        """Write the last values when Python ends; without collectives, since other processes may be gone."""
        if self._running and not is_distributed():
            self._finish(wait=not hasattr(sys, "last_type"))  # after an error nobody wants to wait
            self._end()
