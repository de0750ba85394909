"""Which evaluations of the network make up one step of a scheduler: a truncation must not cut a step in two.

Most schedulers evaluate once a step. Heun's and KDPM2's make a second evaluation in each step but the last (2T - 1),
PNDM's first step has two (T + 1), and its Runge-Kutta steps have four.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qa_hooks.integrations.diffusers.gradient_checks import carries_gradient


def step_sizes(scheduler: Any, evaluations: int) -> list[int]:
    """How many evaluations, that is calls of `scheduler.step`, each of the coming steps has; they add up.

    Args:
        scheduler: with its timesteps laid out, at the beginning of a sampling.
        evaluations: how many there will be.

    Example:
        >>> from diffusers import HeunDiscreteScheduler
        >>> step_sizes(HeunDiscreteScheduler(), 5)
        [2, 2, 1]
    """
    if getattr(scheduler, "order", 1) == 2:
        return [2] * (evaluations // 2) + [1] * (evaluations % 2)
    if hasattr(scheduler, "plms_timesteps"):  # PNDM
        if scheduler.config.get("skip_prk_steps"):
            first = [2] if evaluations > 1 else []
        else:
            first = [4] * (min(evaluations, len(scheduler.prk_timesteps)) // 4)
        return first + [1] * (evaluations - sum(first))
    return [1] * evaluations


def evaluations_of_last(scheduler: Any, evaluations: int, k: int) -> int:
    """How many of the evaluations belong to the last k steps.

    Raises:
        ValueError: there are fewer steps.
    """
    sizes = step_sizes(scheduler, evaluations)
    if k > len(sizes):
        raise ValueError(f"k={k}, but one sampling has {len(sizes)} steps")
    return sum(sizes[len(sizes) - k :])


def detach_history(scheduler: Any) -> None:
    """Multistep schedulers keep past outputs, and with them the graph, so that they could no longer be copied."""
    own = vars(scheduler) if scheduler is not None else {}
    for name, value in own.items():
        if isinstance(value, Tensor) and value.requires_grad:
            own[name] = value.detach()
        elif isinstance(value, list) and carries_gradient(value):
            own[name] = [part.detach() if isinstance(part, Tensor) else part for part in value]


def evaluations_planned(pipe: Any, cut: int | None) -> int:
    """How often the sampling that has begun will call `scheduler.step`: once for each of its timesteps."""
    count = getattr(pipe, "num_timesteps", None)  # set by most pipelines, after any cut by strength or denoising_end
    if count is None:
        count = cut
    if count is None:
        timesteps = getattr(pipe.scheduler, "timesteps", None)
        if timesteps is None:
            raise ValueError(f"{type(pipe).__name__} does not tell its number of timesteps: give the denoiser alone")
        count = len(timesteps) - (getattr(pipe.scheduler, "begin_index", None) or 0)
    return int(count)
