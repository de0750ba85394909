"""Is a scorer's gradient fit to train on? The short form, for the first call of a loss; the long one is the doctor.

One forward and one backward per image, on two images: each image's score must have a finite, non-zero gradient at its
own pixels and none at the other's. Metrics that round, convert through PIL, run under `no_grad` or average over the
batch fail here instead of training silently on nothing, or on a neighbour.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks.functional.degradations import dead_leaves, degrade
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

SIDES = (64, 128, 256, 384)
CROSS_TALK = 1e-5  # of the own gradient's norm


def check_reward(scorer: Scorer, images: Tensor | None = None, *, reference: Any = None, prompt: Any = None) -> None:
    """Raise unless a usable gradient reaches each image; nothing else is touched, the random state included.

    Args:
        scorer: what is to be maximised.
        images: `(N, C, H, W)` floating, in the scorer's range, such as the first predictions of a run; two of them are
            used. Without them pictures are drawn, at the smallest of a few sizes that the scorer takes.
        reference, prompt: what belongs to `images`, where the scorer's inputs name it.

    Raises:
        ValueError: the scorer is declared not differentiable, no gradient comes back, an image's own gradient is zero
            or not finite, or an image's score reaches into another image.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> check_reward(FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True))
        >>> mean_of_batch = FunctionScorer(lambda x: x.mean().expand(len(x)), name="mean", higher_is_better=True)
        >>> check_reward(mean_of_batch)
        Traceback (most recent call last):
        ValueError: mean cannot be a reward: the score of an image has a gradient at the other images of the batch ...
    """
    if not scorer.differentiable:
        raise ValueError(f"{scorer.name} has no usable gradient, so it cannot be a reward; monitor it instead")
    with isolated(), torch.inference_mode(False), torch.enable_grad():
        if images is None:
            images, inputs = _smallest(scorer)
        else:
            given = {"reference": reference, "prompt": prompt}
            images, inputs = pair_of(images, {name: value for name, value in given.items() if value is not None})
        try:
            fault = reward_fault(score_gradients(scorer, images, **inputs))
        except NoGradientError as error:
            fault = str(error)
    if fault:
        raise ValueError(
            f"{scorer.name} cannot be a reward: {fault}. It can be monitored (ScoreMonitor); "
            "`qa-hooks doctor` says more"
        )


class NoGradientError(ValueError):
    """The scores are not connected to the images."""


def score_gradients(scorer: Scorer, images: Tensor, **inputs: Any) -> Tensor:
    """The gradient of each score at each image: `(N scores, N images, C, H, W)`, by one forward and N backward passes.

    Raises:
        NoGradientError: the scores do not depend on the images in autograd's eyes, or its backward pass fails.
    """
    images = images.detach().clone().requires_grad_()
    scores = scorer.goodness(images, **inputs)
    if not scores.requires_grad:
        raise NoGradientError("no gradient comes back (a no_grad, a detach, or a conversion to PIL or NumPy inside?)")
    try:
        rows = [torch.autograd.grad(score, images, retain_graph=True, allow_unused=True)[0] for score in scores]
    except RuntimeError as error:
        raise NoGradientError(f"its backward pass fails: {str(error).splitlines()[0]}") from error
    if all(row is None for row in rows):
        raise NoGradientError("no gradient comes back: the scores need one, but not from the images")
    return torch.stack([torch.zeros_like(images) if row is None else row for row in rows])


def reward_fault(gradients: Tensor) -> str:
    """The fault of `score_gradients` in words, "" if there is none."""
    if not bool(gradients.isfinite().all()):
        return "its gradient holds NaN or infinite values"
    norms = gradients.flatten(2).norm(dim=2).cpu()
    own = norms.diagonal()
    zero = [str(i) for i in range(len(own)) if own[i] == 0]
    cross = (norms - own.diag()).max() / own.max().clamp_min(torch.finfo(own.dtype).tiny)
    if cross > CROSS_TALK:
        return (
            f"the score of an image has a gradient at the other images of the batch ({float(cross):.2g} of the own; a "
            "mean over the batch, or batch normalisation in training mode?)"
        )
    if zero:
        return f"the gradient is zero everywhere for image {', '.join(zero)} of {len(own)} (rounded, or saturated?)"
    return ""


def trial(scorer: Scorer, count: int, side: int) -> tuple[Tensor, dict[str, Any]]:
    """Pictures to try a scorer on, in its range and on its device: slightly blurred and noisy ones, and its inputs.

    Returns:
        Images `(count, 3, side, side)`, and `reference` (the clean pictures) and `prompt` where the scorer needs them.
    """
    generator = torch.Generator().manual_seed(0)
    clean = dead_leaves(count, side, generator=generator)
    images = degrade(degrade(clean, "blur", 1), "noise", 1, generator=generator)
    device = scorer.device or torch.device("cpu")
    return from_unit(images, scorer.value_range).to(device), inputs_for(scorer, clean.to(device))


def inputs_for(scorer: Scorer, clean: Tensor) -> dict[str, Any]:
    """The inputs that a scorer needs beside images that came from `clean` `(N, C, H, W)` in [0, 1]."""
    available = {"reference": from_unit(clean, scorer.value_range), "prompt": ["a photograph"] * len(clean)}
    return {name: available[name] for name in scorer.inputs}


def from_unit(images: Tensor, value_range: Range) -> Tensor:
    """Images in [0, 1], mapped to the declared range: the inverse of `to_unit`."""
    low, high = value_range
    return images if (low, high) == (0.0, 1.0) else images * (high - low) + low


def pair_of(images: Tensor, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The first two images, in float32, with their inputs; a single one is joined by its mirror image."""
    prompt = inputs.get("prompt")
    pairs = {"images": images, **{name: value for name, value in inputs.items() if name == "reference"}}
    for name, values in pairs.items():
        values = values.detach()[:2]
        values = values if values.dtype == torch.uint8 else values.float()
        pairs[name] = values if len(values) == 2 else torch.cat([values, values.flip(-1)])
    out: dict[str, Any] = {"reference": pairs["reference"]} if "reference" in pairs else {}
    if prompt is not None:
        out["prompt"] = (list(prompt) * 2)[:2]
    return pairs["images"], out


def _smallest(scorer: Scorer) -> tuple[Tensor, dict[str, Any]]:
    """Trial pictures of the first size, in colour or grey, that the scorer takes."""
    refusal: Exception | None = None
    for side, grey in itertools.product(SIDES, (False, True)):
        images, inputs = trial(scorer, 2, side)
        if grey:
            images = images.mean(1, keepdim=True)
            inputs = {k: v.mean(1, keepdim=True) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        try:
            with torch.no_grad():
                scorer(images, **inputs)
        except (ValueError, RuntimeError, AssertionError, IndexError, TypeError) as error:
            refusal = refusal or error
            continue
        return images, inputs
    raise ValueError(f"{scorer.name} scores none of the trial pictures of {SIDES} pixels: {refusal}")
