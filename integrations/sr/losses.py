"""The package's losses as classes that an SR framework builds from its config: `Loss(loss_weight=..., **options)`.

L = loss_weight * l(output, gt)         loss_weight is applied once: here, or by the framework where it does so itself
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.integrations.sr.conventions import Framework, check_options, default_device_cpu, keywords
from qa_hooks.losses import MSSSIMLoss, QALoss, ScoreLoss, SSIMDistanceLoss, SSIMLoss
from qa_hooks.scorers import create_scorer

LOSSES: dict[str, type[QALoss]] = {
    "QA SSIM Loss": SSIMLoss,
    "QA MSSSIM Loss": MSSSIMLoss,
    "QA SSIM Distance Loss": SSIMDistanceLoss,
    "QA Score Loss": ScoreLoss,
}
SLOTS = ("pixel", "perceptual")


class FrameworkLoss(nn.Module):
    """Base class of the registered losses; `forward(output, gt)` takes images in [0, 1].

    Args:
        loss_weight: of the term; a framework that multiplies by it itself gets the term unweighted.
        slot: BasicSR's `perceptual_opt` wants a pair: "perceptual" returns (loss, None).
        options: of the loss; a `QAScoreLoss` takes `scorer`, what `create_scorer` takes, or a list of such.

    Raises:
        ValueError: an option that the loss does not have; the message has the ones it has.
    """

    framework: Framework
    kind: type[QALoss]

    def __init__(self, loss_weight: float = 1.0, slot: str = "pixel", **options: Any) -> None:
        super().__init__()
        name, known = type(self).__name__, keywords(self.kind, "weight", "reduction", "value_range")
        if "weight" in options:
            raise ValueError(f"{name}.weight is called loss_weight here")
        if slot not in SLOTS:
            raise ValueError(f"{name}.slot must be one of {SLOTS}, got {slot!r}")
        self.loss_weight, self.slot = float(loss_weight), slot
        scores = issubclass(self.kind, ScoreLoss)
        options = check_options(name, options, [*(["scorer"] if scores else []), *known])
        weight = 1.0 if self.framework.weighs else self.loss_weight
        if not scores:
            self.loss = self.kind(weight=weight, **options)
            return
        if "scorer" not in options:
            raise ValueError(f"{name} needs scorer:, such as niqe_bsd100, pyiqa:musiq or the file of a fitted one")
        specs = options.pop("scorer")
        with default_device_cpu():
            scorers = [create_scorer(spec) for spec in (specs if isinstance(specs, (list, tuple)) else [specs])]
            self.loss = ScoreLoss(scorers if len(scorers) > 1 else scorers[0], weight=weight, **options)

    def forward(self, output: Tensor, gt: Tensor, **inputs: Any) -> Any:
        with torch.autocast(output.device.type, enabled=False), default_device_cpu():
            output, gt = output.float(), gt.float()
            if isinstance(self.loss, ScoreLoss):
                # What `balance` compares with is an L1 loss of weight 1, whatever else the config trains on.
                inputs |= {"real": gt, "fidelity": (output - gt).abs().mean()}
                reference = any("reference" in scorer.inputs for scorer in self.loss.scorers)
                loss = self.loss(output, gt if reference else None, **inputs)
            else:
                loss = self.loss(output, gt, **inputs)
        return (loss, None) if self.slot == "perceptual" else loss


class AddedTerms(nn.Module):
    """The terms that the `qa` block adds, on their own or after the pixel loss that stands in a slot."""

    loss_weight = 1.0  # a framework that multiplies by it must not change what the terms weigh already

    def __init__(self, terms: Callable[[Tensor, Tensor], dict[str, Tensor]], pixel: nn.Module | None = None) -> None:
        super().__init__()
        self.terms, self.pixel = terms, pixel
        self.last: dict[str, Tensor] = {}

    def forward(self, output: Tensor, gt: Tensor) -> Tensor:
        found = self.terms(output, gt)
        self.last = {name: value.detach() for name, value in found.items()}
        total = torch.stack(list(found.values())).sum()
        return total if self.pixel is None else self.pixel(output, gt) + total


def framework_loss(framework: Framework, words: str, kind: type[QALoss]) -> type[FrameworkLoss]:
    """The class to register."""
    facts = {"framework": framework, "kind": kind, "__module__": __name__, "__doc__": kind.__doc__}
    return type(framework.named(words), (FrameworkLoss,), facts)


def framework_losses(framework: Framework) -> list[type[FrameworkLoss]]:
    """All classes of losses to register, under the framework's names."""
    return [framework_loss(framework, words, kind) for words, kind in LOSSES.items()]
