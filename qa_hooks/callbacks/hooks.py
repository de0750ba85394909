"""Hooks: the callbacks of one run, in order, and the writer they share.

    hooks = Hooks([SampleGrid(sample, every=500), NaNGuard()], log_dir="runs/a", track={"qagan": penalty})
    for step, real in enumerate(loader):
        ...                                        # the user's own step
        optimizer.step()
        hooks.step(fake=fake)                      # or, before the loop: hooks.attach(optimizer)

What happens when:

    attach / with Hooks(...)    nothing yet, but an unwritable log folder has already raised
    first step                  on_train_start, then as below; monitors run once
    optimizer step k            new terms of `track` are added to running means (no synchronisation)
                                callbacks with k % every == 0, in order, isolated from the run
                                k % log_every == 0: means are written (one all-reduce)
    close / end of the block    means are written, on_train_end; without either, means are written when Python ends
"""

from __future__ import annotations

import atexit
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_count
from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import any_rank, is_distributed, rank, world_size
from qa_hooks.callbacks.budget import Budget
from qa_hooks.callbacks.callback import Callback, Context, TrainingStopped
from qa_hooks.callbacks.capture import Capture
from qa_hooks.callbacks.means import Stats
from qa_hooks.writers import GuardedWriter, TensorBoardWriter, Writer, make_tag

SILENT_CALLS = 200


class Hooks:
    """Ordered callbacks and a writer; a context manager; one per optimizer (of a GAN: the generator's).

    Args:
        callbacks: in the order in which they run; two with one `state_key` raise.
        writer: where values go; or `log_dir`, for a `TensorBoardWriter` in that folder. Only rank 0 writes.
        track: `{"qagan": penalty, "ohem": weighter}`: their `.terms` are logged as `qa_loss/{track}/{term}` (a
            weighter's as `qa_weight/...`) when they are new, and their state (`run_state()`, or `state_dict()` of other
            objects) travels in `state_dict()`.
        budget: the largest share of wall time that all monitors together may take (0.05 = 5 %); a monitor that would
            exceed it is put off to its next turn. None: no limit.
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
            raise TypeError(
                "callbacks must be a list of callbacks, and track a mapping of names to losses or penalties"
            )
        self.callbacks = list(callbacks)
        self.track = dict(track or {})
        self.log_every, self.strict = check_count("log_every", log_every), strict
        self._budget = Budget(budget)
        self._check_arguments(writer, log_dir)
        self._owns_writer = writer is None
        self._lacks_writer = writer is None and log_dir is None
        if writer is None and log_dir is not None and rank() == 0:
            writer = TensorBoardWriter(log_dir)
        self._writer = GuardedWriter(writer if rank() == 0 else None)
        self.step_count = 0
        self.should_stop = False
        self._active = list(self.callbacks)
        self._means = Stats()
        self._recorded: dict[str, Tensor | float] = {}
        self._captured: dict[str, Tensor] = {}
        self._logged: dict[str, Any] = {}
        self._busy = False
        self._handles: list[Any] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._on_stop: Callable[[], Any] | None = None
        self._events = self._silent_calls = 0
        self._running = False
        self._over = False

    # -- the loop ---------------------------------------------------------------------------------------------------

    def step(self, step: int | None = None, **images: Tensor) -> None:
        """Call it after each optimizer step.

        Args:
            step: the number of optimizer steps made so far; counted when it is left out.
            images: tensors for the callbacks, for example `fake=fake`; kept by reference, without their graph.

        Raises:
            RuntimeError: Hooks is attached to an optimizer, which already calls this.
        """
        if self._optimizer is not None:
            raise RuntimeError(
                "these hooks are attached to an optimizer, which calls them; remove the explicit hooks.step()"
            )
        for name, image in images.items():
            if not isinstance(image, Tensor):
                raise TypeError(f"hooks.step({name}=...) takes a tensor (N, C, H, W), got {type(image).__name__}")
        self._advance(self.step_count + 1 if step is None else int(step), images)

    def attach(self, optimizer: Any, *, on_stop: Callable[[], Any] | None = None) -> Hooks:
        """Let the optimizer call the hooks after each of its steps: no edit of the loop.

        Wrappers (`AcceleratedOptimizer`, ...) are unwrapped. Steps that a GradScaler skips do not count. The step
        number is taken from the optimizer's state where it has one, so that the x axis survives a resume.

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
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = optimizer.optimizer
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"attach needs a torch optimizer (or a wrapper with .optimizer), got {type(optimizer).__name__}"
            )
        if on_stop is not None and not callable(on_stop):
            raise TypeError(f"on_stop must be callable as on_stop(), got {type(on_stop).__name__}")
        if self._optimizer is not None or self._events:
            raise RuntimeError("attach() goes with neither a second attach() nor explicit step() calls")
        if optimizer in _ATTACHED:
            raise RuntimeError("this optimizer has hooks already; put all callbacks into one Hooks, or close the other")
        self._optimizer, self._on_stop = optimizer, on_stop
        _ATTACHED.add(optimizer)
        self._handles.append(optimizer.register_step_post_hook(self._on_optimizer_step))
        try:
            for callback in self.callbacks:
                callback.attach(optimizer)
        except BaseException:
            self._end()
            raise
        return self

    def use_writer(self, writer: Writer) -> Hooks:
        """Log to this writer, unless these hooks were made with a `writer` or `log_dir`; it is not closed at the end.

        Raises:
            TypeError: it lacks methods of a `Writer`.
        """
        _check_writer(writer)
        if self._lacks_writer:
            self._writer = GuardedWriter(writer if rank() == 0 else None)
            self._owns_writer = self._lacks_writer = False
        return self

    def capture(self, name: str, module: nn.Module) -> None:
        """Keep the module's last output for the callbacks as `ctx.images[name]`.

        What monitors make the module put out does not count. An output that is no batch of images (N, 1 or 3, H, W) is
        refused with one warning, and the run goes on.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"capture needs a module whose outputs are images, got {type(module).__name__}")
        self._handles.append(module.register_forward_hook(Capture(self._keep_captured, name, module)))

    def _keep_captured(self, name: str, output: Any) -> bool:
        """What `capture`'s hook calls; False when it should not be called again."""
        if self._busy or self._over:
            return not self._over
        self._count_silence()
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] in (1, 3):
            self._captured[name] = output.detach()
            return True
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        warnings.warn(f"capture({name!r}): the output is no batch of images (N, 1 or 3, H, W) but {what}; not captured")
        return False

    def record(self, **scalars: Tensor | float) -> None:
        """Log values of your own as `qa_train/{name}/mean`, averaged between points; tensors are not synchronised."""
        self._count_silence()
        for name, value in scalars.items():
            self._recorded[name] = _number(name, value)
            self._means.add(make_tag("train", name, "mean"), self._recorded[name])

    def close(self) -> None:
        """Write what is pending and end the run; further calls do nothing."""
        if self._running:
            self._flush()
            self._dispatch("on_train_end", list(self._active), {})
        if self._optimizer is not None and not self._events:
            warnings.warn("the optimizer that these hooks are attached to never made a step: " + _NO_EVENT)
        self._end()

    def __enter__(self) -> Hooks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, TrainingStopped):
            self.close()
        else:
            if self._running and not is_distributed():  # no collectives: the other ranks may be elsewhere
                self._flush()
            self._end()

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, as plain tensors and numbers. No collective: any rank may call it.

        What has been logged so far is put on disk, so that the curve of a run which is killed later has no gap. Means
        that are still being gathered (`log_every`) are this rank's: on several processes the one point of the curve
        that they belong to is exact after a resume when each rank saves and loads its own state, or when the state is
        saved at a multiple of `log_every`; where all load rank 0's, its earlier values stand for those of all.
        """
        self._writer.flush()
        return {
            "step": self.step_count,
            "callbacks": {callback.state_key: callback.state_dict() for callback in self.callbacks},
            "track": {name: _state_of(part) for name, part in self.track.items() if _is_stateful(part)},
            "means": self._means.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`.

        Raises:
            ValueError: with `strict`, when callbacks or tracked parts are missing or unknown.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be what state_dict() gave, got {type(state).__name__}")
        stateful = {name for name, part in self.track.items() if _is_stateful(part)}
        for kind, own in (("callbacks", {callback.state_key for callback in self.callbacks}), ("track", stateful)):
            saved = set(state.get(kind, {}))
            if self.strict and saved != own:
                raise ValueError(
                    f"the saved state does not fit these hooks: {kind} missing {sorted(own - saved)}, unknown "
                    f"{sorted(saved - own)}; Hooks(..., strict=False) loads what fits"
                )
        self.step_count = int(state.get("step", 0))
        for callback in self.callbacks:
            if callback.state_key in state.get("callbacks", {}):
                callback.load_state_dict(state["callbacks"][callback.state_key])
        for name in stateful & set(state.get("track", {})):
            _load_state(self.track[name], state["track"][name])
        self._means.load_state_dict(state.get("means", {}))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _check_arguments(self, writer: Writer | None, log_dir: str | Path | None) -> None:
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be qa_hooks Callbacks, got {type(callback).__name__}")
        keys = [callback.state_key for callback in self.callbacks]
        duplicates = sorted({key for key in keys if keys.count(key) > 1})
        if duplicates:
            raise ValueError(f"two callbacks have the state key {duplicates[0]!r}; give one of them another name=")
        for position, callback in enumerate(self.callbacks):
            for needed in callback.reads:
                if not any(earlier is needed for earlier in self.callbacks[:position]):
                    raise ValueError(
                        f"{callback.state_key} reads {needed.state_key}, which must come before it in the list of "
                        "callbacks"
                    )
        for name, part in self.track.items():
            if not hasattr(part, "terms"):
                raise ValueError(
                    f"track[{name!r}] has no .terms: losses, penalties and weighters of qa_hooks have, "
                    f"{type(part).__name__} not"
                )
        if writer is not None and log_dir is not None:
            raise ValueError("give writer or log_dir, not both")
        if writer is not None:
            _check_writer(writer)

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        # A fused optimizer under a GradScaler also "steps" when it skips.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0:
            return
        if any(callback.skipped is optimizer for callback in self.callbacks):
            return
        # Read once: on a GPU the counter may live there, and reading it each step would synchronise.
        known = _steps_in_state(optimizer) if not self._events else None
        following = self.step_count + 1
        if known is not None and self.step_count and known != following:
            warnings.warn(
                f"the loaded hooks are at step {self.step_count}, the optimizer makes step {known}; the optimizer's "
                "count is used"
            )
        first = not self._events
        self._advance(following if known is None else known, self._captured)
        if self._on_stop is not None and (first or any(c.due(self.step_count) for c in self.callbacks)):
            self.should_stop = any_rank(self.should_stop)
            if self.should_stop:
                self._on_stop()

    def _advance(self, step: int, images: Mapping[str, Tensor]) -> None:
        if self._over:
            raise RuntimeError("these hooks are closed; make new ones for another run")
        if not self._running:
            self._running = True
            self._budget.start(step)
            atexit.register(_write_at_exit, weakref.ref(self), os.getpid())
            self._dispatch("on_train_start", list(self._active), images)
        self._events += 1
        self.step_count = step
        terms: dict[str, dict[str, Tensor | float]] = {"train": self._recorded}
        self._recorded = {}
        for name, part in self.track.items():
            if part.terms is not self._logged.get(name):  # a new dictionary each time they are computed
                self._logged[name] = part.terms
                terms[name] = dict(part.terms)
                for term, value in part.terms.items():
                    self._means.add(make_tag(getattr(part, "kind", "loss"), name, term), value)
        due = [callback for callback in self._active if callback.due(step)]
        if due:
            self._dispatch("on_step_end", due, images, terms)
        if step % self.log_every == 0:
            self._flush()

    def _dispatch(
        self,
        event: str,
        callbacks: list[Callback],
        images: Mapping[str, Tensor],
        terms: Mapping[str, Mapping[str, Tensor | float]] | None = None,
    ) -> None:
        if not callbacks:
            return
        seen = {name: image.detach() for name, image in {**self._captured, **images}.items()}
        ctx = Context(self.step_count, seen, terms or {}, self._writer, rank(), world_size())
        self._busy = True
        try:
            with isolated():
                stops = [
                    self._call(callback, event, ctx)
                    for callback in callbacks
                    if event != "on_step_end" or self._budget.allows(callback)
                ]
        finally:
            self._busy = False
        for stop in stops:
            if stop is not None:  # after the others of this step: one of them may keep the best checkpoint
                told, self.should_stop = self.should_stop, True
                if self._optimizer is not None and self._on_stop is None:
                    raise stop
                if not told:
                    warnings.warn(f"{stop}; hooks.should_stop is set")

    def _call(self, callback: Callback, event: str, ctx: Context) -> TrainingStopped | None:
        """Run a callback; what it raised when it asks for the end of training."""
        start, stopped = time.perf_counter(), None
        try:
            getattr(callback, event)(ctx)
        except TrainingStopped as stop:
            stopped = stop
        except Exception as error:
            self._active.remove(callback)
            if rank() == 0 or not callback.budgeted:
                warnings.warn(f"{callback.state_key} failed and is switched off for the rest of the run: {error}")
        if callback.budgeted and event == "on_step_end" and callback in self._active:
            self._budget.account(callback, time.perf_counter() - start, self.step_count, self._writer)
        return stopped

    def _flush(self) -> None:
        try:
            means = self._means.flush()
            for tag, value in means.items():
                self._writer.scalar(tag, value, self.step_count)
        except Exception as error:
            if rank() == 0:
                warnings.warn(f"this point of the logged means is left out: {type(error).__name__}: {error}")

    def _count_silence(self) -> None:
        if self._optimizer is None or self._events:
            return
        self._silent_calls += 1
        if self._silent_calls == SILENT_CALLS:
            warnings.warn(f"{SILENT_CALLS} calls and no optimizer step yet: " + _NO_EVENT)

    def _end(self) -> None:
        for handle in self._handles:
            handle.remove()
        for callback in self.callbacks:
            callback.detach()
        if self._optimizer is not None:
            _ATTACHED.discard(self._optimizer)
        self._handles, self._active, self._running, self._over = [], [], False, True
        self._captured, self._recorded, self._logged = {}, {}, {}
        if self._owns_writer:
            self._writer.close()


_NO_EVENT = (
    "no callback has run. Does the script step inside backward (fused backward pass), or use another optimizer? "
    "Then call hooks.step() in the loop"
)


# Optimizers that have hooks; weak, so that a forgotten one does not live on.
_ATTACHED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def _write_at_exit(reference: weakref.ref[Hooks], process: int) -> None:
    """Write the last means of hooks that nobody closed; without collectives, since other processes may be gone."""
    hooks = reference()
    if hooks is not None and hooks._running and not is_distributed() and os.getpid() == process:  # not a forked child
        hooks._flush()
        hooks._end()


def _check_writer(writer: Any) -> None:
    missing = [method for method in ("scalar", "image", "histogram", "close") if not hasattr(writer, method)]
    if missing:
        raise TypeError(f"writer must have the methods of a Writer; {type(writer).__name__} lacks {missing}")


def _number(name: str, value: Any) -> Tensor | float:
    if isinstance(value, Tensor):
        return value.detach()
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"hooks.record({name}=...) takes a number or a tensor, got {value!r}") from None


def _is_stateful(part: Any) -> bool:
    return hasattr(part, "run_state") or hasattr(part, "state_dict")


def _state_of(part: Any) -> dict[str, Any]:
    return dict(part.run_state() if hasattr(part, "run_state") else part.state_dict())


def _load_state(part: Any, state: Any) -> None:
    (part.load_run_state if hasattr(part, "load_run_state") else part.load_state_dict)(state)


def _steps_in_state(optimizer: torch.optim.Optimizer) -> int | None:
    for state in optimizer.state.values():
        if "step" in state:
            return int(state["step"])
    return None
