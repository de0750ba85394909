"""Scores of many images: streamed, shared out over the processes; what `extract_features` is for features."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks.features import Features
from qa_hooks.images import RangeGuard
from qa_hooks.scorers.scorer import Scorer, uncalibrated
from qa_hooks.sources.batches import Source
from qa_hooks.sources.measuring import measure_source


class Scored(NamedTuple):
    """Scores of every image of a source, on every process.

    `scores`, `parts` and `positions` are `(n,)`, ascending in (part, position): the part is 0 for a source that all
    processes share, and the rank where each brought its own; the position is that in the source.
    """

    scores: Tensor
    parts: Tensor
    positions: Tensor


def score_source(
    scorer: Scorer,
    source: Source,
    *,
    batch_size: int = 64,
    progress: bool = True,
    failures: dict[int, str] | None = None,
    refusals: list[str] | None = None,
) -> Scored:
    """Raw scores of every image; the work is divided among the processes as in `measure_source`.

    Args:
        scorer: one that scores images alone; they are clamped to its range.
        source: anything that `image_batches` takes.
        batch_size: images at a time.
        progress: show a bar (rank 0, terminals only).
        failures: collects `{position: message}` of files that cannot be read (of this process's share); without it
            the first one raises.
        refusals: collects why the scorer refused images (of this process's share), whose scores are NaN; without it the
            first refusal raises.

    Raises:
        ValueError: nothing in the source, broken files.
        RuntimeError: another process failed; the message is its own.
    """
    check, device = RangeGuard(scorer.value_range), scorer.device

    def score(images: Tensor) -> Tensor:
        if images.is_floating_point():
            check(predictions={"images": images})
            images = images.clamp(*scorer.value_range)
        images = images if device is None else images.to(device)
        if refusals is None:
            scores: Tensor = scorer(images)
            return scores
        scores, refused = score_each(scorer, images)
        refusals.extend(refused.values())
        return scores.float()

    reading: dict[str, Any] = {"batch_size": batch_size, "progress": progress, "failures": failures}
    reading |= {"what": f"scores ({scorer.name})", "nothing": lambda: torch.zeros(0, device="cpu", dtype=torch.float32)}
    found = measure_source(source, score, **reading)
    order = found.parts.argsort(stable=True)
    return Scored(*(part[order] for part in found))


def score_each(scorer: Scorer, images: Tensor, **inputs: Any) -> tuple[Tensor, dict[int, str]]:
    """The scores of a block. An image that the scorer refuses, such as one too small for it, costs its own score alone.

    Args:
        scorer: any scorer.
        images: `(N, C, H, W)`.
        inputs: what it takes beside them, one for each image.

    Returns:
        `(N,)` float64 on the CPU, NaN where the scorer refused; and why it did, by the image's place in the block.
    """
    try:
        return scorer(images, **inputs).detach().cpu().double(), {}
    except Exception as error:  # scorers may be anybody's code
        if len(images) == 1:
            why = " ".join(str(error).split())
            why = why if why and isinstance(error, ValueError) else f"{type(error).__name__}: {why}".removesuffix(": ")
            return torch.full((1,), math.nan, dtype=torch.float64, device="cpu"), {0: why}
    scores: list[Tensor] = []
    refused: dict[int, str] = {}
    for index in range(len(images)):
        one = slice(index, index + 1)
        score, found = score_each(scorer, images[one], **{name: part[one] for name, part in inputs.items()})
        scores.append(score)
        if found:
            refused[index] = first_refusal(found)
    return torch.cat(scores), refused


def first_refusal(refused: Mapping[int, str]) -> str:
    """Why the first of the images was refused, or ""."""
    return next(iter(refused.values()), "")


def score_features(scorer: Any, features: Features) -> Tensor:
    """What a scorer that works in features, or its calibrated form, gives for images with these features: `(n,)`."""
    fitted = uncalibrated(scorer)
    with torch.no_grad():
        scores: Tensor = fitted.score_features(features).cpu().float()
    if fitted is scorer:
        return scores
    calibrated: Tensor = fitted.calibration(scores if fitted.higher_is_better else -scores)
    return calibrated
