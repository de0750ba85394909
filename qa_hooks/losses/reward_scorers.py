"""Which scorers can be a reward, and how several become one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qa_hooks.scorers.scorer import Scorer, check_is_scorer

COMBINE = ("mean", "min")


def check_scorers(scorer: Any) -> list[Scorer]:
    """A scorer or a list of them, as a list.

    Raises:
        TypeError: not scorers.
        ValueError: one has no usable gradient; or of several, ranges that differ, a name twice, one without a scale.
    """
    scorers = list(scorer) if isinstance(scorer, (list, tuple)) else [scorer]
    if not scorers:
        raise ValueError("scorer is an empty list")
    for each in scorers:
        if not check_is_scorer(each).differentiable:
            raise ValueError(
                f"{each.name} has no usable gradient, so it cannot be a loss; monitor it with ScoreMonitor"
            )
    if len(scorers) == 1:
        return scorers
    ranges, names = {each.value_range for each in scorers}, [each.name for each in scorers]
    if len(ranges) > 1:
        raise ValueError(f"scorers of one loss must have one value_range, got {sorted(ranges)}")
    if len(set(names)) < len(names):
        raise ValueError(f"scorers of one loss must have different names, got {names}")
    for each in scorers:
        if _range_of(each) is None:
            raise ValueError(
                f"{each.name} has no score_range, so it shares no scale with "
                f"{', '.join(name for name in names if name != each.name)}; fit_calibration it on held-out real images "
                "and combine scorer.calibrated(), or add one ScoreLoss for each"
            )
    return scorers


def _range_of(scorer: Scorer) -> Any:
    """The range by which a score is mapped to [0, 1]: the possible one, or where a library says that scores lie."""
    return scorer.score_range or getattr(scorer, "nominal_range", None)


def combined(scorers: Sequence[Scorer], goodness: Tensor, how: str) -> Tensor:
    """Goodness `(S, N)` of S scorers, each mapped to [0, 1] by its range -> `(N,)`: their mean or minimum.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> f = lambda x: x.mean((1, 2, 3))
        >>> up = FunctionScorer(f, name="up", higher_is_better=True, score_range=(0.0, 10.0))
        >>> down = FunctionScorer(f, name="down", higher_is_better=False, score_range=(0.0, 1.0))
        >>> combined([up, down], torch.tensor([[9.0, 5.0], [-0.9, 0.0]]), "min")
        tensor([0.1000, 0.5000])
    """
    unit = []
    for scorer, values in zip(scorers, goodness, strict=True):
        low, high = _range_of(scorer)
        unit.append((values - (low if scorer.higher_is_better else -high)) / (high - low))
    stacked = torch.stack(unit)
    return stacked.mean(0) if how == "mean" else stacked.min(0).values
