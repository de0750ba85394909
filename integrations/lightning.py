"""Lightning: hooks as a Callback of a `Trainer`.

    hooks = Hooks([SampleGrid(sample, every=500)], log_dir="runs/a")
    trainer = Trainer(callbacks=[lightning_callback(hooks)])

A callback cannot change the loss: a quality loss or a critic penalty is a line of your own `training_step`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from qa_hooks._base.checks import check_count
from qa_hooks.callbacks import Hooks

PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def lightning_callback(hooks: Hooks, *, optimizer: int = 0) -> Any:
    """A Lightning `Callback` that delegates to hooks; it watches and cannot change the loss.

    The hooks fire after each step of one optimizer (not on batches that only accumulate, not on steps that a GradScaler
    skips), travel in Lightning's checkpoints, and end with `fit`. A callback that stops training sets
    `trainer.should_stop` on all ranks. Images reach the callbacks through `sample=` or `hooks.capture(...)`.

    Args:
        hooks: fresh ones, for one `fit`.
        optimizer: which of the module's optimizers, as `configure_optimizers` orders them; of a GAN the generator's.

    Returns:
        A `lightning.pytorch.Callback` (or `pytorch_lightning`'s, when only that has been imported).

    Raises:
        TypeError: no hooks.
        ImportError: Lightning is not installed.
    """
    if not isinstance(hooks, Hooks):
        raise TypeError(f"hooks must be a qa_hooks.Hooks, got {type(hooks).__name__}")
    index = check_count("optimizer", optimizer, least=0)
    base: Any = _lightning().Callback

    class LightningHooks(base):  # type: ignore[misc]  # known only where Lightning is installed
        """Delegates to `Hooks`: steps of an optimizer, state, end. It cannot change the loss."""

        state_key = "qa_hooks"

        def __init__(self) -> None:
            self.hooks = hooks

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if index >= len(trainer.optimizers):
                raise ValueError(f"optimizer={index}, but the module has {len(trainer.optimizers)} optimizer(s)")
            hooks.attach(trainer.optimizers[index], on_stop=lambda: setattr(trainer, "should_stop", True))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            hooks.close()

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            hooks.__exit__(type(exception), exception, None)

        def state_dict(self) -> dict[str, Any]:
            return hooks.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            hooks.load_state_dict(state_dict)

    return LightningHooks()


def _lightning() -> Any:
    """The package that the user works with: the two have classes of their own."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError("the Lightning callback needs Lightning: pip install 'qa-hooks[lightning]'")
