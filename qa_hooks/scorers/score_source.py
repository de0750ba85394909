"""Scores of many images: streamed, shared out over the processes; what `extract_features` is for features."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows, rank, together, world_size
from qa_hooks.features import Features
from qa_hooks.images import RangeGuard
from qa_hooks.scorers.scorer import CalibratedScorer, Scorer
from qa_hooks.sources.batches import Source, count_images, first_of_each, has_positions, image_batches, is_shared


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
) -> Scored:
    """Raw scores of every image; the work is divided among the processes as in `extract_features`.

    Args:
        scorer: one that scores images alone; they are clamped to its range.
        source: anything that `image_batches` takes.
        batch_size: images at a time.
        progress: show a bar (rank 0, terminals only).
        failures: collects `{position: message}` of files that cannot be read (of this process's share); without it
            the first one raises.

    Raises:
        ValueError: nothing in the source, broken files.
        RuntimeError: another process failed; the message is its own.
    """
    with together(), isolated():
        rows = _own_scores(scorer, source, batch_size, progress, failures)
    rows = gather_rows(rows)
    if not len(rows):
        raise ValueError("there is no readable image in the source")
    if has_positions(source):
        rows = rows[first_of_each(rows[:, 2])]
    rows = rows[rows[:, 1].argsort(stable=True)]
    return Scored(rows[:, 0].float(), rows[:, 1].long(), rows[:, 2].long())


def score_features(scorer: Any, features: Features) -> Tensor:
    """What a scorer that works in features, or its calibrated form, gives for images with these features: `(n,)`."""
    if isinstance(scorer, CalibratedScorer):
        fitted: Any = scorer.scorer
        raw = score_features(fitted, features)
        calibrated: Tensor = fitted.calibration(raw if fitted.higher_is_better else -raw)
        return calibrated
    with torch.no_grad():
        scores: Tensor = scorer.score_features(features)
    return scores.cpu().float()


def _own_scores(
    scorer: Scorer, source: Source, batch_size: int, progress: bool, failures: dict[int, str] | None
) -> Tensor:
    """Rows (score, part, position) of what this process has to do; float64 holds all three exactly."""
    from tqdm import tqdm

    shared, total, indices = is_shared(source), count_images(source), None
    check = RangeGuard(scorer.value_range)
    if shared and world_size() > 1 and total is not None:
        indices = range(rank(), total, world_size())
        total = len(indices)
    rows, device = [torch.zeros(0, 3, dtype=torch.float64)], device_of(scorer)
    hidden = None if progress and rank() == 0 else True  # None: where there is a terminal
    with tqdm(total=total, desc=f"scores ({scorer.name})", unit="image", disable=hidden) as bar:
        for chosen, images in image_batches(source, batch_size=batch_size, indices=indices, failures=failures):
            if images.is_floating_point():
                check(predictions={"images": images})
                images = images.clamp(*scorer.value_range)
            scores = scorer(images if device is None else images.to(device)).cpu().double()
            part = torch.full_like(scores, 0 if shared else rank())
            rows.append(torch.stack([scores, part, torch.tensor(chosen, dtype=torch.float64)], 1))
            bar.update(len(chosen))
    return torch.cat(rows)


def device_of(scorer: Scorer) -> torch.device | None:
    """Where a scorer's tensors are, also those of the networks it keeps; None when it has none."""
    for module in (scorer, *scorer._frozen):
        for tensor in (*module.buffers(), *module.parameters()):
            return tensor.device
        if module is not scorer and isinstance(module, Scorer):
            return device_of(module)
    return None
