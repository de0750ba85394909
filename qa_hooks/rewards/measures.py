"""Measurements that betray an exploited reward: of each image, of its change against the base, and of the set."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qa_hooks.functional.spectrum import (
    dark_share,
    high_frequency_share,
    power_spectrum,
    saturated_share,
    spectral_peak,
)
from qa_hooks.images import check_images, check_pair

Rows = dict[str, Tensor]  # one row for each image: (n,) by what is measured, and "features" (n, d)


def measure_images(images: Tensor, extractor: nn.Module) -> Rows:
    """Measurements of images that need no other images.

    Args:
        images: `(N, C, H, W)` in [0, 1]; what is not finite is counted and taken as 0.
        extractor: gives features `(N, d)`; the seeded random network sees textures and needs no download.

    Returns:
        "high_frequency", "peak", "dark", "saturated" and "nonfinite" `(N,)`, "features" `(N, d)`; float32 on the CPU.

    Raises:
        TypeError, ValueError: no such images.

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> sorted(measure_images(torch.rand(2, 3, 32, 32), create_extractor("random")))
        ['dark', 'features', 'high_frequency', 'nonfinite', 'peak', 'saturated']
    """
    check_images("images", images)
    broken = ~torch.isfinite(images).flatten(1).all(1)
    images = torch.nan_to_num(images, 0.0, 0.0, 0.0)
    power = power_spectrum(images)
    rows = {
        "high_frequency": high_frequency_share(power),
        "peak": spectral_peak(power).ratio,
        "dark": dark_share(images),
        "saturated": saturated_share(images),
        "nonfinite": broken,
        "features": extractor(images),
    }
    return {key: row.float().cpu() for key, row in rows.items()}


def measure_change(images: Tensor, base: Tensor, features: Tensor, base_features: Tensor) -> Rows:
    """Measurements of the change against the base model's images of the same inputs, or against the run's first look.

    Args:
        images, base: `(N, C, H, W)` in [0, 1], pairs.
        features, base_features: `(N, d)`, of the two.

    Returns:
        "change_peak", the spectral peak of the difference, and "drift", the distance of the features; `(N,)`.

    Raises:
        TypeError, ValueError: no such images, or pairs of different shapes.
    """
    check_pair("images", check_images("images", images), "base", check_images("base", base))
    difference = torch.nan_to_num(images, 0.0, 0.0, 0.0) - torch.nan_to_num(base, 0.0, 0.0, 0.0)
    rows = {"change_peak": spectral_peak(power_spectrum(difference)).ratio}
    rows["drift"] = (features.to(images.device) - base_features.to(images.device)).norm(dim=1)
    return {key: row.float().cpu() for key, row in rows.items()}


def mean_distance(features: Tensor) -> float:
    """The mean distance of two different rows of `(n, d)`: how far a batch is spread.

    Example:
        >>> round(mean_distance(torch.tensor([[0.0], [1.0], [2.0]])), 4)  # the mean of 1, 1 and 2
        1.3333
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"a spread needs at least 2 images, got {count}")
    rows = features.double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # equal rows: exactly 0
    return float(distances.sum()) / (count * (count - 1))
