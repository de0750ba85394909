"""Checks of the first step of a `RewardFinetuner`: they name what would keep a reward from training the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from qa_hooks._base.graph import graph_behind
from qa_hooks.images import check_images
from qa_hooks.integrations.diffusers.denoiser_calls import CallRecorder, DenoiserCall
from qa_hooks.integrations.peft import lora_parameters
from qa_hooks.integrations.training_checks import check_model


def check_denoiser(denoiser: nn.Module, *, needs_base: bool) -> None:
    """Raise unless the denoiser's weights can be trained and, with `needs_base`, its base weights are frozen.

    Raises:
        ValueError: the condition that does not hold, and what to do.
    """
    name = type(denoiser).__name__
    trained = {key: p for key, p in denoiser.named_parameters() if p.requires_grad}
    check_model(denoiser)
    if not trained:
        raise ValueError(f"no parameter of {name} requires a gradient: inject_lora(denoiser) puts an adapter there")
    if not needs_base:
        return
    try:
        adapter = {id(p) for p in lora_parameters(denoiser)}
    except ValueError as error:
        raise ValueError(
            f"kl_weight compares with the base model, which is {name} with its adapter off, but {error}. For a full "
            "fine-tune: kl_weight=0 and a pretrain_weight"
        ) from None
    if others := [key for key, p in trained.items() if id(p) not in adapter]:
        raise ValueError(
            f"{len(others)} parameters outside the adapter are trained, such as {others[0]!r}, so the base that "
            "kl_weight compares with would move along: freeze them with requires_grad_(False)"
        )
    for key, part in denoiser.named_modules():
        if part.training and (isinstance(part, _BatchNorm) or (isinstance(part, _DropoutNd) and part.p > 0)):
            raise ValueError(
                f"{key or name} is a {type(part).__name__} in training mode, so two calls of {name} differ by more "
                "than the adapter: call .eval() on it (LoRA trains all the same)"
            )


def check_sampled(images: Any, calls: CallRecorder) -> Tensor:
    """The images, `(N, C, H, W)` with a graph.

    Raises:
        TypeError, ValueError: who has cut the graph, or made no tensor.
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"sample must give a tensor (N, C, H, W), got {type(images).__name__}: pipelines give one with "
            'output_type="pt"'
        )
    check_images("images of sample", images)
    if not images.requires_grad:
        raise ValueError(f"the images have no graph, so no gradient can reach the denoiser: {calls.cause(images)}")
    return images


def check_reached(images: Tensor, denoiser: nn.Module) -> None:
    """Raise a `ValueError` unless the images' graph leads to a trainable parameter of the denoiser."""
    _, reached = graph_behind([images])
    if not any(id(p) in reached for p in denoiser.parameters() if p.requires_grad):
        raise ValueError(
            "the images have a graph, but it does not lead to a trainable parameter of this "
            f"{type(denoiser).__name__}: does sample use another copy of it, or detach its output?"
        )


def check_gradient(images: Tensor, gradient: Tensor, calls: Sequence[DenoiserCall], *, done: bool) -> None:
    """Follow the reward's gradient from the images to the denoiser, where a clamp or a scheduler could stop it.

    Args:
        images: with their graph, which is kept.
        gradient: of the reward at them.
        calls: of the denoiser; none are not followed.
        done: all images have reached the ceiling, where zero is right.

    Raises:
        ValueError: it is zero or not finite, and where.
    """
    if not torch.isfinite(gradient).all():
        raise ValueError("the reward's gradient at the images is not finite")
    if done:
        return
    if not gradient.any():
        raise ValueError("the reward's gradient is zero at all images, so nothing can be learned")
    if not calls:
        return
    outputs = [call.output for call in calls]
    found = torch.autograd.grad(images, outputs, gradient.to(images.dtype), retain_graph=True, allow_unused=True)
    parts = [part for part in found if part is not None]
    if not all(bool(torch.isfinite(part).all()) for part in parts):
        raise ValueError("the reward's gradient is finite at the images and not at the denoiser: decode in float32")
    if not any(bool(part.any()) for part in parts):
        raise ValueError(
            "the reward's gradient is zero at the denoiser's output: all pixels are clamped (latents of the wrong "
            'scale?), or the last step ignores the network (PNDM with leading spacing: timestep_spacing="trailing")'
        )
