"""QAGAN's SSIM penalty."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks.functional.structural_similarity import ssim_distance
from qa_hooks.images import Range
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty, Term

Variant = Literal["metric", "official"]


class SSIMTerm(Term):
    """mean_i (|D(x_i) - D(x~_i)| / d_Q(x_i, x~_i) - 1)^2 over random pairs."""

    name = "ssim"

    def __init__(
        self,
        weight: float,
        *,
        value_range: Range,
        one_sided: bool = False,
        variant: Variant = "metric",
        min_distance: float = 0.05,
    ) -> None:
        if variant not in ("metric", "official"):
            raise ValueError(f'variant must be "metric" or "official", got {variant!r}')
        if not min_distance > 0:
            raise ValueError(f"min_distance must be positive, got {min_distance}")
        if weight > 0.4 and not one_sided:
            warn(
                f"an SSIM penalty of weight {weight:g} > 0.4 may settle on the wrong sign of the critic; "
                "use a smaller weight or one_sided=True"
            )
        self.value_range = value_range
        self.one_sided, self.variant, self.min_distance = one_sided, variant, float(min_distance)

    def term(self, shared: CriticPass) -> Tensor:
        with torch.no_grad():
            distance = ssim_distance(shared.real, shared.fake, value_range=self.value_range, variant=self.variant)
        shared.log["ssim_distance"] = distance.mean()
        gap = (shared.real_scores - shared.fake_scores).abs()
        excess = gap / distance.to(gap.dtype).clamp_min(self.min_distance) - 1
        return (excess.relu() if self.one_sided else excess).square().mean()


class SSIMPenalty(SSIMTerm, CriticPenalty):
    """QAGAN's SSIM-Lipschitz penalty: mean_i (|D(x_i) - D(x~_i)| / d_Q(x_i, x~_i) - 1)^2 over
    random pairs (Kancharla and Channappayya 2019).

    x_i is real, x~_i generated, d_Q the SSIM distance, computed without gradient: only D is differentiated, once. Above
    a weight of about d_Q / 2 the two-sided penalty also has a minimum with the critic's sign reversed (weight 10
    diverged in 4 of 4 runs), so a weight above 0.4 warns. `one_sided=True` penalises only ratios above 1.

    Args:
        weight: 0.1 in the authors' code.
        one_sided: relu(ratio - 1)^2.
        variant: "metric" or "official", see `qa_hooks.functional.ssim_distance`.
        min_distance: d_Q is taken to be at least this, so that near-identical pairs do not explode.

    Example:
        >>> penalty = SSIMPenalty(value_range=(-1, 1))
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
        >>> penalty(critic, torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)).ndim
        0
    """

    def __init__(
        self,
        *,
        value_range: Range,
        weight: float = 0.1,
        one_sided: bool = False,
        variant: Variant = "metric",
        min_distance: float = 0.05,
        **options: Any,
    ) -> None:
        CriticPenalty.__init__(self, value_range=value_range, weight=weight, **options)
        SSIMTerm.__init__(
            self, weight, value_range=self.value_range, one_sided=one_sided, variant=variant, min_distance=min_distance
        )
