"""Asymmetric generalised Gaussian (AGGD): the moment estimate behind NIQE and BRISQUE, with its true gradient.

    density(x) ~ exp(-(-x / left)^alpha) for x < 0, exp(-(x / right)^alpha) for x >= 0
    s_l = sqrt(mean x^2 | x < 0)      s_r = sqrt(mean x^2 | x > 0)      g = s_l / s_r
    R = (mean |x|)^2 / mean x^2 * (g^3 + 1)(g + 1) / (g^2 + 1)^2
    rho(alpha) = Gamma(2/alpha)^2 / (Gamma(1/alpha) Gamma(3/alpha)) = R    is solved for alpha in [0.2, 10]
    left = s_l sqrt(Gamma(1/alpha) / Gamma(3/alpha)), right likewise
    mean = (right - left) Gamma(2/alpha) / Gamma(1/alpha)

rho is increasing, so the solution is a look-up, not the usual 9801-way argmin, which has no gradient.

Sources: Lasmar, Stitou, Berthoumieu 2009 (the estimate); Mittal, Soundararajan, Bovik 2013 (its use in NIQE).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_ALPHA, MAX_ALPHA = 0.2, 10.0
_NODES = 2048


class AGGD(NamedTuple):
    """Parameters of asymmetric generalised Gaussians, each of the shape `(...)` of the estimated signals."""

    alpha: Tensor
    left: Tensor
    right: Tensor
    mean: Tensor


class SideMoments(NamedTuple):
    """What the estimate needs of a signal, each a mean over all its values, zeros included.

    Squares of the values of each side, |x|, and the share of the values that lies on each side.
    """

    left_squares: Tensor
    right_squares: Tensor
    absolute: Tensor
    left_share: Tensor
    right_share: Tensor


def aggd(values: Tensor, *, max_slope: float | None = None) -> AGGD:
    """Estimate an AGGD from each signal in the last axis; differentiable once in `values`, alpha included.

    A signal with an empty side (no negative or no positive value) takes the other side's deviation for both. A signal
    of zeros has alpha 10 and scales 0, without a gradient. Values are compared with 0 as they are: `values` is assumed
    to be centred where the model asks for it (MSCN coefficients and their products are not centred again).

    Args:
        values: floating `(..., L)`; float16 and bfloat16 are computed in float32.
        max_slope: limit of d alpha / d R in the backward pass. It reaches 520 at alpha = 10; losses may want 100.

    Returns:
        `AGGD(alpha, left, right, mean)`, each `(...)`: shape in [0.2, 10], scales of the two sides, and the mean.

    Raises:
        TypeError: `values` is not a floating tensor.
        ValueError: the last axis is missing or empty.

    Example:
        >>> gaussian = aggd(torch.randn(20000, generator=torch.Generator().manual_seed(0)))
        >>> round(gaussian.alpha.item(), 1), round(gaussian.left.item(), 1)
        (2.0, 1.4)
    """
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise TypeError(
            f"values must be a floating point tensor (..., L), got {getattr(values, 'dtype', type(values))}"
        )
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"values must have a non-empty last axis, got the shape {tuple(values.shape)}")
    with torch.autocast(values.device.type, enabled=False):
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        right = values.clamp_min(0)
        left = values - right
        moments = SideMoments(
            left.square().mean(-1),
            right.square().mean(-1),
            right.mean(-1) - left.mean(-1),
            -left.detach().sign().mean(-1),
            right.detach().sign().mean(-1),
        )
        return aggd_from_moments(moments, max_slope=max_slope)


def aggd_from_moments(moments: SideMoments, *, alpha_step: float = 0.0, max_slope: float | None = None) -> AGGD:
    """The AGGD estimate from side moments, element by element; see `aggd`, and `FeatureConfig` for `alpha_step`."""
    left_squares, right_squares, absolute, left_share, right_share = moments
    squares = left_squares + right_squares
    # Below this the reciprocals that the gradient needs would overflow.
    silent = squares < 1e8 * torch.finfo(squares.dtype).tiny
    no_left, no_right = left_squares == 0, right_squares == 0
    # Each masked operation sees a harmless operand, because 0 * inf in the backward pass would be NaN.
    left_variance = left_squares / torch.where(no_left, 1.0, left_share)
    right_variance = right_squares / torch.where(no_right, 1.0, right_share)
    left_variance = torch.where(no_left, right_variance, left_variance)
    right_variance = torch.where(no_right, left_variance, right_variance)
    left_std = torch.where(silent, 1.0, left_variance).sqrt()
    right_std = torch.where(silent, 1.0, right_variance).sqrt()
    # R is unchanged by g -> 1/g: the ratio below 1 keeps its cube from overflowing.
    ratio = torch.minimum(left_std, right_std) / torch.maximum(left_std, right_std)
    flatness = absolute / torch.where(silent, 1.0, squares).sqrt()
    factor = (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1).square()
    alpha = shape_from_ratio(flatness.square() * factor, max_slope=max_slope)
    if alpha_step:
        alpha = alpha + ((alpha / alpha_step).round() * alpha_step - alpha).detach()
    alpha = torch.where(silent, MAX_ALPHA, alpha)
    inverse = alpha.reciprocal()
    log_1, log_2, log_3 = torch.lgamma(inverse), torch.lgamma(2 * inverse), torch.lgamma(3 * inverse)
    to_scale = torch.where(silent, 0.0, torch.exp((log_1 - log_3) / 2))
    left, right = left_std * to_scale, right_std * to_scale
    return AGGD(alpha, left, right, (right - left) * torch.exp(log_2 - log_1))


def shape_from_ratio(ratio: Tensor, *, max_slope: float | None = None) -> Tensor:
    """Solve rho(alpha) = R for alpha: `(...)` -> `(...)` in [0.2, 10]; relative error below 1e-9 in float64.

    R outside [rho(0.2), rho(10)] = [0.0629, 0.7405] is clamped and has no gradient; inside, d alpha / d R =
    1 / rho'(alpha), at most `max_slope` if given. Differentiable once.

    Example:
        >>> shape_from_ratio(torch.tensor([0.5, 2 / torch.pi, 9.0])).round(decimals=3)
        tensor([ 1.,  2., 10.])
    """
    return _ShapeFromRatio.apply(ratio, max_slope)  # type: ignore[no-any-return]


class _ShapeFromRatio(torch.autograd.Function):
    """Cubic Hermite interpolation of the inverse of rho, whose values and slopes are known at the nodes."""

    @staticmethod
    def forward(ctx: Any, ratio: Tensor, max_slope: float | None) -> Tensor:
        nodes, alphas, slopes = _inverse_table(ratio.device, ratio.dtype)
        low, high = nodes[0], nodes[-1]
        inside = ratio.clamp(low, high)
        right = torch.searchsorted(nodes, inside.contiguous()).clamp_(1, _NODES - 1)
        left = right - 1
        start, width = nodes[left], nodes[right] - nodes[left]
        alpha_0, alpha_1 = alphas[left], alphas[right]
        slope_0, slope_1 = slopes[left] * width, slopes[right] * width
        t = (inside - start) / width
        rise = alpha_1 - alpha_0
        quadratic, cubic = 3 * rise - 2 * slope_0 - slope_1, slope_0 + slope_1 - 2 * rise
        if ctx.needs_input_grad[0]:
            slope = (slope_0 + t * (2 * quadratic + 3 * t * cubic)) / width
            if max_slope is not None:
                slope = slope.clamp_max(max_slope)
            ctx.save_for_backward(torch.where((ratio > low) & (ratio < high), slope, 0.0))
        return alpha_0 + t * (slope_0 + t * (quadratic + t * cubic))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


@functools.lru_cache(maxsize=8)
def _inverse_table(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """rho at alphas evenly spaced in log alpha, the alphas, and d alpha / d rho there."""
    with torch.inference_mode(False), torch.no_grad():  # cached tensors must be usable in later backward passes
        alphas = torch.linspace(math.log(MIN_ALPHA), math.log(MAX_ALPHA), _NODES, dtype=torch.float64).exp()
        inverse = 1 / alphas
        rho = torch.exp(2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse))
        digammas = torch.digamma(inverse) + 3 * torch.digamma(3 * inverse) - 4 * torch.digamma(2 * inverse)
        slopes = alphas.square() / (rho * digammas)
        return rho.to(device, dtype), alphas.to(device, dtype), slopes.to(device, dtype)
