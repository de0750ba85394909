"""Hugging Face Transformers: hooks as a `TrainerCallback`.

    hooks = Hooks([SampleGrid(sample, every=500)], log_dir="runs/a")
    trainer = Trainer(model, args, train_dataset=data, callbacks=[trainer_callback(hooks)])

A callback cannot change the loss: for that, override `compute_loss`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qa_hooks._base.checks import warn
from qa_hooks._base.libraries import import_library
from qa_hooks.callbacks import Hooks
from qa_hooks.integrations.hook_state import load_state, save_state

FILE = "qa_hooks.safetensors"


def trainer_callback(hooks: Hooks, *, resume_from: str | Path | None = None) -> Any:
    """A `TrainerCallback` that delegates to hooks; it watches and cannot change the loss.

    The hooks fire after each step of the trainer's optimizer (not on micro-steps, not on steps that a GradScaler
    skips) and end with `train`. Their state is written into each checkpoint folder as `qa_hooks.safetensors`, and read
    from there on a resume; where it cannot be written, one warning says so and training goes on. A callback that stops
    training sets `control.should_training_stop` on all ranks. Images reach the callbacks through `sample=` or
    `hooks.capture(...)`.

    Args:
        hooks: fresh ones, for one `train`.
        resume_from: the checkpoint folder, where it is not one of the trainer's own `output_dir`.

    Returns:
        A `transformers.TrainerCallback`.

    Raises:
        TypeError: no hooks.
        ImportError: Transformers is not installed.
    """
    if not isinstance(hooks, Hooks):
        raise TypeError(f"hooks must be a qa_hooks.Hooks, got {type(hooks).__name__}")
    base: Any = import_library("transformers", needed_by="the callback of a Trainer").TrainerCallback

    class TrainerHooks(base):  # type: ignore[misc]  # known only where Transformers is installed
        """Delegates to `Hooks`: steps of the optimizer, state, end. It cannot change the loss."""

        def __init__(self) -> None:
            self.hooks = hooks
            self.warned = False

        def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            if state.global_step:
                _resume(hooks, Path(resume_from or _folder(args, state)))
            hooks.attach(parts["optimizer"], on_stop=lambda: None)

        def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> Any:
            if hooks.should_stop:
                control.should_training_stop = True
            return control

        def on_save(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            if not state.is_world_process_zero:
                return
            path = _folder(args, state) / FILE
            try:
                save_state(hooks.state_dict(), path)
            except Exception as error:
                if not self.warned:
                    warn(
                        f"{path} was not written, and a run that goes on from this checkpoint starts its hooks afresh: "
                        f"{type(error).__name__}: {error}. It tries again at the next checkpoint; said once"
                    )
                self.warned = True

        def on_train_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
            hooks.close()

    return TrainerHooks()


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _resume(hooks: Hooks, folder: Path) -> None:
    if (folder / FILE).is_file():
        hooks.load_state_dict(load_state(folder / FILE))
    else:
        warn(
            f"the run goes on from a checkpoint, but {folder / FILE} does not exist: the hooks start afresh; "
            "trainer_callback(hooks, resume_from=folder) names another folder"
        )
