"""Hugging Face Accelerate: hooks that fire on real optimizer steps, travel in `save_state` and log to the trackers.

hooks = Hooks([SampleGrid(sample, every=500)])                 # no log_dir: the accelerator's trackers are used
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
attach(accelerator, hooks, optimizer=optimizer)
for batch in loader:
    with accelerator.accumulate(model):
        ...                                                    # the script's own step; a micro-step is no step
    if accelerator.check_trigger():                            # True on all ranks when a callback has stopped
        break
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from qa_hooks._base.checks import warn
from qa_hooks.callbacks import Hooks, Monitor
from qa_hooks.integrations.training_checks import check_accelerator
from qa_hooks.writers import WandbWriter


def attach(accelerator: Any, hooks: Hooks, *, optimizer: Any = None) -> Hooks:
    """Wire hooks to an accelerator and to one of its optimizers (of a GAN: the generator's).

    - They fire after each real step of the optimizer: not on the micro-steps of `accumulate`, not on steps that a
      GradScaler skips.
    - They are the one object that is registered for checkpointing: `save_state` and `load_state` take them along. Their
      state is plain tensors and numbers, but Accelerate reads such files with `torch.load(weights_only=False)`, which
      runs whatever code a file holds: load checkpoints that you trust only. Register objects in the same order when you
      resume; a checkpoint that was made without hooks does not load with them.
    - Without `log_dir` or `writer` of their own they log to the accelerator's trackers, images too.
    - A callback that stops training does so on all ranks together: `accelerator.check_trigger()` is then true
      everywhere, and so is `hooks.should_stop`. Nothing is raised out of `optimizer.step()`; for closed trainers, which
      do not look, use `hooks.attach(trainer.opt)`.

    Samples must come from `accelerator.unwrap_model(model)` or an EMA copy: a DDP module that only one rank calls waits
    for the others. All ranks must make the same number of steps: with `even_batches=False` that is yours to see to.

    Args:
        accelerator: an `accelerate.Accelerator`.
        hooks: fresh ones.
        optimizer: prepared or plain. None: you call `hooks.step(...)` yourself under `if accelerator.sync_gradients:`,
            to hand images over; padded rows of a last batch go with `without_padding`. So too with DeepSpeed, whose
            engine makes the steps.

    Returns:
        The hooks.

    Raises:
        TypeError: not an accelerator, hooks or optimizer.
        RuntimeError: as `Hooks.attach`.
    """
    check_accelerator(accelerator)
    if not isinstance(hooks, Hooks):
        raise TypeError(f"hooks must be a qa_hooks.Hooks, got {type(hooks).__name__}")
    for callback in hooks.callbacks:
        wrapped = callback.networks() if isinstance(callback, Monitor) else []
        if any(isinstance(network, DistributedDataParallel) for network in wrapped):
            warn(
                f"{callback.state_key} samples from a model wrapped in DDP, which waits when not all ranks call it; "
                "sample from accelerator.unwrap_model(model)"
            )
    if optimizer is not None:
        hooks.attach(optimizer, on_stop=accelerator.set_trigger)
    hooks.use_writer(TrackerWriter(accelerator))
    accelerator.register_for_checkpointing(hooks)
    return hooks


def without_padding(accelerator: Any, images: Tensor) -> Tensor:
    """This rank's rows without the repeats with which Accelerate fills up the last batch of an epoch.

    Args:
        accelerator: whose prepared loader is being iterated.
        images: `(n, ...)`, one row for each sample of this rank's batch, in its order.

    Returns:
        The first rows, perhaps none; all of them on any other batch.
    """
    state = accelerator.gradient_state
    if accelerator.num_processes == 1 or not state.end_of_dataloader or state.remainder <= 0:
        return images
    own = state.remainder - accelerator.process_index * images.shape[0]
    return images[: max(0, own)]


class TrackerWriter:
    """A `Writer` over all trackers of an accelerator; they may be initialised later than it.

    Scalars go to every tracker, as Python floats (TensorBoard's drops NumPy's without a word); images to those that
    take them; histograms to TensorBoard and W&B. Points keep the optimizer step as x; with W&B see `WandbWriter`.

    Args:
        accelerator: an `accelerate.Accelerator` with `log_with=...`.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._wandb: dict[int, WandbWriter] = {}
        self._warned = False

    def scalar(self, tag: str, value: float, step: int) -> None:
        for tracker in self._trackers():
            if tracker.name == "wandb":
                self._wandb_writer(tracker).scalar(tag, value, step)
            else:
                tracker.log({tag: float(value)}, step=step)

    def image(self, tag: str, image: Tensor, step: int) -> None:
        array = np.ascontiguousarray(image.cpu().permute(1, 2, 0).numpy())
        for tracker in self._trackers():
            if tracker.name == "wandb":
                self._wandb_writer(tracker).image(tag, image, step)
            elif tracker.name == "tensorboard":
                tracker.log_images({tag: array[None]}, step=step, dataformats="NHWC")
            elif tracker.name in ("aim", "clearml"):  # which take one picture, the others a list
                tracker.log_images({tag: array}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({tag: [array]}, step=step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        for tracker in self._trackers():
            if tracker.name == "wandb":
                self._wandb_writer(tracker).histogram(tag, values, step)
            elif tracker.name == "tensorboard":
                tracker.tracker.add_histogram(tag, values.detach().float().cpu().numpy(), global_step=step)

    def close(self) -> None:
        """Do nothing: `accelerator.end_training()` closes the trackers."""

    def _trackers(self) -> list[Any]:
        trackers = list(self.accelerator.trackers)
        if not trackers and not self._warned:
            self._warned = True
            warn(
                "the accelerator has no trackers, so nothing is logged: Accelerator(log_with=...) and "
                "accelerator.init_trackers(...), or Hooks(..., log_dir=...)"
            )
        return trackers

    def _wandb_writer(self, tracker: Any) -> WandbWriter:
        if id(tracker) not in self._wandb:
            self._wandb[id(tracker)] = WandbWriter(tracker.tracker)
        return self._wandb[id(tracker)]
