"""Any function of images as a scorer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.reach import modules_of
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

INPUTS = frozenset({"reference", "prompt"})


class FunctionScorer(Scorer):
    """Any callable as a scorer: a metric of yours, a classifier's confidence, another library's function.

    Args:
        function: `(N, C, H, W)` float32 images in [0, 1] (and `reference=`, `prompt=` where `inputs` name them) ->
        `(N,)`.
            A module is put into eval mode and its parameters need no gradient from then on; networks that a plain
            function calls are left as they are, so pass the module itself where you can.
        name: the tag.
        higher_is_better: the direction of what it returns.
        score_range, inputs, differentiable, value_range: as in `Scorer`.

    Example:
        >>> contrast = FunctionScorer(lambda images: images.std((1, 2, 3)), name="contrast", higher_is_better=True)
        >>> contrast(torch.zeros(2, 1, 4, 4))
        tensor([0., 0.])
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        *,
        name: str,
        higher_is_better: bool,
        score_range: Range | None = None,
        inputs: Iterable[str] = (),
        differentiable: bool = True,
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(value_range=value_range)
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self.inputs = frozenset(inputs)
        if not self.inputs <= INPUTS:
            raise ValueError(f"inputs may name {sorted(INPUTS)}, got {sorted(self.inputs)}")
        self.function = self.keep(function)
        trained = [m for m in modules_of(function) if any(p.requires_grad for p in m.parameters())]
        if differentiable and trained:
            warn(
                f"the function of {name!r} calls a {type(trained[0]).__name__} whose parameters need gradients: as a "
                "loss it would give them some; pass the module itself, or freeze it with requires_grad_(False)"
            )
        self.name, self.higher_is_better = name, higher_is_better
        self.score_range, self.differentiable = score_range, differentiable

    @property
    def device(self) -> torch.device | None:
        """Where the networks are that the function is or calls, as far as Python shows them."""
        tensors = (tensor for m in modules_of(self.function) for tensor in chain(m.parameters(), m.buffers()))
        return super().device or next((tensor.device for tensor in tensors), None)

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        scores = self.function(images, **inputs)
        if not isinstance(scores, Tensor):
            raise TypeError(f"{self.name} must return a tensor (N,), got {type(scores).__name__}")
        return scores

    def save(self, path: str | Path) -> None:
        """Refused: code cannot be saved safely."""
        raise TypeError(f"{self.name} wraps a Python function, which cannot be saved; only qa_hooks' own scorers can")
