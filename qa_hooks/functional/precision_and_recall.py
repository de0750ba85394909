"""How much of what is generated looks real, and how much of reality is generated: precision, recall, density, coverage.

With B_k(x) the ball around x that reaches to its k-th nearest neighbour in its own set, x itself not counted:

    precision = mean_g [ g in some B_k(r) ]             recall   = mean_r [ r in some B_k(g) ]
    density   = mean_g |{ r : g in B_k(r) }| / k        coverage = mean_r [ some g in B_k(r) ]

A distance equal to the radius is inside. Precision and recall come from an outlier-sensitive union of balls; density
and coverage count on the real side only, so one generated outlier cannot win recall.

Source: Kynkaanniemi et al., "Improved Precision and Recall Metric for Assessing Generative Models", 2019 (VGG16
features, n = 50,000, k = 3); Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.neighbours import (
    CHUNK,
    Bank,
    exact_distances,
    neighbour_indices,
    prepare_bank,
    rounding_error,
    squared_distances,
)


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1], higher is better; density may exceed 1."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Precision, recall, density and coverage of two sets of features.

    Exact: pairs so near a radius that rounding could decide are compared by differences in float64. All values depend
    on the sizes of the sets, so compare equal ones only.

    Args:
        real: `(n, d)`.
        fake: `(m, d)`.
        k: neighbours that set the radius; each set needs more than k rows.

    Raises:
        ValueError: shapes that do not fit, too few rows, non-finite features.

    Example:
        >>> x = torch.arange(8.0)[:, None]
        >>> precision_recall(x, x[:4], k=1)
        PrecisionRecall(precision=1.0, recall=0.625, density=2.75, coverage=0.625)
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise ValueError(f"features must be (n, d) and (m, d), got {tuple(real.shape)} and {tuple(fake.shape)}")
    check_count("k", k)
    for name, values in (("real", real), ("fake", fake)):
        if values.shape[0] <= k:
            raise ValueError(f"{name} needs more than k={k} rows, got {values.shape[0]}")
    dtype = torch.promote_types(real.dtype, fake.dtype)
    with torch.no_grad():
        banks = {"real": prepare_bank(real.to(dtype)), "fake": prepare_bank(fake.to(dtype))}
        radii = {name: _radii(bank, k) for name, bank in banks.items()}
        return _counts(banks, radii, k)


def _radii(bank: Bank, k: int) -> Tensor:
    """`(m,)` float64: the distance of each row to its k-th nearest other."""
    indices = neighbour_indices(bank.values, bank, k, exclude_self=True)[:, -1:]
    step = max(1, CHUNK // bank.values.shape[1])
    pairs = zip(bank.values.split(step), indices.split(step), strict=True)
    return torch.cat([exact_distances(rows, bank.values, found)[:, 0] for rows, found in pairs])


def _counts(banks: dict[str, Bank], radii: dict[str, Tensor], k: int) -> PrecisionRecall:
    real, fake = banks["real"].values, banks["fake"].values
    balls_around_fake = torch.zeros(len(fake), dtype=torch.int64, device=fake.device)
    covered, recalled = 0, 0
    for rows in torch.arange(len(real), device=real.device).split(max(1, CHUNK // len(fake))):
        centred = real[rows] - banks["fake"].origin
        squared = squared_distances(centred, banks["fake"], slice(None))
        error = rounding_error(centred, banks["fake"]).max()
        limits = {"real": radii["real"][rows][:, None], "fake": radii["fake"][None]}
        for name, limit in limits.items():
            low, high = ((limit.square() + sign * error).to(squared) for sign in (-1, 1))
            inside = squared <= high
            close = inside & (squared >= low)
            for pairs in close.nonzero().split(max(1, CHUNK // real.shape[1])) if close.any() else ():
                row, column = pairs.unbind(1)
                distance = exact_distances(real[rows[row]], fake, column[:, None])[:, 0]
                # Differences are exact, their sum is not to the last digit.
                exact = limit.broadcast_to(inside.shape)[row, column] * (1 + 1e-12)
                inside[row, column] = (distance <= exact).to(inside.device)
            if name == "real":
                balls_around_fake += inside.sum(0)
                covered += int((inside.sum(1) > 0).sum())
            else:
                recalled += int((inside.sum(1) > 0).sum())
    return PrecisionRecall(
        precision=float((balls_around_fake > 0).double().mean()),
        recall=recalled / len(real),
        density=float(balls_around_fake.double().mean()) / k,
        coverage=covered / len(real),
    )
