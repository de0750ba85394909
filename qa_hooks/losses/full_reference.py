"""Full-reference losses: 1 - SSIM, 1 - MS-SSIM, and QAGAN's SSIM distance.

They have a plain weight. `ScoreLoss` makes a loss of the same scores with a weight in proportion to another term's
gradient, in any value range:

    ssim = ScoreLoss(create_scorer("ssim", (0, 255)), balance=0.3)
    l1 = F.l1_loss(pred, target)
    loss = l1 + ssim(pred, target, fidelity=l1)
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from qa_hooks.functional.multiscale_similarity import ms_ssim
from qa_hooks.functional.structural_similarity import ssim, ssim_distance
from qa_hooks.images import Range
from qa_hooks.losses.loss import QALoss, needs_target


class SSIMLoss(QALoss):
    """1 - SSIM (Wang et al. 2004); in [0, 2]. `second_order=True` allows a double backward, at a price.

    `ScoreLoss(create_scorer("ssim"), balance=0.3)` has the same gradient, times a weight that follows the gradient of
    another term (`fidelity=l1` in the call). `balance` is an option of `ScoreLoss` alone.

    Example:
        >>> import torch
        >>> pred = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> SSIMLoss()(pred, torch.rand(2, 3, 32, 32)).backward()
    """

    name = "ssim_loss"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        window_size: int = 11,
        sigma: float = 1.5,
        second_order: bool = False,
        reduction: str = "mean",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(weight=weight, reduction=reduction, value_range=value_range)
        self.window_size, self.sigma, self.second_order = window_size, sigma, second_order

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        return 1 - ssim(
            pred,
            needs_target("SSIMLoss", target),
            value_range=self.value_range,
            window_size=self.window_size,
            sigma=self.sigma,
            second_order=self.second_order,
        )


class MSSSIMLoss(QALoss):
    """1 - MS-SSIM (Wang, Simoncelli, Bovik 2003), with as many of the five scales as fit.

    `ScoreLoss(create_scorer("ms_ssim"), balance=0.3)` is the same with a balanced weight, as in `SSIMLoss`.

    Example:
        >>> import torch
        >>> pred = torch.rand(1, 3, 176, 176, requires_grad=True)
        >>> MSSSIMLoss()(pred, torch.rand(1, 3, 176, 176)).backward()
    """

    name = "ms_ssim_loss"

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        return 1 - ms_ssim(pred, needs_target("MSSSIMLoss", target), value_range=self.value_range)


class SSIMDistanceLoss(QALoss):
    """QAGAN's SSIM distance d_Q between pairs, for a generator that has a target; in [0, 2].

    Example:
        >>> import torch
        >>> pred = torch.rand(2, 3, 32, 32).mul(2).sub(1).requires_grad_()
        >>> SSIMDistanceLoss(value_range=(-1, 1))(pred, torch.zeros(2, 3, 32, 32)).backward()
    """

    name = "ssim_distance"

    def __init__(
        self,
        *,
        weight: float = 1.0,
        variant: Literal["metric", "official"] = "metric",
        reduction: str = "mean",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(weight=weight, reduction=reduction, value_range=value_range)
        if variant not in ("metric", "official"):
            raise ValueError(f'variant must be "metric" or "official", got {variant!r}')
        self.variant = variant

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        target = needs_target("SSIMDistanceLoss", target)
        return ssim_distance(pred, target, value_range=self.value_range, variant=self.variant)
