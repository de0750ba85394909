"""Top-k training of GANs (Sinha et al., NeurIPS 2020), on the generator's loss.

w_i = 1 for the share of the batch that the critic finds most real, else 0
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from qa_hooks._base.checks import check_weight
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.weighting.weighter import Weighter, value_below


class TopK(Weighter):
    """Top-k training: only the images that the critic finds most real count in the generator's loss.

    The paper starts with the whole batch and goes down by 1 % an epoch: set `topk.fraction` in the loop.

    Args:
        fraction: share of the joint batch that counts; 1 switches it off. Images tied at the threshold all count.
        scorer: the critic, or anything `Weighter` takes; or pass `scores=`, which the loop has anyway.
        higher_is_real: the direction of the critic.
        normalize: to mean 1, which is the paper's mean over the images that count.

    Example:
        >>> import torch
        >>> topk = TopK(0.5)
        >>> topk(torch.zeros(4, 1, 8, 8), scores=torch.tensor([[3.0], [1.0], [2.0], [0.0]]))
        tensor([2., 0., 2., 0.])
    """

    def __init__(
        self,
        fraction: float = 0.75,
        *,
        scorer: Scorer | Callable[[Tensor], Tensor] | None = None,
        higher_is_real: bool = True,
        normalize: bool = True,
    ) -> None:
        super().__init__(scorer, higher_is_better=higher_is_real, normalize=normalize)
        self.fraction = fraction

    @property
    def fraction(self) -> float:
        """Share of the joint batch that counts; may be set between steps."""
        return self._fraction

    @fraction.setter
    def fraction(self, fraction: float) -> None:
        if not 0 < check_weight("fraction", fraction) <= 1:
            raise ValueError(f"fraction must be more than 0 and at most 1, got {fraction!r}")
        self._fraction = float(fraction)

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "fraction": self.fraction}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        self.fraction = state["fraction"]

    def rule(self, goodness: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        threshold = value_below(goodness, 1 - self.fraction)
        return threshold, lambda part: 1 - (part < threshold).float()

    def is_off(self) -> bool:
        """True with fraction 1."""
        return self.fraction == 1
