"""HGGT's negative term: the super-resolved image is pushed away from what people found worse than the original.

    L = -w mean( M min(|pred - neg|, m |target - neg|) ),    w = 300, m = 1
    M = (votes_neg / 3) var_3x3(r_neg)^(3/4), but 0 where (votes_pos / 3) var_3x3(r_target)^(3/4) >= it
    r_x = sum_c |original - x|,    var_3x3: the unbiased variance of a pixel and its eight neighbours, edges reflected

Human Guided Ground-truth Generation for Realistic Image Super-resolution (Chen et al., CVPR 2023). The map finds where
the enhancement went wrong: where it departs from the original by a pattern, and the ground truth does not as much.

The published term is unbounded: it can be lowered without end by running away from the negative. Here each pixel counts
only until it is as far from the negative as the ground truth is (times the margin m), and has no gradient beyond: a
hinge, up to a constant. `margin=float("inf")` is the published form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks._base.checks import arrived
from qa_hooks.images import Range, RangeGuard, check_images, check_pair, to_unit
from qa_hooks.losses.loss import QALoss, needs_target

ANNOTATORS = 3
POWER = 0.75


def negative_map(
    original: Tensor,
    negative: Tensor,
    negative_votes: Tensor,
    *,
    positive: Tensor | None = None,
    positive_votes: Tensor | None = None,
) -> Tensor:
    """Where, and how strongly, an enhanced image is what people disliked in it.

    Args:
        original, negative: `(N, C, H, W)` in [0, 1].
        negative_votes: `(N,)`, how many of three annotators called it negative; 0 gives a map of zeros.
        positive, positive_votes: an image that people liked and how many of them; where it departs from the original
            as strongly, the map is 0.

    Returns:
        `(N, 1, H, W)` float32, without gradient.

    Raises:
        ValueError: shapes that differ, sides below 2, votes without their image.

    Example:
        >>> original = torch.zeros(1, 3, 4, 4)
        >>> negative = original.clone()
        >>> negative[..., 0] = 0.5
        >>> negative_map(original, negative, torch.tensor([3])).gt(0)[0, 0, 0]
        tensor([ True,  True, False, False])
    """
    check_images("original", original)
    if min(original.shape[-2:]) < 2:
        raise ValueError(f"the map needs sides of at least 2, got {tuple(original.shape)}")
    if (positive is None) != (positive_votes is None):
        raise ValueError("positive= and positive_votes= belong together")
    found = _voted_variance("negative", original, negative, negative_votes)
    if positive is None or positive_votes is None:
        return found
    return torch.where(_voted_variance("positive", original, positive, positive_votes) >= found, 0.0, found)


class HGGTNegativeLoss(QALoss):
    """The bounded form of HGGT's negative term; the formula is at the top of `qa_hooks.losses.hggt`.

    `loss(pred, gt, original=..., negative=..., negative_votes=..., positive_votes=...)`, all from the batches of
    `MultiGTDataset(..., negatives=True)`. It lies in [-weight m mean(M |gt - negative|), 0].

    Args:
        weight: w; the paper's code has 300, for images in [0, 1], beside an L1 loss of weight 1.
        margin: m, how far from the negative is far enough, in distances of the ground truth from it.
        reduction, value_range: as in `QALoss`.

    Inputs:
        original, negative: `(N, C, H, W)` in `value_range`; of an image without a negative anything, with 0 votes.
        negative_votes: `(N,)`, 0 to 3.
        positive_votes: `(N,)`, how many called the ground truth of this step positive, 0 where it is the original;
            without it the map is not refined by the ground truth.

    Example:
        >>> original = torch.rand(2, 3, 16, 16)
        >>> gt, negative = (original * 1.1).clamp(0, 1), torch.rand(2, 3, 16, 16)
        >>> pred = torch.rand(2, 3, 16, 16, requires_grad=True)
        >>> votes = torch.tensor([3, 0])
        >>> loss = HGGTNegativeLoss()(pred, gt, original=original, negative=negative, negative_votes=votes)
        >>> loss.backward()
        >>> bool(pred.grad[0].any()), bool(pred.grad[1].any())
        (True, False)
    """

    name = "hggt_negative"
    inputs = frozenset({"original", "negative", "negative_votes", "positive_votes"})

    def __init__(
        self,
        *,
        weight: float = 300.0,
        margin: float = 1.0,
        reduction: str = "mean",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(weight=weight, reduction=reduction, value_range=value_range)
        if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not margin > 0:
            raise ValueError(
                f"margin must be more than 0, got {margin!r}; float('inf') is the unbounded, published form"
            )
        self.margin = float(margin)
        self._inputs_guard = RangeGuard(self.value_range)

    def per_image(self, pred: Tensor, target: Tensor | None, **inputs: Any) -> Tensor:
        target = needs_target("HGGTNegativeLoss", target)
        for name in ("original", "negative", "negative_votes"):
            if inputs.get(name) is None:
                raise ValueError(f"HGGTNegativeLoss needs {name}=; MultiGTDataset(..., negatives=True) gives it")
        for name in ("original", "negative"):
            check_pair("pred", pred, name, check_images(name, inputs[name]))
        self._inputs_guard(data={name: inputs[name] for name in ("original", "negative")})
        pred, target, original, negative = (
            to_unit(images.float(), self.value_range)
            for images in (pred, target.detach(), inputs["original"].detach(), inputs["negative"].detach())
        )
        votes = inputs.get("positive_votes")
        positive = {} if votes is None else {"positive": target, "positive_votes": votes}
        strength = negative_map(original, negative, inputs["negative_votes"], **positive)
        distance, enough = (pred - negative).abs(), (target - negative).abs()
        if self.margin != float("inf"):
            distance = torch.minimum(distance, self.margin * enough)
        return -(strength * distance).flatten(1).mean(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, margin={self.margin:g}"


@torch.no_grad()
def _voted_variance(name: str, original: Tensor, image: Tensor, votes: Tensor) -> Tensor:
    check_pair("original", original, name, check_images(name, image))
    if not isinstance(votes, Tensor) or votes.shape != original.shape[:1]:
        raise ValueError(f"{name}_votes must be a tensor ({original.shape[0]},), got {arrived(votes)}")
    residual = (original.float() - image.float()).abs().sum(1, keepdim=True)
    windows = F.pad(residual, (1, 1, 1, 1), mode="reflect").unfold(2, 3, 1).unfold(3, 3, 1)
    deviations = windows - windows.mean((-2, -1), keepdim=True)  # `var` takes three times as long on a CPU
    variance = deviations.square().sum((-2, -1)) / 8  # of 9 pixels, unbiased
    return votes.to(variance).view(-1, 1, 1, 1) / ANNOTATORS * variance**POWER
