"""How likely each of several candidates is: a softmax of normalised scores, and the draws from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qa_hooks.functional.numerics import to_float64
from qa_hooks.images import Range

NORMALIZE = ("range", "zscore", "none")


def selection_probabilities(
    scores: Tensor,
    *,
    temperature: float = 0.05,
    normalize: str = "range",
    score_range: Range | None = None,
    higher_is_better: bool = True,
    allowed: Tensor | None = None,
) -> Tensor:
    """The probability of each candidate, as a softmax of its normalised quality.

    Args:
        scores: `(N, K)` raw scores; what is not finite cannot be chosen. A set whose scores are all equal is uniform.
        temperature: tau, in units of the normalised scores; towards 0 the best alone, `inf` uniform. The default is
            for "range"; "zscore" wants about 1: with 0.05, of 100 photographs and four sharpened versions of each,
            the best by NIQE had a probability of 0.96 on average.
        normalize: "range" divides by the width of `score_range`; "zscore" by each set's own deviation; "none".
        score_range: worst and best possible score, for "range".
        higher_is_better: the direction of the scores.
        allowed: `(N, K)` bool, what can be chosen; all by default.

    Returns:
        `(N, K)` float32, rows of sum 1. A set of which nothing can be chosen has its original, candidate 0, at 1.

    Raises:
        ValueError: a temperature that is not positive, "range" without a finite range, shapes that differ.

    Example:
        >>> selection_probabilities(torch.tensor([[50.0, 55.0, 55.0]]), score_range=(0, 100)).round(decimals=3)
        tensor([[0.1550, 0.4220, 0.4220]])
    """
    _check_options(temperature, normalize, score_range)
    check_scores(scores)
    quality = to_float64(scores.detach())
    usable = quality.isfinite()
    if allowed is not None:
        usable = usable & check_mask("allowed", allowed, scores.shape).to(usable.device)
    quality = torch.where(usable, quality if higher_is_better else -quality, 0.0)
    best = torch.where(usable, quality, -math.inf).amax(1, keepdim=True)
    worst = torch.where(usable, quality, math.inf).amin(1, keepdim=True)
    gaps = torch.where(usable, quality - best, -math.inf)
    # Rounding is no spread: a deviation of 1e-8 must not be blown up to 1 by "zscore".
    spread = best - worst > 1e-6 * torch.maximum(best.abs(), worst.abs())
    gaps = torch.where(usable & ~spread, 0.0, gaps) / _unit(quality, usable, normalize, score_range)
    if math.isinf(temperature):
        probabilities = usable.double()
    else:
        probabilities = torch.where(usable, (gaps / temperature).exp(), 0.0)
    probabilities[:, 0] += (~usable.any(1)).double()
    return (probabilities / probabilities.sum(1, keepdim=True)).float().to(scores.device)


def draw_index(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """`(N, K)` probabilities -> `(N,)` int64 drawn from them; what has probability 0 never comes.

    The largest of p_i / e_i, e_i exponential (a race of exponential clocks), is i with probability p_i.
    """
    clocks = torch.empty(probabilities.shape, dtype=torch.float32, device=generator.device)
    clocks.exponential_(generator=generator)
    return (probabilities / clocks.to(probabilities.device)).argmax(1)


def check_scores(scores: object) -> Tensor:
    """`(N, K)` numbers; `TypeError` or `ValueError` otherwise."""
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a tensor (N, K), got {type(scores).__name__}")
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"scores must be (N, K), one for each of K candidates of N images, got {tuple(scores.shape)}")
    return scores


def check_mask(name: str, mask: object, shape: tuple[int, ...]) -> Tensor:
    """`(N, K)` bool; `TypeError` or `ValueError` otherwise."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"{name} must be a bool tensor (N, K), got {got}; of HGGT's label codes: labels == 1")
    if mask.shape != shape:
        raise ValueError(f"{name} must be {tuple(shape)}, got {tuple(mask.shape)}")
    return mask


def _check_options(temperature: float, normalize: str, score_range: Range | None) -> None:
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not temperature > 0:
        raise ValueError(
            f"temperature must be more than 0, got {temperature!r}; 1e-6 takes the best alone, float('inf') is uniform"
        )
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {NORMALIZE}, got {normalize!r}")
    if normalize == "range":
        if score_range is None or not all(map(math.isfinite, score_range)):
            raise ValueError(
                f"normalize='range' needs the worst and the best possible score, got score_range={score_range!r}: pass "
                "score_range=(low, high), or for an unbounded score normalize='zscore'"
            )
        if not score_range[0] < score_range[1]:
            raise ValueError(f"score_range must be (low, high) with low < high, got {score_range!r}")


def _unit(quality: Tensor, usable: Tensor, normalize: str, score_range: Range | None) -> Tensor | float:
    """What differences of quality are measured in."""
    if normalize == "range" and score_range is not None:
        return float(score_range[1]) - float(score_range[0])
    if normalize == "none":
        return 1.0
    count = usable.sum(1, keepdim=True).clamp_min(1)
    mean = quality.sum(1, keepdim=True) / count
    variance = torch.where(usable, quality - mean, 0.0).square().sum(1, keepdim=True) / count
    return variance.sqrt() + 1e-6
