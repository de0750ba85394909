"""NIQE's features: 18 per scale and block that describe how natural the local contrast of a grey image is.

    MSCN:  m = (I - mu) / (sigma + C),  mu = w * I,  sigma^2 = w * I^2 - mu^2   (w Gaussian, replicate border)
    per block: AGGD(m) -> alpha, (left + right) / 2;  for each neighbour of (0,1), (1,0), (1,1), (1,-1), wrapped around
    within the block: AGGD(m * shifted m) -> alpha, mean, left, right;  then the same at half size.

The gradient is the true one, alpha included. The features jump where a coefficient changes its sign (the side counts
do), so compare with finite differences only at tiny steps and in float64.

Source: Mittal, Soundararajan, Bovik, "Making a Completely Blind Image Quality Analyzer", 2013, and its MATLAB release.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qa_hooks.functional.generalized_gaussian import MIN_ALPHA, aggd_from_moments
from qa_hooks.functional.mscn import Normalization, block_moments, sigma_map, to_blocks
from qa_hooks.functional.numerics import check_reverse_mode
from qa_hooks.functional.resize import halve
from qa_hooks.images import check_images

FEATURES_PER_SCALE = 18
MIN_SIDE = 16
MAX_WINDOW = 255
SCALE_AT_MIN_ALPHA = math.exp((math.lgamma(1 / MIN_ALPHA) - math.lgamma(3 / MIN_ALPHA)) / 2)  # over the deviation


@dataclass(frozen=True)
class FeatureConfig:
    """How features are computed; a pristine model belongs to exactly one configuration (compare with `==`).

    The defaults are for critic gradients, brought to unit RMS; `FeatureConfig.niqe()` is the original NIQE on a 0..255
    scale, `FeatureConfig.qagan()` what the QAGAN authors compute on gradients.

    Attributes:
        window, sigma: taps (odd) and deviation of the Gaussian.
        constant: C of the MSCN denominator, in the units of the images; positive.
        divisor: "std": sigma + C; "var": sigma^2 + C.
        block: side of the blocks, one row of features each; None: the whole map is one row.
        scales: number of scales, each half the size of the one before.
        downscale: "mean" of 2 x 2 pixels, or "imresize", MATLAB's antialiased bicubic.
        alpha_step: the MATLAB release searches alpha on a grid of step 0.001, which is worth 0.005 in its score; 0 is
            exact. The gradient is the exact one (straight through) with either.

    Example:
        >>> FeatureConfig.from_dict(FeatureConfig.niqe().to_dict()) == FeatureConfig.niqe(block=96)
        True
    """

    window: int = 7
    sigma: float = 7 / 6
    constant: float = 1.0
    divisor: str = "std"
    block: int | None = None
    scales: int = 2
    downscale: str = "mean"
    alpha_step: float = 0.0

    def __post_init__(self) -> None:
        if not _is_int(self.window) or not 3 <= self.window <= MAX_WINDOW or self.window % 2 == 0:
            raise ValueError(f"window must be an odd integer from 3 to {MAX_WINDOW}, got {self.window!r}")
        for name in ("sigma", "constant"):
            value = getattr(self, name)
            if not _is_number(value) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive finite number, got {value!r}")
        if not _is_number(self.alpha_step) or not 0 <= self.alpha_step <= 0.1:
            raise ValueError(f"alpha_step must be a number from 0 to 0.1, got {self.alpha_step!r}")
        if self.divisor not in ("std", "var"):
            raise ValueError(f"divisor must be 'std' or 'var', got {self.divisor!r}")
        if self.downscale not in ("mean", "imresize"):
            raise ValueError(f"downscale must be 'mean' or 'imresize', got {self.downscale!r}")
        if not _is_int(self.scales) or not 1 <= self.scales <= 4:
            raise ValueError(f"scales must be an integer from 1 to 4, got {self.scales!r}")
        step = 2 ** (self.scales - 1)
        if self.block is not None and (not _is_int(self.block) or self.block < MIN_SIDE or self.block % step):
            raise ValueError(f"block must be None or a multiple of {step} of at least {MIN_SIDE}, got {self.block!r}")

    @classmethod
    def niqe(cls, block: int = 96) -> FeatureConfig:
        """The original NIQE's features, for grey images on a 0..255 scale, its grid search for alpha included."""
        return cls(block=block, downscale="imresize", alpha_step=0.001)

    @classmethod
    def qagan(cls) -> FeatureConfig:
        """What the QAGAN authors' code means to compute on gradient maps: 3 taps, sigma 0.5, divided by var + 1."""
        return cls(window=3, sigma=0.5, divisor="var")

    @property
    def normalization(self) -> Normalization:
        """The part of the configuration that makes the MSCN coefficients."""
        return Normalization(self.window, self.sigma, self.constant, self.divisor)

    @property
    def features(self) -> int:
        """Features per row: 18 for each scale."""
        return FEATURES_PER_SCALE * self.scales

    @property
    def smallest_side(self) -> int:
        """The smallest height and width that have features."""
        return self.block or MIN_SIDE

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dictionary for `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FeatureConfig:
        """The configuration that `to_dict` described; `ValueError` for unknown keys or values."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown NIQE feature settings: {', '.join(unknown)}")
        return cls(**values)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def niqe_features(images: Tensor, config: FeatureConfig | None = None, *, max_slope: float | None = None) -> Tensor:
    """NIQE's features of each block of each image, differentiable once.

    A flat block has alpha = 10 and zeros elsewhere, and no gradient; `valid_rows` tells which blocks are flat. Images
    do not influence each other. Images in float64 are computed in float64, all others in float32, whatever the autocast
    state.

    Args:
        images: grey `(N, 1, H, W)`, in the units of `config.constant` (NIQE: 0..255). Sides are cropped to a multiple
            of the block from the top left.
        config: default `FeatureConfig()`.
        max_slope: limits d alpha / d R in the gradient, see `aggd`; the values do not depend on it.

    Returns:
        `(N, blocks, 18 * scales)`; blocks in row-major order, 1 when `config.block` is None. Per scale: alpha and mean
        scale of the coefficients; then alpha, mean, left and right scale of the products of each orientation.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not `(N, 1, H, W)`, or smaller than one block (16 for `block=None`).

    Example:
        >>> niqe_features(torch.rand(2, 1, 32, 32)).shape
        torch.Size([2, 1, 36])
        >>> niqe_features(255 * torch.rand(2, 1, 100, 200), FeatureConfig.niqe()).shape
        torch.Size([2, 2, 36])
    """
    config = config or FeatureConfig()
    sums, shares = _moments(images, config)
    with torch.autocast(sums.device.type, enabled=False):
        estimates = aggd_from_moments(sums, shares, alpha_step=config.alpha_step, max_slope=max_slope)
        return _in_order(estimates).reshape(images.shape[0], -1, config.features)


def release_features(images: Tensor, config: FeatureConfig) -> tuple[Tensor, Tensor]:
    """`niqe_features` as the MATLAB release computes them where a side of an AGGD is empty, as in flat blocks.

    The search for alpha then compares NaN and ends at the least value of its grid, 0.2; what the empty side is needed
    for is NaN, and the other side has the scale that belongs to this alpha. A block can be flat at one scale only.

    Args:
        images: as in `niqe_features`.
        config: of the features.

    Returns:
        `(N, blocks, 18 * scales)` features, with 0 in place of NaN, and the same shape of bool: False for the NaN.

    Example:
        >>> features, present = release_features(torch.zeros(1, 1, 96, 96), FeatureConfig.niqe())
        >>> features[present].unique().tolist(), int(present.sum())
        ([0.20000000298023224], 10)
    """
    sums, shares = _moments(images, config)
    with torch.autocast(sums.device.type, enabled=False):
        estimates = aggd_from_moments(sums, shares, alpha_step=config.alpha_step)
        full = shares > 0
        whole = full.all(0)
        alpha = torch.where(whole, estimates[0], MIN_ALPHA)
        variances = torch.where(full & ~whole, sums[:2] / shares.clamp_min(torch.finfo(shares.dtype).tiny), 1.0)
        scales = torch.where(whole, estimates[2:], variances.sqrt() * SCALE_AT_MIN_ALPHA)
        estimates = torch.stack([alpha, estimates[1], *scales])
        present = torch.stack([torch.ones_like(whole), whole, *full])
        shape = images.shape[0], -1, config.features
        return _in_order(estimates).reshape(shape), _in_order(present.to(estimates)).reshape(shape) == 1


def _moments(images: Tensor, config: FeatureConfig) -> tuple[Tensor, Tensor]:
    """The side moments of all blocks, by scale and signal, as `aggd_from_moments` takes them."""
    images = _prepare(images, config)
    check_reverse_mode("niqe_features", images)
    with torch.autocast(images.device.type, enabled=False):
        moments = []
        scale_images, block = images, config.block
        for scale in range(config.scales):
            if scale:
                scale_images = halve(scale_images, antialias=config.downscale == "imresize")
                block = block // 2 if block else None
            moments.append(block_moments(scale_images, config.normalization, block))
        sums, shares = (torch.stack(parts, dim=1) for parts in zip(*moments, strict=True))
        return sums, shares


def valid_rows(features: Tensor) -> Tensor:
    """`(..., 18 * scales)` features -> `(...)` bool: False for rows of blocks that are flat at some scale.

    A row with a NaN is not flat: it stays, so that the NaN is seen in what is computed from the rows.

    Example:
        >>> valid_rows(niqe_features(torch.stack([torch.rand(1, 32, 32), torch.ones(1, 32, 32)])))
        tensor([[ True],
                [False]])
    """
    return (features[..., 1::FEATURES_PER_SCALE] != 0).all(-1)


@torch.no_grad()
def block_sharpness(images: Tensor, config: FeatureConfig) -> Tensor:
    """Mean of the sigma map of each block at full size: grey `(N, 1, H, W)` -> `(N, blocks)`, as in `niqe_features`.

    Models of pristine images are fitted on the sharp blocks only (Mittal et al. 2013).
    """
    images = _prepare(images, config)
    with torch.autocast(images.device.type, enabled=False):
        sigma = sigma_map(images, config.normalization)
        return to_blocks(sigma, config.block).mean((1, 2)).reshape(images.shape[0], -1)


def _prepare(images: Tensor, config: FeatureConfig) -> Tensor:
    """Check, choose the precision, crop to whole blocks: `(N, 1, H, W)` -> `(N, h, w)`."""
    check_images("images", images)
    channels, height, width = images.shape[1:]
    if channels != 1:
        raise ValueError(f"NIQE features are computed on grey images (N, 1, H, W), got {channels} channels")
    if min(height, width) < config.smallest_side:
        raise ValueError(
            f"images of {height} x {width} pixels are too small for NIQE features with block={config.block}: "
            f"both sides must be at least {config.smallest_side}"
        )
    if images.dtype not in (torch.float32, torch.float64):
        images = images.float()
    images = images[:, 0]
    block = config.block
    return images[:, : height // block * block, : width // block * block] if block else images


def _in_order(estimates: Tensor) -> Tensor:
    """Estimates `(4, scales, 5, rows)` of the coefficients and their four products -> features `(rows, 18 scales)`."""
    alpha, _, scales, products = estimates.permute(1, 2, 0, 3).flatten(1, 2).split([1, 1, 2, 16], dim=1)
    return torch.cat([alpha, scales.mean(1, keepdim=True), products], dim=1).flatten(0, 1).t()
