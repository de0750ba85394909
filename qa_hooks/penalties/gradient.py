"""The penalty on the norm of the critic's gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qa_hooks._base.checks import check_weight
from qa_hooks.functional.input_gradients import gradient_norm_penalty
from qa_hooks.images import Range
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty, Term


class GradientTerm(Term):
    """mean (||grad D||_2 - target)^2 at interpolated, real or fake images."""

    name = "gradient_penalty"

    def __init__(self, *, at: str = "interpolated", target: float = 1.0) -> None:
        if at not in ("interpolated", "real", "fake"):
            raise ValueError(f'at must be "interpolated", "real" or "fake", got {at!r}')
        self.at, self.target = at, check_weight("target", target)

    def term(self, shared: CriticPass) -> Tensor:
        return gradient_norm_penalty(shared.gradient(self.at), target=self.target)


class GradientPenalty(GradientTerm, CriticPenalty):
    """WGAN-GP's gradient penalty (Gulrajani et al. 2017, eq. 3); R1 and R2 with `at="real"`/`"fake"` and `target=0`.

    Example:
        >>> import torch
        >>> penalty = GradientPenalty(value_range=(-1, 1))
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
        >>> penalty(critic, torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 8)).backward()
    """

    def __init__(
        self, *, value_range: Range, weight: float = 10.0, at: str = "interpolated", target: float = 1.0, **options: Any
    ) -> None:
        CriticPenalty.__init__(self, value_range=value_range, weight=weight, **options)
        GradientTerm.__init__(self, at=at, target=target)
