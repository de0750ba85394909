"""Which rows of a denoiser's call are unconditional: they get no quality, or the negative one.

A pipeline with classifier-free guidance calls its denoiser with twice the images. Which half is which is read off the
pipeline that is running; a loop of one's own says `guidance=True` or `False`.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from qa_hooks.integrations.diffusers.quality.dial import Setting

THREE = "do_perturbed_attention_guidance"


def quality_rows(setting: Setting, call: dict[str, Any], null_label: int | None) -> tuple[Tensor, Tensor]:
    """q of each row of a denoiser's call `(B, D)`, and which rows are unconditional `(B,)`.

    Args:
        setting: of the dial.
        call: the arguments by name.
        null_label: the class that stands for none.

    Raises:
        ValueError: another number of rows than q was given for, or guidance whose rows are not known.
    """
    sample = call.get("sample", call.get("hidden_states"))
    if not isinstance(sample, Tensor):
        raise ValueError("the denoiser was called without a sample")
    count, q = len(sample), setting.q
    if setting.once:
        if len(q) != count:
            raise ValueError(f"condition() was given {len(q)} rows, and the denoiser was called with {count}")
        return q, torch.zeros(count, dtype=torch.bool, device="cpu")
    dropped = unconditional_rows(call, count, len(q), setting.guidance, null_label).to(q.device)
    times = 2 if bool(dropped.any()) else 1
    if len(q) > 1 and len(q) * times != count:
        raise ValueError(f"quality() was given {len(q)} rows, and the denoiser was called with {count}")
    rows = q.expand(count, -1) if len(q) == 1 else q.repeat(times, 1)
    instead = torch.full_like(rows, torch.nan) if setting.negative is None else -setting.negative * rows
    return torch.where(dropped[:, None], instead, rows), dropped


def unconditional_rows(
    call: dict[str, Any],
    rows: int,
    settings: int,
    guidance: bool | None,
    null_label: int | None,
    how: str = "quality(q, guidance=True)",
) -> Tensor:
    """`(rows,)` bool.

    Args:
        call: the arguments of the denoiser's call by name.
        rows: its batch size.
        settings: for how many images q was given; 1 for all alike.
        guidance: what the user says: True, the first half is unconditional; None, nothing.
        null_label: the class that stands for none.
        how: what the user writes to say it.

    Raises:
        ValueError: guidance in a form in which the rows are not known.
    """
    labels = call.get("class_labels")
    if null_label is not None and isinstance(labels, Tensor):
        return (labels == null_label).cpu()
    if guidance is None:
        guidance = _from_pipeline(rows, call)
    if guidance is None and settings > 1:
        guidance = rows == 2 * settings
    if guidance is None:
        sample = call.get("sample", call.get("hidden_states"))
        half = rows // 2
        if isinstance(sample, Tensor) and rows == 2 * half and torch.equal(sample[:half], sample[half:]):
            raise ValueError(
                "both halves of this batch are the same, as in classifier-free guidance: say which it is, "
                f"{how} with the unconditional half first, or guidance=False"
            )
        guidance = False
    if guidance and rows % 2:
        raise ValueError(f"guidance needs an even number of rows, unconditional first, got {rows}")
    unconditional = torch.zeros(rows, dtype=torch.bool, device="cpu")
    unconditional[: rows // 2] = guidance
    return unconditional


def running_pipeline() -> tuple[Any, dict[str, Any]] | None:
    """The Diffusers pipeline whose call we are in, and the variables of that call; None outside of one."""
    pipelines: Any = sys.modules.get("diffusers.pipelines.pipeline_utils")
    frame: Any = None if pipelines is None else sys._getframe(1)  # before it is imported there can be none
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, pipelines.DiffusionPipeline):
            return owner, frame.f_locals
        frame = frame.f_back
    return None


def _from_pipeline(rows: int, call: dict[str, Any]) -> bool | None:
    """Whether the pipeline that is running guides; None where none is."""
    running = running_pipeline()
    if running is None:
        return None
    owner, local = running
    name, latents = type(owner).__name__, local.get("latents")
    times = rows / len(latents) if isinstance(latents, Tensor) and latents.ndim > 2 else None
    if getattr(owner, THREE, False) or times not in (None, 1, 2):
        raise ValueError(f"{name} puts more than two kinds of rows into one call: quality is not supported there")
    if local.get("do_true_cfg"):
        raise ValueError(
            f"{name} calls its network once for the prompt and once for the negative one (true_cfg_scale), and the two "
            "cannot be told apart: use true_cfg_scale=1"
        )
    guided = local.get("do_classifier_free_guidance", getattr(owner, "do_classifier_free_guidance", None))
    if guided and times == 1:
        if call.get("skip_layers") is None:
            raise ValueError(
                f"{name} calls its network once with the prompt and once without, and the two cannot be told apart: "
                "leave its guidance out, or write guidance=False, which treats both alike"
            )
        guided = False  # the third call of skip-layer guidance is one with the prompt
    return bool(guided) if guided is not None else times == 2
