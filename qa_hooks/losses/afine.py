"""A-FINE as a loss, in a form whose gradient never makes an image less natural.

    loss = F + stop_grad(min(lambda, 10)) N          F fidelity, N naturalness of the prediction, both lower is better

The published D = F + lambda N is for reporting. Its slope in N is lambda (1 - k N): for N > 1/k lowering D makes a bad
image worse. Here lambda is a weight that is known, not a thing to optimise: it lets naturalness count where the
prediction is already more natural than the target.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qa_hooks.losses.loss import QALoss, needs_target
from qa_hooks.scorers.afine.adaptive import AdaptiveScorer


class AFINELoss(QALoss):
    """Fidelity to the target and naturalness, weighed by which of prediction and target is the more natural one.

    Args:
        scorer: `AFINE`, or a `FittedAFINE`; its `part` does not matter. The range is the scorer's.
        weight: multiplies the loss; 0 computes nothing, as in `QALoss`.
        max_lambda: lambda is cut to it, since it can reach e^20.
        reduction: "mean" or "none".

    Attributes:
        terms: "afine", the loss; "fidelity", "naturalness" and "log_lambda", means; "distance", the published D; and
            "better_than_reference", the share of predictions that score better than their own target does.

    Raises:
        TypeError: not such a scorer.

    Example:
        >>> import torch
        >>> from qa_hooks.scorers import AFINE
        >>> from qa_hooks.scorers.afine.checkpoint import random_checkpoint
        >>> loss = AFINELoss(AFINE(random_checkpoint()))
        >>> loss(torch.rand(2, 3, 32, 32, requires_grad=True), torch.rand(2, 3, 32, 32)).backward()
        >>> sorted(loss.terms)
        ['afine', 'better_than_reference', 'distance', 'fidelity', 'log_lambda', 'naturalness']
    """

    name = "afine"

    def __init__(
        self, scorer: AdaptiveScorer, *, weight: float = 1.0, max_lambda: float = 10.0, reduction: str = "mean"
    ) -> None:
        if not isinstance(scorer, AdaptiveScorer):
            raise TypeError(f"scorer must be an AFINE or a FittedAFINE, got {type(scorer).__name__}")
        super().__init__(weight=weight, reduction=reduction, value_range=scorer.value_range)
        if not 0 < max_lambda < float("inf"):
            raise ValueError(f"max_lambda must be a positive number, got {max_lambda!r}")
        self.scorer, self.max_lambda = self.keep(scorer), float(max_lambda)

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        terms = self.scorer.terms(pred, needs_target("AFINELoss", target).detach())
        shown = ("fidelity", "naturalness", "log_lambda", "distance", "better_than_reference")
        self._log = {name: getattr(terms, name).detach().mean() for name in shown}
        return terms.loss(self.max_lambda)

    def extra_repr(self) -> str:
        return f"{self.scorer.name}, {super().extra_repr()}, max_lambda={self.max_lambda:g}"
