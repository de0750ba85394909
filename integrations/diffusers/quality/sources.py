"""Scores for the dial from whatever a user has: tables, scorers with images, or a feature extractor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks.data import QualityTable
from qa_hooks.features import FeatureExtractor
from qa_hooks.images import to_uint8, to_unit
from qa_hooks.integrations.diffusers.quality.scores import QualityScores
from qa_hooks.scorers import Scorer
from qa_hooks.scorers.scorer import common_range
from qa_hooks.sources.batches import Source, image_batches
from qa_hooks.sources.samples import in_range

Measures = Scorer | FeatureExtractor | Sequence[Scorer | FeatureExtractor]


def resolve_scores(
    scores: Any, images: Source | None, *, units: QualityScores | None = None
) -> tuple[QualityScores, list[Any]]:
    """The units of the dial, and what measures images in them (nothing for tables).

    Args:
        scores: tables, scorers, an extractor or `QualityScores`.
        images: the training images, for scorers and extractors.
        units: where they are known already, from a file: then no images are needed.

    Raises:
        TypeError, ValueError: something else, scorers without images, a scorer that needs more than the image.
    """
    if isinstance(scores, QualityScores):
        return scores, []
    listed: list[Any] = list(scores) if isinstance(scores, list | tuple) else [scores]
    if listed and all(isinstance(part, QualityTable) for part in listed):
        if images is not None:
            raise ValueError("images= goes with scorers; a table has its images' scores already")
        return QualityScores.of_tables(listed), []
    measured = bool(listed) and all(isinstance(part, Scorer | FeatureExtractor) for part in listed)
    reference = any(isinstance(part, FeatureExtractor) for part in listed)
    if not measured or (reference and len(listed) > 1):
        raise TypeError(
            "scores must be a QualityTable or a list of them, scorers of qa_hooks, or one feature extractor, got "
            f"{[type(part).__name__ for part in listed]}: QualityTable.load(path) reads a file, "
            "create_scorer(name) makes a scorer (give images= with it)"
        )
    for part in listed:
        if getattr(part, "inputs", frozenset()):
            raise ValueError(f"{part.name} needs a {' and a '.join(sorted(part.inputs))}, not the image alone")
    facts = (
        [part.name for part in listed],
        [getattr(part, "higher_is_better", True) for part in listed],
        [part.fingerprint for part in listed],
    )
    if units is not None:
        named = replace(units, names=tuple(facts[0]), higher_is_better=tuple(facts[1]), fingerprints=tuple(facts[2]))
        return replace(named, reference=reference), listed
    if images is None:
        raise ValueError(f"give images=, the training images, so that the units of {facts[0]} are known")
    rows = [(positions, measure_images(listed, part).cpu()) for positions, part in image_batches(images)]
    values = torch.cat([part for _, part in rows])
    return QualityScores.of(values, *facts, reference=reference), listed


def measure_images(measures: Sequence[Any], images: Tensor) -> Tensor:
    """`(N, D)` raw scores of images, or features, without a gradient.

    Raises:
        ValueError: there is nothing to measure with.
    """
    if not measures:
        raise ValueError("this adapter was made of tables: give it scorers, or load it with scores=scorer")
    value_range = common_range([part for part in measures if isinstance(part, Scorer)])
    with isolated(), torch.no_grad():
        if isinstance(measures[0], FeatureExtractor):
            device = measures[0].mean.device
            rows: Tensor = measures[0](to_unit(to_uint8(images).to(device), (0.0, 1.0)))
            return rows
        columns = []
        for scorer in measures:
            own = images if scorer.device is None else images.to(scorer.device)
            columns.append(scorer(in_range(own, value_range)).to(images.device))
        return torch.stack(columns, 1)
