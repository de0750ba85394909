"""SSIM (structural similarity), and the distance made of it that the critic of QAGAN uses.

With local means, variances and covariance under a Gaussian window (11 taps, sigma 1.5), L the width of the value range,
C1 = (0.01 L)^2 and C2 = (0.03 L)^2:

    S1 = (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1)        luminance
    S2 = (2 v_xy + C2) / (v_x + v_y + C2)               contrast and structure
    SSIM = mean of S1 S2                                Wang, Bovik, Sheikh, Simoncelli 2004
    d_Q = mean of sqrt(2 - S1 - S2)                     Brunet, Vrscay, Wang 2012; QAGAN's code

The square root in d_Q is a metric at every position, as long as no constant is added to the denominator of S2 (the
official code adds one). SSIM and d_Q are computed from x + y and x - y, where nothing cancels when the images agree:
see `_ssim_fast`.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks.functional._ssim_fast import C1, C2, centred, plane_similarity, work_dtype
from qa_hooks.functional.filters import (
    Filter,
    Padding,
    fitting_window,
    full_precision,
    gaussian_blur,
    gaussian_filter,
)
from qa_hooks.images import Range, check_images, check_pair, check_range, to_grey, to_unit

SQRT_EPSILON = 1e-12  # the slope of a square root at 0 is infinite


def ssim(
    x: Tensor,
    y: Tensor,
    *,
    value_range: Range = (0.0, 1.0),
    window_size: int = 11,
    sigma: float = 1.5,
    second_order: bool = False,
) -> Tensor:
    """Structural similarity of two batches, image by image.

    The mean over channels and over the positions where the whole window fits; equal to scikit-image's
    `structural_similarity(gaussian_weights=True, use_sample_covariance=False)` with its border cropped. Computed in
    float32 or better whatever the autocast state, and numbers outside the range are taken as they are. `torch.func` and
    forward-mode differentiation go through it as with `second_order=True`.

    Args:
        x, y: images `(N, C, H, W)`, floating point, in any memory layout. Either may need a gradient, which arrives in
            its own dtype.
        value_range: what the numbers mean.
        window_size: odd; the largest odd window that fits is taken for smaller images, which a warning says once for
            each size.
        sigma: the window's standard deviation in pixels.
        second_order: allow the gradient to be differentiated again, at about twice the time.

    Returns:
        `(N,)` in [-1, 1], 1 for equal images; float64 if an input is, else float32.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes, range or window that make no sense.
        RuntimeError: the gradient was differentiated again without `second_order=True`.

    Source:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity, 2004.

    Example:
        >>> x = torch.zeros(2, 3, 32, 32)
        >>> ssim(x, x)
        tensor([1., 1.])
        >>> ssim(x, x + 1)  # only the luminance differs: C1 / (1 + C1)
        tensor([0.0001, 0.0001])
    """
    value_range = check_ssim_arguments(x, y, value_range, window_size, sigma)
    kernel = valid_filter(x, y, window_size, sigma)
    return plane_similarity(x, y, kernel, luminance=True, value_range=value_range, second_order=second_order).mean(1)


def ssim_distance(
    x: Tensor,
    y: Tensor,
    *,
    value_range: Range = (0.0, 1.0),
    variant: Literal["metric", "official"] = "metric",
) -> Tensor:
    """QAGAN's distance d_Q between grey images: the mean of `sqrt(2 - S1 - S2)` over all positions.

    `"metric"`: images mapped to [0, 1], 11 Gaussian taps (the largest odd window that fits) with reflected borders;
    d_Q(x, x) = 1e-6. `"official"`: what QAGAN's code computes: images mapped to [-1, 1], 8 taps at the offsets -3..4,
    zeros around the image, and 0.01 added to the denominator of S2, so that d_Q(x, x) is 0.857 on a flat image.

    Args:
        x, y: images `(N, C, H, W)`, floating point, with 1 or 3 channels. Differentiable in both.
        value_range: what the numbers mean.
        variant: see above.

    Returns:
        `(N,)` in [0, 2]; float64 if an input is, else float32.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: shapes, range or variant that make no sense.

    Source:
        Brunet, Vrscay, Wang: On the mathematical properties of the structural similarity index, 2012; QAGAN's code.

    Example:
        >>> x = torch.zeros(2, 3, 32, 32)
        >>> ssim_distance(x, x + 1)  # S1 = 0, S2 = 1
        tensor([1.0000, 1.0000])
    """
    value_range = _check_pair(x, y, value_range)
    if variant not in ("metric", "official"):
        raise ValueError(f'variant must be "metric" or "official", got {variant!r}')
    dtype = work_dtype(x, y)
    with full_precision(x.device):
        a, b = (to_grey(to_unit(image.to(dtype), value_range)).squeeze(1) for image in (x, y))
        if variant == "metric":
            kernel = _filter(x, y, fitting_window(11, *x.shape[-2:]), 1.5, "reflect")
            squares = _squares(a, b, kernel, width=1, delta=0.0, centre=True)
        else:
            # Zero padding is not invariant to a shift, so nothing is centred. delta hides what rounding that leaves.
            squares = _squares(2 * a - 1, 2 * b - 1, _filter(x, y, 8, 1.5, "zero"), width=2, delta=0.01, centre=False)
        return (squares.clamp(min=0) + SQRT_EPSILON).sqrt().mean((0, 1))


def _squares(x: Tensor, y: Tensor, kernel: Filter, *, width: float, delta: float, centre: bool) -> Tensor:
    """`2 - S1 - S2` as a sum of two quotients that vanish with x - y (for delta = 0): planes -> maps `(H, W, P)`."""
    c1, c2 = width**2 * C1, width**2 * C2
    total, offset_total = centred(x + y) if centre else (x + y, 0)
    difference, offset_difference = centred(x - y) if centre else (x - y, 0)
    blurs = gaussian_blur(torch.cat((total, difference, total.square(), difference.square())), kernel)
    mean_total, mean_difference, square_total, square_difference = blurs.chunk(4, 2)
    luminance = (mean_difference + offset_difference).square()
    luminance = luminance / ((mean_total + offset_total).square() + luminance + 2 * c1)
    var_difference = square_difference - mean_difference.square()
    var_sum = square_total - mean_total.square() + var_difference
    squares: Tensor = 2 * (luminance + (var_difference + delta) / (var_sum + 2 * (c2 + delta)))
    return squares


def check_ssim_arguments(x: Tensor, y: Tensor, value_range: Range, window_size: int, sigma: float) -> Range:
    """What `ssim` and `ms_ssim` refuse; the range comes back as floats."""
    value_range = _check_pair(x, y, value_range)
    if isinstance(window_size, bool) or not isinstance(window_size, int):
        raise TypeError(f"window_size must be an int, got {window_size!r}")
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be odd and at least 1, got {window_size}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"sigma must be positive and finite, got {sigma}")
    return value_range


def _check_pair(x: Tensor, y: Tensor, value_range: Range) -> Range:
    check_pair("x", check_images("x", x), "y", check_images("y", y))
    return check_range(value_range)


def valid_filter(x: Tensor, y: Tensor, window_size: int, sigma: float) -> Filter:
    """The filter of SSIM for these images: the positions where the window (or the largest that does) fits."""
    return _filter(x, y, _valid_window(window_size, *x.shape[-2:]), sigma, "valid")


@cache  # and so the warning comes once for each size
def _valid_window(window_size: int, height: int, width: int) -> int:
    fits = fitting_window(window_size, height, width)
    if fits < window_size:
        warn(
            f"images of {height}x{width} have room for {fits} of the {window_size} pixels of SSIM's window; the "
            "smaller window is used, and its values cannot be compared with values of larger images"
        )
    return fits


def _filter(x: Tensor, y: Tensor, window_size: int, sigma: float, padding: Padding) -> Filter:
    height, width = x.shape[-2:]
    return gaussian_filter(
        height,
        width,
        window_size=window_size,
        sigma=float(sigma),
        padding=padding,
        dtype=work_dtype(x, y),
        device=x.device,
    )
