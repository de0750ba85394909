"""Choose, in each training step, one of several ground truths of an image.

An image has K candidates: the original (always candidate 0) and enhanced versions of it. Every step draws one, and all
loss terms of the step use that one:

    P(i) = exp(q_i / tau) / sum_j exp(q_j / tau),   q_i: the quality of candidate i, normalised, higher better

    | strategy  | among               | rule                                               | needs               |
    |-----------|---------------------|----------------------------------------------------|---------------------|
    | originals | the original        | fixed                                              |                     |
    | random    | all                 | uniform                                            |                     |
    | upos      | positives           | uniform (HGGT)                                     | positives           |
    | sma       | all                 | softmax of image-level scores                      | scores              |
    | smp       | positives           | softmax of image-level scores                      | scores, positives   |
    | amo       | all                 | the best by the scores of these very crops         | candidates, scorer  |

Sources: "Augmenting Perceptual Super-Resolution via Image Quality Predictors" (2025); HGGT, "Human Guided Ground-truth
Generation for Realistic Image Super-resolution" (Chen et al., CVPR 2023). Neither temperature nor normalisation of the
former were published where we could read them: tau = 0.05 of the scorer's range (5 points of MUSIQ) is our choice.

A step with image-level scores (SMA), and one that scores its crops (AMO):

    >>> import torch
    >>> from qa_hooks.scorers import FunctionScorer
    >>> net = torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), torch.nn.Conv2d(3, 3, 3, padding=1))
    >>> optimizer = torch.optim.Adam(net.parameters())
    >>> contrast = FunctionScorer(lambda images: images.std((1, 2, 3)), name="contrast", higher_is_better=True)
    >>> candidates = torch.rand(4, 5, 3, 16, 16)                   # from MultiGTDataset(..., candidates=True)
    >>> scores = torch.rand(4, 5)                                  # from its table
    >>> lq = torch.nn.functional.avg_pool2d(candidates[:, 0], 2)   # always made from the original
    >>> for strategy in ("sma", "amo"):
    ...     index = select_ground_truth(
    ...         candidates, scores, strategy=strategy, score_range=(0, 1), scorer=contrast
    ...     )
    ...     gt = candidates[torch.arange(len(index)), index]
    ...     loss = (net(lq) - gt).abs().mean()                     # perceptual and adversarial terms: the same gt
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import OwnRandom
from qa_hooks.data.selection import check_mask, check_scores, draw_index, selection_probabilities
from qa_hooks.images import Range
from qa_hooks.scorers import Scorer
from qa_hooks.sources.windows import fitting

STRATEGIES = ("originals", "random", "upos", "sma", "smp", "amo")
NEEDS_SCORES = ("sma", "smp")
NEEDS_POSITIVES = ("upos", "smp")

_OWN = OwnRandom(0)  # for calls without a generator


def select_ground_truth(
    candidates: Tensor | None = None,
    scores: Tensor | None = None,
    *,
    strategy: str,
    temperature: float = 0.05,
    normalize: str = "range",
    score_range: Range | None = None,
    higher_is_better: bool = True,
    positives: Tensor | None = None,
    scorer: Scorer | Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw the ground truth of each image; call it once a step and use its answer in every loss term.

    A strategy takes what the table above says it needs and ignores the rest, so that one call serves them all.

    Args:
        candidates: `(N, K, C, H, W)`, the crops of this step, in the scorer's range; candidate 0 is the original.
        scores: `(N, K)` raw scores of the whole images (`QualityTable`); NaN where there is none.
        strategy: "originals", "random", "upos", "sma", "smp" or "amo".
        temperature, normalize, score_range, higher_is_better: as in `selection_probabilities`.
        positives: `(N, K)` bool, which candidates people found better than the original.
        scorer: of "amo": a `Scorer`, which knows its direction, or a callable `(n, C, H, W)` float32 -> `(n,)`, whose
            direction is `higher_is_better`. It runs on the candidates' device, in float32, without gradient, and
            sees the images a few at a time. Equal scores go to the first candidate.
        generator: of the draws; its state in your checkpoint makes a resumed run exact, and a seed that differs
            between ranks makes them draw differently. Without one the draws are the package's own: never those of the
            global generators, different on each rank, from the start again in each process.

    Returns:
        `(N,)` int64 on the device of the candidates (of the scores, of the positives). An image of which nothing can be
        chosen (no positive, no finite score) has 0, its original.

    Raises:
        TypeError, ValueError: what is missing for the strategy, shapes that differ, a temperature that is not positive,
            "range" for an unbounded score, a scorer that needs more than the images.

    Example:
        >>> scores = torch.tensor([[40.0, 70.0, 20.0], [50.0, 10.0, 90.0]])
        >>> select_ground_truth(scores=scores, strategy="sma", temperature=1e-6, score_range=(0, 100))
        tensor([1, 2])
        >>> positives = torch.tensor([[False, False, True], [False, False, False]])
        >>> select_ground_truth(scores=scores, strategy="upos", positives=positives)
        tensor([2, 0])
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {STRATEGIES}, got {strategy!r}")
    shape, device = _shape(candidates, scores, positives)
    if strategy == "originals":
        return torch.zeros(shape[0], dtype=torch.int64, device=device)
    if strategy == "amo":
        return _best_crop(candidates, scorer, higher_is_better)
    allowed = None
    if strategy in NEEDS_POSITIVES:
        if positives is None:
            raise ValueError(f"{strategy!r} chooses among positives: pass positives= (N, K), or take 'random' or 'sma'")
        allowed = positives.to(device)
    quality = torch.zeros(shape, device=device, dtype=torch.float32)
    if strategy in NEEDS_SCORES:
        if scores is None:
            raise ValueError(
                f"{strategy!r} needs scores= (N, K), those of a QualityTable; 'amo' scores the crops itself"
            )
        quality = scores.to(device)
    else:
        temperature, normalize = 1.0, "none"
    probabilities = selection_probabilities(
        quality,
        temperature=temperature,
        normalize=normalize,
        score_range=score_range,
        higher_is_better=higher_is_better,
        allowed=allowed,
    )
    return draw_index(probabilities, generator if generator is not None else _OWN.generator())


def _shape(
    candidates: Tensor | None, scores: Tensor | None, positives: Tensor | None
) -> tuple[tuple[int, int], torch.device]:
    """N, K and the device, of whatever was given."""
    if candidates is not None:
        if not isinstance(candidates, Tensor):
            raise TypeError(f"candidates must be a tensor (N, K, C, H, W), got {type(candidates).__name__}")
        if candidates.ndim != 5 or not candidates.numel():
            raise ValueError(f"candidates must be (N, K, C, H, W), got {tuple(candidates.shape)}")
    given = [tensor for tensor in (candidates, scores, positives) if tensor is not None]
    if not given:
        raise ValueError(
            "nothing to choose from: pass candidates= (N, K, C, H, W), scores= (N, K) or positives= (N, K)"
        )
    if scores is not None:
        check_scores(scores)
    first = given[0]
    if first.ndim < 2:
        raise ValueError(f"positives must be (N, K), got {tuple(first.shape)}")
    shape = (first.shape[0], first.shape[1])
    if positives is not None:
        check_mask("positives", positives, shape)
    if scores is not None and scores.shape != shape:
        raise ValueError(f"scores must be {shape} as the candidates are, got {tuple(scores.shape)}")
    return shape, first.device


def _best_crop(
    candidates: Tensor | None, scorer: Scorer | Callable[[Tensor], Tensor] | None, higher_is_better: bool
) -> Tensor:
    if candidates is None or scorer is None:
        raise ValueError("'amo' scores the crops of the step: pass candidates= (N, K, C, H, W) and scorer=")
    if not callable(scorer):
        raise TypeError(f"scorer must be a Scorer or a callable, got {type(scorer).__name__}; see create_scorer")
    if isinstance(scorer, Scorer):
        higher_is_better = scorer.higher_is_better
        if scorer.inputs:
            raise ValueError(f"'amo' knows nothing but the crops, and {scorer.name} needs {sorted(scorer.inputs)}")
    count, size = candidates.shape[:2]
    images = candidates.detach().flatten(0, 1)
    with isolated():
        parts = [_scores_of(scorer, part) for part in images.split(fitting(len(images), *images.shape[-2:]))]
    quality = torch.cat(parts).view(count, size)
    quality = quality if higher_is_better else -quality
    return torch.where(quality.isfinite(), quality, -math.inf).argmax(1)


def _scores_of(scorer: Any, images: Tensor) -> Tensor:
    if images.dtype != torch.uint8:
        images = images.float()
    elif not isinstance(scorer, Scorer):
        raise TypeError("a scorer that is a function gets float32 images: pass candidates.float() / 255")
    scores = scorer(images)
    if not isinstance(scores, Tensor) or scores.numel() != len(images):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the scorer must give one score per image, {len(images)} of them, got {got}")
    return scores.reshape(-1).float().to(images.device)
