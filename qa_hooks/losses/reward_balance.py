"""The weight of a reward from the size of its gradient: a fixed share of the fidelity term's, whatever its units.

    w = ratio sqrt(E |d fidelity / dI|^2 / E |dG / dI|^2)        E: exponential moving averages with decay .99

Both gradients are taken at the predictions I, where the two terms meet, over the batch of all ranks, and w is a
constant to autograd. G is taken before the ceiling: images that have reached it do not make the others' weight larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_weight, warn
from qa_hooks._base.processes import all_reduce_sum
from qa_hooks.functional.numerics import differentiable_once, to_float64

DECAY = 0.99
LARGEST = 2.0
LOSS_SCALE = 2.0**15  # in half precision a mean's gradient at a pixel underflows, and 2**16 is infinite


class GradientBalance:
    """The weight that holds a ratio between two gradients.

    Args:
        ratio: of the reward's gradient to the fidelity term's; above 2 it is cut to 2, with a warning.

    Attributes:
        norms: `(2,)` float64, the averages of the squared norms, fidelity first; zeros before the first measurement.
    """

    def __init__(self, ratio: float) -> None:
        if check_weight("balance", ratio) > LARGEST:
            warn(
                f"balance={ratio:g} is cut to {LARGEST:g}: at 2 a reward began to be fooled in our runs, and at 3 and "
                "above images were wrecked, with LoRA and without; weight= multiplies on top, at your own risk"
            )
        self.ratio = min(float(ratio), LARGEST)
        self.norms = torch.zeros(2, dtype=torch.float64, device="cpu")

    def measure(self, gradients: Tensor, fidelity: Tensor | None, pred: Tensor) -> None:
        """Take in one batch; a batch with a gradient that is not finite is passed over. All ranks call it.

        Args:
            gradients: `(N, C, H, W)` of each image's score, by `image_gradients`.
            fidelity: the scalar loss to compare with, computed from `pred`.
            pred: the predictions.
        """
        own = fidelity_gradient(fidelity, pred)
        # fidelity is a mean over the N images of a rank, the score one number for each of them
        norms = torch.stack([torch.linalg.vector_norm(own), torch.linalg.vector_norm(gradients) / len(pred)])
        squares = all_reduce_sum(to_float64(norms).square())
        before = self.norms.to(squares.device)
        after = torch.where(before.sum() == 0, squares, DECAY * before + (1 - DECAY) * squares)
        self.norms = torch.where(squares.isfinite().all(), after, before)

    def weight(self, device: torch.device) -> Tensor:
        """The weight, a scalar; the ratio itself before the first measurement, 0 when the reward has no gradient."""
        fidelity, reward = self.norms.unbind()
        quotient = (fidelity / reward.clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        measured = torch.where(reward > 0, quotient, torch.where(fidelity > 0, 0.0, 1.0))
        return (self.ratio * measured).float().to(device)


def fidelity_gradient(fidelity: Tensor | None, pred: Tensor) -> Tensor:
    """d fidelity / d pred, `(N, C, H, W)` float32.

    Raises:
        TypeError, ValueError: no scalar tensor, or one that was not computed from `pred`.
    """
    if not isinstance(fidelity, Tensor):
        raise TypeError(
            "balance needs the loss that it compares with: loss(pred, fidelity=l1), computed from this pred; got "
            f"{type(fidelity).__name__}"
        )
    if fidelity.numel() != 1:
        raise ValueError(f"fidelity must be a scalar, the loss as it is added, got {tuple(fidelity.shape)}")
    gradient = _gradient(fidelity, pred)
    if gradient is None:
        raise ValueError(
            "fidelity does not depend on pred: compute it from the tensor that the ScoreLoss is given, such as "
            "F.mse_loss(pred, target); beside a loss of the predicted noise, of the image that it gives: mse(x0, clean)"
        )
    return gradient


def _gradient(fidelity: Tensor, pred: Tensor) -> Tensor | None:
    """None where it does not depend on `pred`."""
    if not fidelity.requires_grad:
        return None
    scale = min(float(pred.numel()), LOSS_SCALE)
    with _no_hooks_of(pred):
        scaled = fidelity.float().sum() * scale
        gradient = torch.autograd.grad(scaled, pred, retain_graph=True, allow_unused=True)[0]
    return None if gradient is None else gradient.float() / scale


@contextmanager
def _no_hooks_of(pred: Tensor) -> Iterator[None]:
    """Hooks on a network's output wait for the user's backward pass (DeepSpeed begins its own work in one)."""
    hooks = pred._backward_hooks
    kept = dict(hooks or {})
    if hooks is not None:
        hooks.clear()
    try:
        yield
    finally:
        if hooks is not None:
            hooks.update(kept)


def pull(losses: Tensor, fidelity: Tensor, pred: Tensor, given: Tensor) -> float:
    """The gradient of the mean of `losses` as a multiple of the fidelity term's, on this process; 0 where it has none.

    `pred` is `given`, or its copy in float32.
    """
    of_fidelity = _gradient(fidelity, given)
    if of_fidelity is None or not bool(of_fidelity.any()):
        return 0.0
    own = image_gradients(losses, pred, retain_graph=True) / len(pred)
    return float(torch.linalg.vector_norm(own) / torch.linalg.vector_norm(of_fidelity))


def image_gradients(losses: Tensor, pred: Tensor, *, retain_graph: bool = False) -> Tensor:
    """d losses_i / d pred_i, `(N, C, H, W)` float32, for losses `(N,)` in which no image reaches into another.

    `pred` is float32 or wider: gradients at half-precision images can be too large for their type, and too small.

    Example:
        >>> images = torch.ones(2, 1, 1, 2, requires_grad=True)
        >>> image_gradients(images.square().sum((1, 2, 3)), images).flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """
    with _no_hooks_of(pred):
        return torch.autograd.grad(losses.sum(), pred, retain_graph=retain_graph)[0].float()


def with_gradient(values: Tensor, images: Tensor, gradients: Tensor) -> Tensor:
    """`values` `(N,)` with these gradients at `images`, in place of the graph that they came with.

    What has been differentiated once need not be differentiated again: a balanced reward costs one backward pass.
    """
    result: Tensor = _WithGradient.apply(values.detach(), images, gradients)
    return result


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, images: Tensor, gradients: Tensor) -> Tensor:
        result = values.clone()
        ctx.save_for_backward(result, gradients)
        ctx.dtype = images.dtype
        return result

    @staticmethod
    @differentiable_once(
        "a balanced ScoreLoss is differentiable once; leave balance= out where it is differentiated twice"
    )
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        _, gradients = ctx.saved_tensors
        return None, (gradients * grad.view(-1, *[1] * (gradients.ndim - 1))).to(ctx.dtype), None
