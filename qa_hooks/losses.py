"""Losses to add to a training loop: full-reference ones, and any scorer turned into something to minimise.

    loss = weight * sum_i w_i l_i / N          w: optional per-sample weights

A loss always returns something to minimise; the sign of a score is applied in `ScoreLoss` and nowhere else.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from qa_hooks.checks import check_weight
from qa_hooks.functional.ms_ssim import ms_ssim
from qa_hooks.functional.ssim import ssim, ssim_distance
from qa_hooks.images import Range, RangeGuard, check_images, check_pair, check_range
from qa_hooks.isolation import KeepsFrozen
from qa_hooks.scorers.scorer import Scorer

REDUCTIONS = ("mean", "none")


class QALoss(KeepsFrozen):
    """What every loss of the package is. A subclass writes `per_image(pred, target) -> (N,)`.

    Args:
        weight: multiplies the loss; 0 gives a graph-free zero and computes nothing.
        reduction: "mean" or "none".
        value_range: what the numbers of pred and target mean.

    Attributes:
        terms: the last terms, detached and unweighted; reading them later costs no synchronisation now.
    """

    name = "loss"
    inputs: frozenset[str] = frozenset()

    def __init__(self, *, weight: float = 1.0, reduction: str = "mean", value_range: Range = (0.0, 1.0)) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")
        self.weight, self.reduction = check_weight("weight", weight), reduction
        self.value_range = check_range(value_range)
        self.terms: dict[str, Tensor] = {}
        self._guard = RangeGuard(self.value_range)
        self._calls = 0

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        """What a subclass writes: the unweighted loss of each image, `(N,)`."""
        raise NotImplementedError(f"{type(self).__name__} must define per_image(pred, target)")

    def forward(
        self, pred: Tensor, target: Tensor | None = None, *, sample_weight: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        """The loss.

        Args:
            pred: `(N, C, H, W)`, floating point, in `value_range`; an overshoot keeps its gradient.
            target: like `pred`; for losses that compare.
            sample_weight: `(N,)`; the sum of weighted losses is divided by N, not by the sum of the weights.
            inputs: further inputs of a scorer, such as `prompt`.

        Returns:
            A scalar, or `(N,)` with `reduction="none"`; float32.

        Raises:
            TypeError, ValueError: tensors that cannot be used, a target that is missing or outside the range, a
                prediction or a result that is not finite (looked at on the first three calls).
        """
        check_images("pred", pred)
        if target is not None:
            check_images("target", target)
            check_pair("pred", pred, "target", target)
        unknown = set(inputs) - self.inputs
        if unknown:
            raise ValueError(f"{type(self).__name__} takes no {sorted(unknown)[0]}")
        if self.weight == 0:
            return pred.new_zeros(pred.shape[0] if self.reduction == "none" else (), dtype=torch.float32)
        self._guard(data={} if target is None else {"target": target}, predictions={"pred": pred})
        losses = self.per_image(pred, target, **inputs)
        self.terms = {self.name: losses.detach().mean()}
        if sample_weight is not None:
            if not isinstance(sample_weight, Tensor):
                raise TypeError(f"sample_weight must be a tensor ({len(losses)},), got {type(sample_weight).__name__}")
            if sample_weight.shape != losses.shape:
                raise ValueError(f"sample_weight must be {tuple(losses.shape)}, got {tuple(sample_weight.shape)}")
            losses = losses * sample_weight.to(losses)
        if self._calls < RangeGuard.CALLS:
            self._calls += 1
            if not bool(torch.isfinite(self.terms[self.name])):
                raise ValueError(f"the term {self.name!r} of {type(self).__name__} is {float(self.terms[self.name])}")
        return self.weight * (losses if self.reduction == "none" else losses.mean())

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, reduction={self.reduction!r}, value_range={self.value_range}"


def _needs_target(name: str, target: Tensor | None) -> Tensor:
    if target is None:
        raise ValueError(f"{name} needs a target")
    return target


class SSIMLoss(QALoss):
    """1 - SSIM (Wang et al. 2004); in [0, 2]. `second_order=True` allows a double backward, at a price.

    Example:
        >>> pred = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> SSIMLoss()(pred, torch.rand(2, 3, 32, 32)).backward()
    """

    name = "ssim"

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
            _needs_target("SSIMLoss", target),
            value_range=self.value_range,
            window_size=self.window_size,
            sigma=self.sigma,
            second_order=self.second_order,
        )


class MSSSIMLoss(QALoss):
    """1 - MS-SSIM (Wang, Simoncelli, Bovik 2003), with as many of the five scales as fit.

    Example:
        >>> pred = torch.rand(1, 3, 176, 176, requires_grad=True)
        >>> MSSSIMLoss()(pred, torch.rand(1, 3, 176, 176)).backward()
    """

    name = "ms_ssim"

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        return 1 - ms_ssim(pred, _needs_target("MSSSIMLoss", target), value_range=self.value_range)


class SSIMDistanceLoss(QALoss):
    """QAGAN's SSIM distance d_Q between pairs, for a generator that has a target; in [0, 2].

    Example:
        >>> pred = torch.rand(2, 3, 32, 32, requires_grad=True)
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
        target = _needs_target("SSIMDistanceLoss", target)
        return ssim_distance(pred, target, value_range=self.value_range, variant=self.variant)


class ScoreLoss(QALoss):
    """Any differentiable scorer as a loss: the raw score where lower is better, its negative where higher is.

    The scorer is frozen and kept aside: it follows `.to(device)`, but is in no optimizer and no checkpoint of yours,
    and `.train()` does not reach it. The range is the scorer's.

    Args:
        scorer: a `Scorer` with `differentiable`; one that needs a reference is given the target.
        weight, reduction: as in `QALoss`.

    Raises:
        TypeError: not a scorer.
        ValueError: a scorer without a usable gradient (it can still be monitored).

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> bright = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True)
        >>> ScoreLoss(bright)(torch.full((2, 3, 8, 8), 0.25))
        tensor(-0.2500)
    """

    def __init__(self, scorer: Scorer, *, weight: float = 1.0, reduction: str = "mean") -> None:
        if not isinstance(scorer, Scorer):
            raise TypeError(
                f"scorer must be a qa_hooks Scorer, got {type(scorer).__name__}; "
                "wrap a function as FunctionScorer(fn, name=..., higher_is_better=...)"
            )
        if not scorer.differentiable:
            raise ValueError(
                f"{scorer.name} has no usable gradient, so it cannot be a loss; monitor it with ScoreMonitor"
            )
        super().__init__(weight=weight, reduction=reduction, value_range=scorer.value_range)
        self.name, self.inputs = scorer.name, scorer.inputs - {"reference"}
        self.keep(scorer)

    @property
    def scorer(self) -> Scorer:
        """The frozen scorer."""
        scorer = self._frozen[0]
        if not isinstance(scorer, Scorer):
            raise TypeError("the frozen module is not a scorer")
        return scorer

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        if "reference" in self.scorer.inputs:
            inputs["reference"] = _needs_target(f"ScoreLoss({self.name})", target)
        elif target is not None:
            raise ValueError(f"ScoreLoss({self.name}) takes no target: {self.name} scores images alone")
        losses = -self.scorer.goodness(pred, **inputs)
        if self._calls == 0 and pred.requires_grad and torch.is_grad_enabled() and not losses.requires_grad:
            raise ValueError(f"no gradient comes back from {self.name}; is its function under no_grad or detached?")
        return losses
