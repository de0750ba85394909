"""QAGAN's regularised critic objective in one module (Kancharla and Channappayya 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qa_hooks._base.checks import check_weight
from qa_hooks._base.terms import publish
from qa_hooks.functional.input_gradients import OutputFn
from qa_hooks.images import Range
from qa_hooks.penalties.drift import DriftTerm
from qa_hooks.penalties.gradient import GradientTerm
from qa_hooks.penalties.niqe import NIQETerm
from qa_hooks.penalties.penalty import CriticPass, CriticPenalty, Term
from qa_hooks.penalties.ssim import SSIMTerm
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
        model, warmup, niqe_mode, hinge: options of the NIQE term, see `NIQEPenalty`.
        min_distance, one_sided: options of the SSIM term, see `SSIMPenalty`.
        value_range, interval, output_fn, seed: see `CriticPenalty`.

    Attributes:
        parts: "gradient_penalty", "ssim", "niqe" and "drift", as far as they were asked for; `parts["niqe"].model` is
            the model of natural gradient maps.
        weights: the weight of each part.
        terms: the last value of each part of a weight above 0, detached and unweighted: "gradient_penalty",
            "ssim", "niqe" and "drift". The penalties are about the critic and are no scores of images.
            Besides: "ssim_distance", the mean d_Q of the pairs, and "niqe_active", 0 during a warm-up.

    Raises:
        ValueError: "niqe" without a model or a warm-up; the message names the ways to get one.

    Example:
        >>> import torch
        >>> penalty = QAGANPenalty("ssim", value_range=(-1, 1))
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
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
        hinge: bool = True,
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
        self.parts: dict[str, Term] = {"gradient_penalty": GradientTerm()}
        self.weights = {"gradient_penalty": check_weight("gp_weight", gp_weight)}
        self.weights |= {name: check_weight("quality_weight", weights[name]) for name in wanted}
        self.weights["drift"] = check_weight("drift_weight", drift_weight)
        if "ssim" in wanted:
            self.parts["ssim"] = SSIMTerm(
                self.weights["ssim"], value_range=self.value_range, one_sided=one_sided, min_distance=min_distance
            )
        if "niqe" in wanted:
            self.parts["niqe"] = NIQETerm(model=model, warmup=warmup, mode=niqe_mode, hinge=hinge)
        self.parts["drift"] = DriftTerm()

    def is_off(self) -> bool:
        return not any(self.weights.values())

    def total(self, shared: CriticPass) -> Tensor:
        total: Tensor | None = None
        terms: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            value = part.term(shared) if self.weights[name] else None
            if value is not None:
                terms[name] = value.detach()
                total = self.weights[name] * value if total is None else total.add(value, alpha=self.weights[name])
        publish(self, terms | shared.log)
        return shared.zero() if total is None else total

    def run_state(self) -> dict[str, Any]:
        return {**super().run_state(), "parts": {name: part.run_state() for name, part in self.parts.items()}}

    def load_run_state(self, state: dict[str, Any]) -> None:
        super().load_run_state(state)
        saved = set(state.get("parts", {}))
        if saved != set(self.parts):
            raise ValueError(f"this is the state of a penalty with the terms {sorted(saved)}, not {sorted(self.parts)}")
        for name, part in self.parts.items():
            part.load_run_state(state["parts"][name])

    def extra_repr(self) -> str:
        return f"{', '.join(f'{name}={weight:g}' for name, weight in self.weights.items())}, {super().extra_repr()}"
