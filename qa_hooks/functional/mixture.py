"""The log density of a mixture of Gaussians, for whole batches and with gradients.

    log p(x) = logsumexp_m [ log w_m - |P_m^T (x - mu_m)|^2 / 2 + log det P_m ] - d/2 log 2 pi,  P_m P_m^T = Sigma_m^-1

P_m is the Cholesky factor of the precision, as scikit-learn's `GaussianMixture.precisions_cholesky_` holds it: nothing
is inverted or factored here. Each component is centred before it is squared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qa_hooks.functional.filters import full_precision
from qa_hooks.functional.numerics import result_dtype, to_float64

MAX_FLOAT32_DIM = 512  # above, sums of squares in float32 lose more than 1e-5
CHUNK = 1 << 23  # numbers in a temporary, and in a converted part of the factors


def mixture_log_density(values: Tensor, log_weights: Tensor, means: Tensor, precision_cholesky: Tensor) -> Tensor:
    """The log density of each row under a Gaussian mixture.

    Computed in the wider of the two types, and in float64 for d > 512, over parts of the rows and of the components:
    70 components of 2048 dimensions need little more memory than their factors.

    Args:
        values: `(n, d)`; gradients flow to it.
        log_weights: `(M,)`, the logarithms of weights of sum 1.
        means: `(M, d)`.
        precision_cholesky: `(M, d, d)` for full covariances, with P P^T the inverse covariance and a positive diagonal;
            `(M, d)` for diagonal ones, 1 / standard deviation.

    Returns:
        `(n,)`, of the type of `values`, at least float32: natural logarithms, unbounded, higher is more likely.

    Raises:
        ValueError: shapes that do not fit.

    Source: GIQA (Gu et al. 2020), Eq. 6, of which it is the logarithm, as in the authors' code.

    Example:
        >>> standard = torch.zeros(1), torch.zeros(1, 2), torch.eye(2)[None]
        >>> mixture_log_density(torch.zeros(1, 2), *standard)  # -log 2 pi
        tensor([-1.8379])
    """
    count, dim = means.shape if means.ndim == 2 else (-1, -1)
    factors, total = precision_cholesky.shape, values.shape[0] if values.ndim == 2 else 0
    if values.ndim != 2 or values.shape[1] != dim or factors not in ((count, dim, dim), (count, dim)):
        raise ValueError(
            "expected values (n, d), means (M, d) and precision_cholesky (M, d, d) or (M, d), got "
            f"{tuple(values.shape)}, {tuple(means.shape)} and {tuple(factors)}"
        )
    if log_weights.shape != (count,):
        raise ValueError(f"log_weights must be ({count},), one for each component, got {tuple(log_weights.shape)}")
    dtype = torch.promote_types(values.dtype, means.dtype)
    convert = to_float64 if dtype == torch.float64 or dim > MAX_FLOAT32_DIM else Tensor.float
    given, values, log_weights, means = values, convert(values), convert(log_weights), convert(means)
    constants = log_weights - 0.5 * dim * math.log(2 * math.pi)
    rows = max(1, min(total, CHUNK // dim))
    step = max(1, CHUNK // max(rows * dim, math.prod(factors[1:])))
    if rows >= total and step >= count:
        density = _weighted(values, constants, means, convert(precision_cholesky)).logsumexp(0)
        return density.to(given.device, result_dtype(given))
    densities = []
    for part in values.split(rows):
        components = [slice(start, start + step) for start in range(0, count, step)]
        weighted = [_weighted(part, constants[m], means[m], convert(precision_cholesky[m])) for m in components]
        densities.append(torch.cat(weighted).logsumexp(0))
    return torch.cat(densities).to(given.device, result_dtype(given))


def _weighted(values: Tensor, constants: Tensor, means: Tensor, factors: Tensor) -> Tensor:
    """`(M, n)`: the logarithm of weight times density."""
    difference = values - means[:, None]
    if factors.ndim == 3:
        log_det = factors.diagonal(dim1=1, dim2=2).log().sum(1)
        with full_precision(values.device):
            whitened = torch.bmm(difference, factors)
    else:
        log_det = factors.log().sum(1)
        whitened = difference * factors[:, None]
    return torch.sub((constants + log_det)[:, None], whitened.square().sum(2), alpha=0.5)
