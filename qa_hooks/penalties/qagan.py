"""QAGAN's regularised critic objective in one module (Kancharla and Channappayya 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_weight
from qa_hooks.functional.input_gradients import OutputFn
from qa_hooks.images import Range
from qa_hooks.penalties.drift import DriftPenalty
from qa_hooks.penalties.gradient import GradientPenalty
from qa_hooks.penalties.niqe import NIQEPenalty
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty
from qa_hooks.penalties.ssim import SSIMPenalty
from qa_hooks.scorers.niqe.scorer import NaturalnessModel

QUALITIES = {"ssim": ("ssim",), "niqe": ("niqe",), "both": ("ssim", "niqe"), "none": ()}


class QAGANPenalty(CriticPenalty):
    """Gradient penalty + quality penalty + drift: replaces a WGAN loop's gradient penalty. Never the adversarial term.

    One interpolated gradient serves the gradient penalty and the NIQE term, and the critic is called on real and fake
    images only when a term needs their scores and the loop did not supply them.

    Args:
        quality: "ssim", "niqe", "both" or "none".
        gp_weight: 1.0 in QAGAN's code (WGAN-GP's own is 10).
        quality_weight: one number, or `{"ssim": .., "niqe": ..}`; 0.1 in QAGAN's code.
        drift_weight: 1e-5 in QAGAN's code.
        model, warmup, niqe_mode, hinge: of the NIQE term, see `NIQEPenalty`.
        min_distance, one_sided: of the SSIM term, see `SSIMPenalty`.
        value_range, interval, output_fn, seed: see `CriticPenalty`.

    Raises:
        ValueError: "niqe" without a model or a warm-up; the message names the ways to get one.

    Example:
        >>> penalty = QAGANPenalty("ssim", value_range=(-1, 1))
        >>> critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        >>> real, fake = torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8)
        >>> d_loss = critic(fake).mean() - critic(real).mean() + penalty(critic, real, fake)
        >>> sorted(penalty.terms)
        ['drift', 'gradient_penalty', 'ssim', 'ssim_distance']
    """

    name = "qagan"

    def __init__(
        self,
        quality: str,
        *,
        value_range: Range,
        gp_weight: float = 1.0,
        quality_weight: float | Mapping[str, float] = 0.1,
        drift_weight: float = 1e-5,
        model: NaturalnessModel | str | None = None,
        warmup: int = 0,
        niqe_mode: str = "mvg",
        hinge: bool = False,
        min_distance: float = 0.05,
        one_sided: bool = False,
        interval: int = 1,
        output_fn: OutputFn | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(value_range=value_range, weight=1.0, interval=interval, output_fn=output_fn, seed=seed)
        if not isinstance(quality, str) or quality not in QUALITIES:
            raise ValueError(f"quality must be one of {sorted(QUALITIES)}, got {quality!r}")
        wanted = QUALITIES[quality]
        weights = dict(quality_weight) if isinstance(quality_weight, Mapping) else dict.fromkeys(wanted, quality_weight)
        if set(weights) != set(wanted):
            raise ValueError(
                f"quality_weight must name {sorted(wanted)} for quality={quality!r}, got {sorted(weights)}"
            )
        parts: list[CriticPenalty] = [
            GradientPenalty(value_range=value_range, weight=check_weight("gp_weight", gp_weight))
        ]
        if "ssim" in wanted:
            ssim_weight = check_weight("quality_weight", weights["ssim"])
            parts.append(
                SSIMPenalty(value_range=value_range, weight=ssim_weight, one_sided=one_sided, min_distance=min_distance)
            )
        if "niqe" in wanted:
            niqe_weight = check_weight("quality_weight", weights["niqe"])
            parts.append(
                NIQEPenalty(
                    value_range=value_range,
                    weight=niqe_weight,
                    model=model,
                    warmup=warmup,
                    mode=niqe_mode,
                    hinge=hinge,
                    output_fn=output_fn,
                )
            )
        parts.append(DriftPenalty(value_range=value_range, weight=check_weight("drift_weight", drift_weight)))
        self.parts = nn.ModuleDict({part.name: part for part in parts})

    def is_off(self) -> bool:
        return all(part.is_off() for part in self._penalties())

    def total(self, shared: CriticPass) -> Tensor:
        total: Tensor | None = None
        self.terms = {}
        for part in self._penalties():
            if not part.is_off():
                value = part.term(shared)
                self.terms[part.name] = value.detach()
                total = part.weight * value if total is None else torch.add(total, value, alpha=part.weight)
        self.terms.update(shared.log)
        if total is None:
            raise ValueError("every part is switched off")
        return total

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "parts": {part.name: part.run_state() for part in self._penalties()}}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        saved = set(state.get("parts", {}))
        if saved != set(self.parts):
            raise ValueError(f"this is the state of a penalty with the terms {sorted(saved)}, not {sorted(self.parts)}")
        for part in self._penalties():
            part.load_run_state(state["parts"][part.name])

    def _penalties(self) -> list[Any]:
        return list(self.parts.values())
