"""Keeps the naturalness model of a NIQE penalty up with its critic."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor

from qa_hooks._base.checks import check_call
from qa_hooks._base.processes import gather_rows
from qa_hooks.callbacks.callback import Context, Monitor
from qa_hooks.penalties.gradient_model import gradient_features, gradient_model
from qa_hooks.penalties.niqe import NIQETerm
from qa_hooks.penalties.penalty import CriticPenalty


class RefreshGradientModel(Monitor):
    """Refits the gradient model of a `NIQEPenalty` on real images every so many steps.

    The paper and its code are silent about which snapshot of the critic the model is fitted on. When a refit fails
    (too few maps, a singular covariance) the old model stays and this callback switches itself off with a warning.

    Args:
        penalty: a `NIQEPenalty`, or a `QAGANPenalty` that has one.
        critic: as given to the penalty.
        batches: real images in the critic's range; re-iterable (a loader, a list), or a function that gives one.
        every: steps between two fits.
        max_maps: how many maps to use.
        name: for its key in a saved state, where there are several.

    Example:
        >>> import torch
        >>> from qa_hooks.penalties import NIQEPenalty
        >>> penalty = NIQEPenalty(value_range=(-1, 1), warmup=100)
        >>> refresh = RefreshGradientModel(penalty, torch.nn.Identity(), [torch.zeros(64, 1, 16, 16)], every=500)
    """

    def __init__(
        self,
        penalty: CriticPenalty,
        critic: Callable[[Tensor], Any],
        batches: Iterable[Tensor] | Callable[[], Iterable[Tensor]],
        *,
        every: int,
        max_maps: int = 4096,
        name: str = "niqe",
    ) -> None:
        terms = [term for part in penalty.modules() for term in (part, *getattr(part, "parts", {}).values())]
        niqe = next((term for term in terms if isinstance(term, NIQETerm)), None)
        if niqe is None:
            raise ValueError(f"penalty has no NIQE term: {type(penalty).__name__}")
        if isinstance(batches, Iterator):
            raise ValueError(
                "batches can be read only once; give a list, a loader, or a function that gives an iterable"
            )
        check_call("critic", critic, "critic(images)", None)
        if callable(batches):
            check_call("batches", batches, "batches()")
        super().__init__(every=every)
        self.penalty, self.term, self.critic = penalty, niqe, critic
        self.batches, self.max_maps = batches, max_maps
        self.name = name

    def due(self, step: int) -> bool:
        return step % self.every == 0  # a critic of one step has nothing to model

    def functions(self) -> list[Callable[..., Any]]:
        return [self.critic]

    def local(self, ctx: Context) -> Tensor:
        batches = self.batches() if callable(self.batches) else self.batches
        share = -(-self.max_maps // ctx.world_size)
        return gradient_features(
            self.critic, batches, config=self.term.config, max_maps=share, output_fn=self.penalty.output_fn
        )

    def reduce(self, ctx: Context, part: Tensor) -> None:
        self.term.model = gradient_model(gather_rows(part), self.term.config)
