"""Training a diffusion model on scores without a gradient: advantages, preference pairs and the losses that use them.

    A_i = (s_i - mean_g) / (std_g + eps)                        inside each group g (GRPO, Shao et al. 2024)
    L_dpo = -log sigmoid(-beta ((w - w_ref) - (l - l_ref)))     Diffusion-DPO (Wallace et al. 2024, eq. 14)
    L_awr = mean_i min(exp(A_i / T), w_max) loss_i              advantage-weighted regression (Peng et al. 2019)
    L     = mean_i w_i loss_i                                   reward-weighted (Lee et al. 2023), quality-weighted

loss_i, w and l are denoising losses of single samples, `((prediction - target) ** 2).flatten(1).mean(1)`; w and l those
of the preferred and the other image, with the same noise and timestep, `_ref` under the frozen model. A group is what
belongs to one prompt.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Groups = Tensor | Sequence[Hashable]


def group_advantages(scores: Tensor, groups: Groups, *, eps: float = 1e-6) -> Tensor:
    """Scores with zero mean and unit standard deviation (the population's) inside each group.

    Args:
        scores: `(N,)`, higher is better. All of a group must be here: with several processes keep a prompt's samples on
            one, or gather first.
        groups: `(N,)` whole numbers, or N prompts or other keys.
        eps: added to the standard deviation, in units of the score.

    Returns:
        `(N,)` float32, detached. A group of one and a group of equal scores get 0.

    Raises:
        TypeError, ValueError: other shapes, scores that are not finite.

    Example:
        >>> group_advantages(torch.tensor([1.0, 3.0, 7.0]), ["a cat", "a cat", "a dog"])
        tensor([-1.0000,  1.0000,  0.0000])
    """
    values = _numbers("scores", scores).double()
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be a positive number, got {eps!r}")
    member = _group_numbers(groups, values)
    count = torch.bincount(member).to(values)
    centred = values - (torch.zeros_like(count).index_add_(0, member, values) / count)[member]
    variance = torch.zeros_like(count).index_add_(0, member, centred.square()) / count
    return (centred / (variance.sqrt() + eps)[member]).float()


def preference_pairs(scores: Tensor, groups: Groups, margin: float = 0.0) -> Tensor:
    """All pairs of one group whose scores differ by more than `margin`; equal scores make no pair.

    Args:
        scores: `(N,)`, higher is better; N^2 comparisons are made at once.
        groups: as in `group_advantages`.
        margin: at least 0, in units of the score.

    Returns:
        `(P, 2)` int64, (winner, loser), in the order of the winners; P may be 0.

    Raises:
        TypeError, ValueError: other shapes, scores that are not finite, a negative margin.

    Example:
        >>> preference_pairs(torch.tensor([0.1, 0.9, 0.5]), [0, 0, 1])
        tensor([[1, 0]])
    """
    values = _numbers("scores", scores)
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin must be a number of at least 0, got {margin!r}")
    member = _group_numbers(groups, values)
    better: Tensor = (values[:, None] - values > margin) & (member[:, None] == member)
    pairs: Tensor = better.nonzero()
    return pairs


def dpo_loss(
    winner: Tensor,
    loser: Tensor,
    reference_winner: Tensor,
    reference_loser: Tensor,
    *,
    beta: float = 2500.0,
    reduction: str = "mean",
) -> Tensor:
    """Diffusion-DPO on per-sample denoising losses; log 2 while the model equals the reference.

    Args:
        winner, loser: `(P,)`, of the model that is trained.
        reference_winner, reference_loser: `(P,)`, of the frozen one; detached here.
        beta: beta T omega of the paper, for losses averaged over pixels. 2500 is Diffusers' `--beta_dpo` and, as the
            authors' code halves it, their 5000.
        reduction: "mean" or "none".

    Returns:
        A scalar, or `(P,)` with "none"; float32.

    Raises:
        TypeError, ValueError: losses that are not `(P,)`, a beta that is not positive.

    Example:
        >>> same = torch.tensor([0.1, 0.2])
        >>> dpo_loss(same, same, same, same)
        tensor(0.6931)
    """
    parts = (winner, loser, reference_winner, reference_loser)
    for name, part in zip(("winner", "loser", "reference_winner", "reference_loser"), parts, strict=True):
        _vector(name, part, like=winner if isinstance(winner, Tensor) else None)
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be a positive number, got {beta!r}")
    won, lost, won_before, lost_before = (part.float() for part in parts)
    gain = (won - won_before.detach()) - (lost - lost_before.detach())
    return _reduced(-logsigmoid(-beta * gain), reduction)


def advantage_weighted_loss(
    losses: Tensor, advantages: Tensor, *, temperature: float = 1.0, max_weight: float = 20.0, reduction: str = "mean"
) -> Tensor:
    """Denoising losses of own samples, weighted by min(exp(A / temperature), max_weight).

    Args:
        losses: `(N,)`, or unreduced `(N, C, H, W)`, which is averaged for each sample.
        advantages: `(N,)`, for example of `group_advantages`; detached.
        temperature: small: only the best count; large: all alike.
        max_weight: the cap; 20 as in the paper's code.
        reduction: "mean" or "none".

    Raises:
        TypeError, ValueError: other shapes, advantages that are not finite, a temperature or cap that is not positive.

    Example:
        >>> advantage_weighted_loss(torch.ones(3), torch.tensor([0.0, 1.0, 9.0]), reduction="none")
        tensor([ 1.0000,  2.7183, 20.0000])
    """
    if not (0 < temperature < math.inf and max_weight > 0):
        raise ValueError(f"temperature and max_weight must be positive, got {temperature!r} and {max_weight!r}")
    advantages = _numbers("advantages", advantages)
    return weighted_loss(losses, (advantages.float() / temperature).exp().clamp(max=max_weight), reduction=reduction)


def weighted_loss(losses: Tensor, weights: Tensor, *, reduction: str = "mean") -> Tensor:
    """mean_i w_i loss_i: an ordinary denoising loss in which the better images count more.

    Args:
        losses: `(N,)`, or unreduced `(N, C, H, W)` as of `mse_loss(..., reduction="none")`, which is averaged for each
            sample. `(N, 1)` is refused: with weights `(N,)` it would make `(N, N)` products elsewhere.
        weights: `(N,)`, not negative, detached: rewards in [0, 1] (Lee et al. 2023) or weights of real images by their
            quality. The mean is over N, not over the weights: give them the mean 1 to keep the learning rate.
        reduction: "mean" or "none".

    Returns:
        A scalar, or `(N,)` with "none"; float32.

    Raises:
        TypeError, ValueError: other shapes, weights that are negative or not finite.

    Example:
        >>> weighted_loss(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 0.0]))
        tensor(1.)
    """
    if isinstance(losses, Tensor) and losses.ndim > 2:
        losses = losses.flatten(1).mean(1)
    _vector("losses", losses)
    weights = _numbers("weights", weights).to(losses.device)
    _vector("weights", weights, like=losses)
    if (weights < 0).any():
        raise ValueError(f"weights must not be negative, got {float(weights.min()):g}")
    return _reduced(weights.float() * losses.float(), reduction)


def _vector(name: str, values: Tensor, *, like: Tensor | None = None) -> None:
    """A floating-point `(N,)`, as long as `like`."""
    if not isinstance(values, Tensor) or not values.is_floating_point():
        got = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise TypeError(f"{name} must be a floating-point tensor (N,), got {got}")
    if values.ndim != 1 or not len(values):
        hint = "; bring it to one number for each sample: .flatten(1).mean(1)" if values.ndim > 1 else ""
        raise ValueError(f"{name} must be (N,), got {tuple(values.shape)}{hint}")
    if like is not None and values.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)} like the others, got {tuple(values.shape)}")


def _numbers(name: str, values: Tensor) -> Tensor:
    """A finite, detached `(N,)`."""
    _vector(name, values)
    if not torch.isfinite(values).all():
        place = int((~torch.isfinite(values)).nonzero()[0])
        raise ValueError(f"{name} must be finite, but number {place} is {float(values[place])}")
    return values.detach()


def _group_numbers(groups: Groups, like: Tensor) -> Tensor:
    """0, 1, ... for the groups of N samples, `(N,)` int64."""
    if isinstance(groups, str):
        raise TypeError(f"groups must be a tensor or a list of {len(like)} keys, got the text {groups!r}")
    if isinstance(groups, Tensor):
        if groups.is_floating_point() or groups.shape != like.shape:
            raise ValueError(
                f"groups must be {tuple(like.shape)} whole numbers, got {tuple(groups.shape)} of {groups.dtype}"
            )
        members: Tensor = groups.to(like.device).unique(return_inverse=True)[1]
        return members
    if len(groups) != len(like):
        raise ValueError(f"groups must have {len(like)} keys, one for each score, got {len(groups)}")
    numbers = {key: number for number, key in enumerate(dict.fromkeys(groups))}
    return torch.tensor([numbers[key] for key in groups], device=like.device, dtype=torch.int64)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
    return losses.mean() if reduction == "mean" else losses
