"""Score images in batches of one size, window by window; a bad image does not spoil the others of its batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from qa_hooks._base.checks import range_hint
from qa_hooks._base.isolation import isolated
from qa_hooks.folders.scoring.tiles import PiecedImage
from qa_hooks.images import RangeGuard
from qa_hooks.scorers import Scorer
from qa_hooks.scorers.score_source import score_each
from qa_hooks.sources.windows import fitting, groups, windows

Piece = tuple[PiecedImage, int]


def scored_windows(
    images: Iterable[PiecedImage], named: Mapping[str, Scorer], batch_size: int, device: str | torch.device | None
) -> Iterator[list[PiecedImage]]:
    """The images with their scores, or with the problem that they had; a few batches of them at a time."""
    guards = {name: RangeGuard(scorer.value_range) for name, scorer in named.items()}
    for window in windows(images, _measure, batch_size):
        with isolated(*named.values()):
            for name, scorer in named.items():
                _score_window(window, name, scorer, guards[name], batch_size, device)
        yield window


def _measure(image: PiecedImage) -> tuple[int, int]:
    return max(1, len(image.pieces)), sum(piece.shape[-2] * piece.shape[-1] for piece in image.pieces)


def _score_window(
    window: list[PiecedImage],
    name: str,
    scorer: Scorer,
    guard: RangeGuard,
    batch_size: int,
    device: str | torch.device | None,
) -> None:
    """Fill in one scorer's scores of all pieces, in batches of one size."""
    with_reference = "reference" in scorer.inputs

    def kind(piece: Piece) -> tuple[tuple[int, ...], Any]:
        image, index = piece
        both = (image.pieces[index], image.references[index]) if with_reference else (image.pieces[index],)
        return tuple(both[0].shape[1:]), tuple((len(part), part.dtype) for part in both)

    fit = []
    for image in window:
        image.scores[name] = [math.nan] * len(image.pieces)
        try:
            _check_image(image, scorer, guard)
        except ValueError as error:
            image.problem = f"{name}: {error}"
        else:
            fit.append(image)
    for group in groups(((image, index) for image in fit for index in range(len(image.pieces))), kind):
        size = fitting(batch_size, *kind(group[0])[0])
        for start in range(0, len(group), size):
            _score_batch(group[start : start + size], name, scorer, device)


def _check_image(image: PiecedImage, scorer: Scorer, guard: RangeGuard) -> None:
    """`ValueError` where an image that was read lacks what the scorer needs, or lies in another range."""
    if not image.pieces:
        return
    if "reference" in scorer.inputs and not image.references:
        raise ValueError(image.alone)
    if "prompt" in scorer.inputs and image.prompt is None:
        raise ValueError("there is no prompt")
    references = image.references if "reference" in scorer.inputs else [None] * len(image.pieces)
    for piece, reference in zip(image.pieces, references, strict=True):
        if reference is not None:
            guard.check_data("its reference", reference)
        if piece.dtype != torch.uint8:
            low, high = guard.extrema("the image", piece)
            if guard.far_outside(low, high):
                raise ValueError(
                    f"its values lie in [{low:.4g}, {high:.4g}], far outside value_range=({guard.value_range[0]:g}, "
                    f"{guard.value_range[1]:g}): declare {range_hint(low, high)}, or convert them"
                )
            guard.doubt("an image", low, high)


def _score_batch(batch: list[Piece], name: str, scorer: Scorer, device: str | torch.device | None) -> None:
    """Score one batch; one that is refused image by image, so that only the guilty are without a score."""
    device = device or scorer.device or torch.device("cpu")
    inputs: dict[str, Any] = {}
    pieces = torch.stack([image.pieces[index] for image, index in batch]).to(device)
    if "reference" in scorer.inputs:
        reference = torch.stack([image.references[index] for image, index in batch]).to(device)
        channels = max(pieces.shape[1], reference.shape[1])  # a grey image and its colour reference, or the reverse
        pieces, inputs["reference"] = (t.expand(-1, channels, -1, -1) for t in (pieces, reference))
    if "prompt" in scorer.inputs:
        inputs["prompt"] = [image.prompt for image, _ in batch]
    scores, refused = score_each(scorer, pieces, **inputs)
    for place, ((image, index), score) in enumerate(zip(batch, scores.tolist(), strict=True)):
        if place in refused:
            image.problem = f"{name}: {refused[place]}"
        else:
            image.scores[name][index] = score
