"""What a scorer costs on the images that it is to score."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from qa_hooks._base.isolation import isolated
from qa_hooks.images import load_image
from qa_hooks.ratings.scoring import Stimulus
from qa_hooks.scorers import Scorer

IMAGES, RUNS = 4, 3


def milliseconds(scorer: Scorer, stimuli: Sequence[Stimulus], device: str | torch.device | None = None) -> float:
    """The fastest of three runs on four of the images, per image, after one that does not count; NaN where it fails."""
    device = device or scorer.device or torch.device("cpu")
    images, inputs, size = [], [], None
    for stimulus in stimuli:
        if "reference" in scorer.inputs and stimulus.reference is None:
            continue
        try:
            image = load_image(stimulus.image)
            reference = load_image(stimulus.reference) if "reference" in scorer.inputs and stimulus.reference else image
        except Exception:  # parsers raise what they like, and the scoring has told it
            continue
        size = size or image.shape
        if image.shape == size == reference.shape:
            images.append(image)
            inputs.append((reference, stimulus.prompt))
        if len(images) == IMAGES:
            break
    if not images:
        return float("nan")
    batch = torch.stack(images).to(device)
    given: dict[str, Any] = {}
    if "reference" in scorer.inputs:
        given["reference"] = torch.stack([reference for reference, _ in inputs]).to(device)
    if "prompt" in scorer.inputs:
        given["prompt"] = [prompt for _, prompt in inputs]
    times = []
    with isolated(scorer), torch.no_grad():
        for _ in range(RUNS + 1):
            begun = time.perf_counter()
            try:
                scorer(batch, **given).tolist()  # which waits for a GPU
            except Exception:  # scorers may be anybody's code; one that is told of a failure has no cost
                return float("nan")
            times.append(time.perf_counter() - begun)
    return 1000 * min(times[1:]) / len(images)
