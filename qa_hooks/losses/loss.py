"""What every loss of the package is: checks, weights, reduction and terms around a loss of each image.

loss = weight * sum_i w_i l_i / N          w: optional per-sample weights
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_weight
from qa_hooks._base.frozen import KeepsFrozen
from qa_hooks._base.terms import publish
from qa_hooks.images import Range, RangeGuard, check_images, check_pair, check_range

REDUCTIONS = ("mean", "none")


class QALoss(KeepsFrozen):
    """What every loss of the package is. A subclass writes `per_image(pred, target) -> (N,)`.

    Args:
        weight: multiplies the loss. 0 gives a zero without a graph: shapes are still checked, but nothing is computed,
            so no term is logged. `ScoreMonitor` watches a score that nothing is trained on.
        reduction: "mean" or "none".
        value_range: what the numbers of pred and target mean.

    Attributes:
        name: of the term that is the loss; never a score's, which its value is not.
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
        self._log: dict[str, Tensor] = {}  # what a subclass wants to show besides, or instead
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
            TypeError, ValueError: tensors that cannot be used, such as two of different sizes, with any weight. And if
                the weight is not 0, a target that is missing or outside the range, a prediction or a result that is not
                finite (looked at on the first three calls).
        """
        check_images("pred", pred)
        if target is not None:
            check_images("target", target)
            check_pair("pred", pred, "target", target)
        unknown = set(inputs) - self.inputs
        if unknown:
            hint = ": the ground truth is its second argument, loss(pred, target)" * ("reference" in unknown)
            raise ValueError(f"{type(self).__name__} takes no {min(unknown)}{hint}")
        if self.is_off():
            return pred.new_zeros(pred.shape[0] if self.reduction == "none" else (), dtype=torch.float32)
        self._guard(data={} if target is None else {"target": target}, predictions={"pred": pred})
        losses = self.per_image(pred, target, **inputs)
        publish(self, {self.name: losses.detach().mean(), **self._log})
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

    def is_off(self) -> bool:
        """True with weight 0."""
        return self.weight == 0

    def extra_repr(self) -> str:
        return f"weight={self.weight:g}, reduction={self.reduction!r}, value_range={self.value_range}"


def needs_target(name: str, target: Tensor | None) -> Tensor:
    """The target; `ValueError` when it is missing."""
    if target is None:
        raise ValueError(f"{name} needs a target")
    return target
