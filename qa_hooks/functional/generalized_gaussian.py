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
import torch.nn.functional as F
from torch import Tensor

from qa_hooks.functional.numerics import check_reverse_mode, differentiable_once

ONCE = "the AGGD estimate is differentiable once; keep it out of what is differentiated twice (`.detach()` it there)"
MIN_ALPHA, MAX_ALPHA = 0.2, 10.0
_NODES = 2048


class AGGD(NamedTuple):
    """Parameters of asymmetric generalised Gaussians, each of the shape `(...)` of the estimated signals."""

    alpha: Tensor
    left: Tensor
    right: Tensor
    mean: Tensor


def aggd(values: Tensor, *, max_slope: float | None = None) -> AGGD:
    """Estimate an AGGD from each signal in the last axis; differentiable once in `values`, alpha included.

    A signal with an empty side (no negative or no positive value) takes the other side's deviation for both sides. A
    signal of zeros has alpha 10 and scales 0, and no gradient. The two sides meet at 0: values are not centred here, so
    centre them first where the model asks for it (NIQE's coefficients and their products are not centred).

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
    check_reverse_mode("aggd", values)
    with torch.autocast(values.device.type, enabled=False):
        if values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        right = values.clamp_min(0)
        left = values - right
        sums = torch.stack([left.square().mean(-1), right.square().mean(-1), right.mean(-1) - left.mean(-1)])
        shares = torch.stack([-left.detach().sign().mean(-1), right.detach().sign().mean(-1)])
        alpha, mean, left_scale, right_scale = aggd_from_moments(sums, shares, max_slope=max_slope)
        return AGGD(alpha, left_scale, right_scale, mean)


def aggd_from_moments(
    sums: Tensor, shares: Tensor, *, alpha_step: float = 0.0, max_slope: float | None = None
) -> Tensor:
    """The AGGD estimate of `aggd` from the side moments of signals, each a mean over all their values, zeros included.

    Args:
        sums: `(3, ...)`: mean squares of the negative values, of the positive values, mean magnitude.
        shares: `(2, ...)`: the share of negative and of positive values; constants for the gradient.
        alpha_step: see `FeatureConfig`.
        max_slope: see `aggd`.

    Returns:
        `(4, ...)`: alpha, mean, left, right; differentiable once in `sums`.
    """
    return _Estimate.apply(sums, shares, alpha_step, max_slope)  # type: ignore[no-any-return]


class _Estimate(torch.autograd.Function):
    """The whole estimate as one node, in logarithms, where its derivatives are short.

    With S2 = the sum of both mean squares, s the deviations of the sides and u = 1 / alpha:

        log R = 2 log mean |x| - log S2 + log sum s^3 + log sum s - 2 log sum s^2           (sums over the two sides)
        d log R / d log s = 3 s^3 / sum s^3 + s / sum s - 4 s^2 / sum s^2                   ("tilt")
        d log scale / du = (psi(u) - 3 psi(3 u)) / 2,   d log mean / du = 2 psi(2 u) - psi(u)   (at constant scales)

    The backward pass goes from the outputs to u, to log R, to log s^2. The logarithm of a side's mean square changes
    that of its s^2 by as much; of an empty side, which has none, the other one answers for both.
    """

    @staticmethod
    def forward(ctx: Any, sums: Tensor, shares: Tensor, alpha_step: float, max_slope: float | None) -> Tensor:
        squares, absolute = sums[:2], sums[2]
        total = squares.sum(0)
        # Below this the reciprocals that the gradient needs would overflow.
        silent = total < 1e8 * torch.finfo(sums.dtype).tiny
        empty = squares == 0
        variances = squares / shares
        deviations = torch.where(empty, variances.flip(0), variances).sqrt_()
        relative = deviations / deviations.amax(0)  # at most 1, so that no cube overflows
        powers = torch.stack([relative, relative.square(), relative**3])
        power_sums = powers.sum(1)
        first, second, third = power_sums
        ratio = absolute * (absolute / total) * (first * third / second.square())
        alpha, slope = shape_from_ratio(ratio, max_slope)
        if alpha_step:
            alpha = (alpha / alpha_step).round_().mul_(alpha_step)
        alpha = torch.where(silent, MAX_ALPHA, alpha)
        inverse = alpha.reciprocal()
        log_1, log_2, log_3 = torch.lgamma(torch.stack([inverse, 2 * inverse, 3 * inverse]))
        scales = torch.where(silent, 0.0, deviations * ((log_1 - log_3) / 2).exp_())
        to_mean = (log_2 - log_1).exp_()
        estimate = torch.stack([alpha, (scales[1] - scales[0]) * to_mean, *scales])
        if ctx.needs_input_grad[0]:
            first, second, third = powers / power_sums[:, None]
            tilt = first - 4 * second + 3 * third
            saved = (estimate, squares, absolute, total, empty, silent, inverse, scales, to_mean, slope * ratio, tilt)
            ctx.save_for_backward(*saved)
        return estimate

    @staticmethod
    @differentiable_once(ONCE)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        _, squares, absolute, total, empty, silent, inverse, scales, to_mean, slope, tilt = ctx.saved_tensors
        by_mean = grad[1] * to_mean
        by_log_scale = torch.stack([grad[2] - by_mean, grad[3] + by_mean]) * scales
        psi_1, psi_2, psi_3 = torch.digamma(torch.stack([inverse, 2 * inverse, 3 * inverse]))
        by_inverse = by_log_scale.sum(0) * (psi_1 - 3 * psi_3) / 2
        by_inverse += by_mean * (scales[1] - scales[0]) * (2 * psi_2 - psi_1)
        by_log_ratio = (grad[0] - by_inverse * inverse.square()) * slope
        by_log_square = (by_log_scale + by_log_ratio * tilt) / 2
        by_log_square = torch.where(empty.flip(0), by_log_square.sum(0), by_log_square)
        by_square = (by_log_square / squares).masked_fill_(empty, 0) - by_log_ratio / total
        result = torch.cat([by_square, (2 * by_log_ratio / absolute)[None]])
        return result.masked_fill_(silent, 0), None, None, None


def shape_from_ratio(ratio: Tensor, max_slope: float | None = None) -> tuple[Tensor, Tensor]:
    """Solve rho(alpha) = R for alpha: alpha and its slope d alpha / d R, both `(...)` like R.

    Alpha lies in [0.2, 10]; its relative error is below 1e-9 in float64. R outside [rho(0.2), rho(10)] = [0.0629,
    0.7405] is clamped and has slope 0; inside, the slope is 1 / rho'(alpha), at most `max_slope` if given.

    Example:
        >>> shape_from_ratio(torch.tensor([0.5, 2 / torch.pi, 9.0]))[0].round(decimals=3)
        tensor([ 1.,  2., 10.])
    """
    table = _inverse_table(ratio.device, ratio.dtype)
    inside = ratio.clamp(table.low, table.high)
    piece = torch.searchsorted(table.edges, inside.contiguous())
    start, alpha, linear, quadratic, cubic = F.embedding(piece, table.pieces).unbind(-1)
    t = inside - start
    slope = torch.addcmul(linear, t, torch.addcmul(2 * quadratic, t, cubic, value=3))
    slope = slope.clamp_max_(math.inf if max_slope is None else max_slope).masked_fill_(inside != ratio, 0)
    return torch.addcmul(alpha, t, torch.addcmul(linear, t, torch.addcmul(quadratic, t, cubic))), slope


class _InverseTable(NamedTuple):
    """Cubic Hermite interpolation of the inverse of rho, whose values and slopes are known at the nodes.

    Its range; the nodes between the pieces; and for each piece its start and its polynomial in R - start, the constant
    first.
    """

    low: float
    high: float
    edges: Tensor
    pieces: Tensor


@functools.lru_cache(maxsize=8)
def _inverse_table(device: torch.device, dtype: torch.dtype) -> _InverseTable:
    """Nodes at alphas evenly spaced in log alpha."""
    with torch.inference_mode(False), torch.no_grad():  # cached tensors must be usable in later backward passes
        alphas = torch.linspace(
            math.log(MIN_ALPHA), math.log(MAX_ALPHA), _NODES, dtype=torch.float64, device="cpu"
        ).exp()
        inverse = 1 / alphas
        rho = torch.exp(2 * torch.lgamma(2 * inverse) - torch.lgamma(inverse) - torch.lgamma(3 * inverse))
        digammas = torch.digamma(inverse) + 3 * torch.digamma(3 * inverse) - 4 * torch.digamma(2 * inverse)
        slopes = alphas.square() / (rho * digammas)
        nodes = rho.to(dtype)  # pieces meet where the look-up cuts them, rounded as the nodes are
        width, rise = nodes.double().diff(), alphas.diff()
        secant, slope_0, slope_1 = rise / width, slopes[:-1], slopes[1:]
        quadratic, cubic = (3 * secant - 2 * slope_0 - slope_1) / width, (slope_0 + slope_1 - 2 * secant) / width**2
        pieces = torch.stack([nodes[:-1].double(), alphas[:-1], slope_0, quadratic, cubic], dim=1)
        return _InverseTable(float(nodes[0]), float(nodes[-1]), nodes[1:-1].to(device), pieces.to(device, dtype))
