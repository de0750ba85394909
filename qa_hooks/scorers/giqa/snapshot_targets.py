"""The targets of a snapshot scorer, its loss, and its accuracy on held-out images.

    pseudo label of a generated image   S_p = S_g * iteration / last iteration        (S_g = 0.9)
    of a real image                     S_p = 1
    N classifiers                       c_i = [S_p >= T_i]        loss = sum_i BCE(logit_i, c_i)
    regression                          c   = S_p                 loss = (sigmoid(logit) - S_p)^2

The paper gives no T_i but T_N = 1; these are evenly spaced below S_g, its code's to 0.1. Source: Gu et al., "GIQA:
Generated Image Quality Assessment", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pseudo_labels(iterations: Tensor, last: float, *, generated_level: float = 0.9) -> Tensor:
    """Iterations `(n,)` -> S_p `(n,)` float64, from 0 to `generated_level` at the `last` iteration and after it.

    Example:
        >>> pseudo_labels(torch.tensor([0, 500, 1000, 1200]), 1000)
        tensor([0.0000, 0.4500, 0.9000, 0.9000], dtype=torch.float64)
    """
    return generated_level * (iterations.double() / (last or 1.0)).clamp(max=1)


def ordinal_thresholds(classifiers: int, *, generated_level: float = 0.9) -> tuple[float, ...]:
    """T_i = S_g i / N for i < N, and T_N = 1, which only real images reach.

    Example:
        >>> [round(threshold, 3) for threshold in ordinal_thresholds(4)]
        [0.225, 0.45, 0.675, 1.0]
    """
    return (*(generated_level * (i / classifiers) for i in range(1, classifiers)), 1.0)


def check_thresholds(thresholds: Sequence[float] | None, targets: str) -> list[float] | None:
    """Ascending within (0, 1], and only for ordinal targets; `ValueError` otherwise."""
    if thresholds is None:
        return None
    own = [float(threshold) for threshold in thresholds]
    if targets != "ordinal":
        raise ValueError(f"thresholds go with targets='ordinal', got {targets!r}")
    if not own or own != sorted(set(own)) or not 0 < own[0] <= own[-1] <= 1:
        raise ValueError(f"thresholds must ascend within (0, 1], got {own}")
    return own


def ordinal_targets(quality: Tensor, thresholds: Sequence[float]) -> Tensor:
    """S_p `(n,)` -> `(n, N)` zeros and ones, [S_p >= T_i].

    Example:
        >>> ordinal_targets(torch.tensor([0.45, 1.0], dtype=torch.float64), [0.225, 0.45, 0.675, 1.0])
        tensor([[1., 1., 0., 0.],
                [1., 1., 1., 1.]])
    """
    return (quality.double()[:, None] >= torch.tensor(thresholds, dtype=torch.float64, device=quality.device)).float()


def snapshot_loss(logits: Tensor, labels: Tensor, *, regression: bool = False) -> Tensor:
    """Logits and labels `(n, outputs)` -> the mean over images of the sum over outputs; finite for any finite logit.

    Example:
        >>> round(float(snapshot_loss(torch.zeros(2, 3), torch.ones(2, 3))), 4)  # 3 ln 2
        2.0794
    """
    if regression:
        return F.mse_loss(torch.sigmoid(logits), labels)
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(1).mean()


def held_out_report(predicted: Tensor, labels: Tensor, *, regression: bool = False) -> dict[str, Any]:
    """How well probabilities `(n, outputs)` meet labels `(n, outputs)`.

    Returns:
        "accuracies", the balanced accuracy of each classifier (the mean of the hit rates of its two classes; of one
        class where there is only that), and "accuracy", their mean; or "error", the mean absolute one, of a regression.

    Example:
        >>> held_out_report(torch.tensor([[0.9], [0.8], [0.7], [0.1]]), torch.tensor([[1.0], [1.0], [0.0], [0.0]]))
        {'accuracy': 0.75, 'accuracies': [0.75]}
    """
    if regression:
        return {"error": float((predicted - labels).abs().mean())}
    hits = ((predicted >= 0.5) == (labels == 1)).double()
    accuracies = []
    for hit, label in zip(hits.T, labels.T, strict=True):
        rates = [float(hit[label == value].mean()) for value in (0, 1) if bool((label == value).any())]
        accuracies.append(sum(rates) / len(rates))
    return {"accuracy": sum(accuracies) / len(accuracies), "accuracies": accuracies}


def split_positions(count: int, share: float, least: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions that are held out, and the others."""
    order = torch.randperm(count, generator=generator, device="cpu")
    held = min(max(least, round(share * count)), count - 1)
    return order[:held], order[held:]
