"""Measurements that betray an exploited reward: of each image, of its change against the base, and of the set.

    details          luma minus its 3 x 3 mean; luma is the mean over the channels
    detail           log of the mean square of the details; detail_kurtosis: log of their kurtosis
    colourfulness    (var rg + var yb)^1/2 + 0.3 (mean rg^2 + mean yb^2)^1/2, rg = R - G, yb = (R + G)/2 - B

The kurtosis of details is nearly the same for all sharp photographs, whatever they show; noise and regular patterns
lower it, single wrong pixels raise it. Rounding to 8 bits is a noise, too: its variance is added to all details.

Sources: Zoran and Weiss, "Scale invariance and noise in natural images", 2009; Hasler and Süsstrunk, "Measuring
colourfulness in natural images", 2003.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks.functional.spectrum import (
    INVISIBLE,
    dark_share,
    high_frequency_share,
    power_spectrum,
    saturated_share,
    spectral_peak,
)
from qa_hooks.images import check_images, check_pair

Rows = dict[str, Tensor]  # one row for each image: (n,) by what is measured, and "features" (n, d)

CHANGE = "change/"  # before the name of a measurement: how far it is from what it is in the base's image
ROUNDING = INVISIBLE / 12  # variance of the noise that rounding to 8 bits is


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


def measure_tones(images: Tensor) -> Rows:
    """Brightness, contrast and details of images, and of RGB images their colours.

    Args:
        images: `(N, C, H, W)` in [0, 1].

    Returns:
        "brightness", "contrast" (the luma's standard deviation), "detail" and "detail_kurtosis" `(N,)`; of three
        channels also "red_green" and "yellow_blue", the means of these differences, and "colourfulness"; float32 on the
        CPU.

    Example:
        >>> grey = measure_tones(torch.full((1, 1, 8, 8), 0.25))
        >>> float(grey["brightness"]), float(grey["contrast"])
        (0.25, 0.0)
        >>> round(float(grey["detail_kurtosis"].exp()), 2)  # of rounding, which is taken as normal
        3.0
    """
    luma = images.mean(1, keepdim=True)
    smooth = F.avg_pool2d(F.pad(luma, (1,) * 4, mode="replicate"), 3, 1)
    squares = (luma - smooth).flatten(1).square()
    power = squares.mean(1)
    fourth = squares.square().mean(1) + 6 * power * ROUNDING + 3 * ROUNDING**2  # moments with a normal noise added
    power = power + ROUNDING
    rows = {
        "brightness": luma.mean((1, 2, 3)),
        "contrast": luma.flatten(1).std(1, correction=0),
        "detail": power.log(),
        "detail_kurtosis": (fourth / power.square()).log(),
    }
    if images.shape[1] == 3:
        red, green, blue = images.flatten(2).unbind(1)
        opponents = torch.stack([red - green, (red + green) / 2 - blue])  # (2, N, H W)
        means = opponents.mean(2)
        rows["red_green"], rows["yellow_blue"] = means
        rows["colourfulness"] = opponents.var(2, correction=0).sum(0).sqrt() + 0.3 * means.norm(dim=0)
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


def differences(rows: Rows, base: Rows) -> Rows:
    """What each measurement of `rows` has more than the same of `base`, under "change/{name}".

    Example:
        >>> differences({"brightness": torch.tensor([0.75])}, {"brightness": torch.tensor([0.25])})
        {'change/brightness': tensor([0.5000])}
    """
    return {CHANGE + key: row - base[key] for key, row in rows.items() if row.ndim == 1 and key in base}


def nearest_distance(features: Tensor) -> float:
    """The mean distance of the rows of `(n, d)` to the nearest other one: small where samples repeat each other.

    Example:
        >>> nearest_distance(torch.tensor([[0.0], [1.0], [3.0]]))  # the mean of 1, 1 and 2
        1.3333333333333333
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"a distance to the nearest needs at least 2 images, got {count}")
    rows = features.double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    distances.fill_diagonal_(float("inf"))
    return float(distances.min(1).values.mean())


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
