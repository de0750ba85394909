"""Accelerate checkpoints that hold the adapter instead of the whole model.

save_adapter_only(accelerator, unet)
accelerator.save_state("step-100")            # optimizer, hooks and random states as ever; of `unet` the LoRA alone
pipe.load_lora_weights("step-100")            # plain Diffusers reads it, too
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from qa_hooks._base.adapters import own_adapter, unwrapped
from qa_hooks.integrations.peft.files import load_lora, save_lora
from qa_hooks.integrations.training_checks import check_accelerator, check_plain_training


class AdapterCheckpoint:
    """The two hooks of `save_adapter_only`; `remove()` takes them away."""

    def __init__(self, accelerator: Any, model: nn.Module, folder: str, adapter: str) -> None:
        self.accelerator, self.model, self.folder, self.adapter = accelerator, model, folder, adapter
        self._handles = [
            accelerator.register_save_state_pre_hook(self._save),
            accelerator.register_load_state_pre_hook(self._load),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _own(self, models: list[Any]) -> list[int]:
        network = unwrapped(self.model)
        return [index for index, model in enumerate(models) if unwrapped(model) is network]

    def _save(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        for index in reversed(self._own(models[: len(weights)])):
            weights.pop(index)  # what is left in `weights` Accelerate writes itself
        if self.accelerator.is_main_process:
            save_lora(self.model, Path(output_dir) / self.folder, adapter=self.adapter)

    def _load(self, models: list[Any], input_dir: str) -> None:
        for index in reversed(self._own(models)):
            models.pop(index)
        load_lora(self.model, Path(input_dir) / self.folder, adapter=self.adapter)


def save_adapter_only(
    accelerator: Any, model: nn.Module, *, folder: str = "", adapter: str | None = None
) -> AdapterCheckpoint:
    """Let `save_state` and `load_state` store and restore the LoRA of `model` and nothing else of it.

    Weights are set in place, so the optimizer goes on with its parameters; a resumed run builds the same pipeline and
    injects the same adapter first. Register it for both, the run that saves and the one that loads; other prepared
    models are saved as ever.

    Args:
        accelerator: an `accelerate.Accelerator`.
        model: with LoRA; prepared or not, since a pipeline's denoiser need not be.
        folder: below the checkpoint's; needed when two models have an adapter (`folder="transformer_2"`).
        adapter: its name; None for the only one, or the only one that is trained. Others are not in the checkpoint,
            and the run that resumes puts them in first.

    Returns:
        An object whose `remove()` ends it.

    Raises:
        TypeError: no accelerator or no module.
        ValueError: no LoRA in the model, FSDP or DeepSpeed, or a folder that another model's adapter goes to. From
            `load_state`: a checkpoint without an adapter, or with one that does not fit.
    """
    check_accelerator(accelerator)
    check_plain_training(accelerator)
    network = unwrapped(model)
    adapter = own_adapter(network, adapter)
    for hook in accelerator._save_model_state_pre_hook.values():
        other = getattr(hook, "__self__", None)
        if isinstance(other, AdapterCheckpoint) and other.folder == folder and unwrapped(other.model) is not network:
            raise ValueError(
                f"the adapter of another {type(unwrapped(other.model)).__name__} is saved into folder={folder!r} "
                'already: give this one a folder of its own, such as folder="transformer_2"'
            )
    return AdapterCheckpoint(accelerator, model, folder, adapter)
