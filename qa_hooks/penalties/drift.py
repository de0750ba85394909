"""The drift penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qa_hooks.images import Range
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty, Term


class DriftTerm(Term):
    """mean D(real)^2."""

    name = "drift"

    def term(self, shared: CriticPass) -> Tensor:
        return shared.real_scores.square().mean()


class DriftPenalty(DriftTerm, CriticPenalty):
    """mean D(real)^2, which keeps an unbounded critic near zero (Karras et al. 2018; 1e-5 in QAGAN's code).

    Example:
        >>> import torch
        >>> critic = lambda x: x.sum((1, 2, 3))
        >>> images = torch.ones(2, 1, 1, 2)
        >>> DriftPenalty(value_range=(-1, 1), weight=1.0)(critic, images, images)
        tensor(4.)
    """

    def __init__(self, *, value_range: Range, weight: float = 1e-5, **options: Any) -> None:
        super().__init__(value_range=value_range, weight=weight, **options)
