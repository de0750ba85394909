"""Which evaluations of the network make up one step of a scheduler: a truncation must not cut a step in two.

Most schedulers evaluate once a step. Heun's and KDPM2's make a second evaluation in each step but the last (2T - 1),
PNDM's first step has two (T + 1), and its Runge-Kutta steps have four.
"""

from __future__ import annotations

from typing import Any


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
