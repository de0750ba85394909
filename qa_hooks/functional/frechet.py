"""The Frechet distance between two Gaussians, and the inception score.

    d^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))        (Dowson and Landau 1982; Heusel et al. 2017)
    IS  = exp E_x KL(p(y|x) || p(y))                               (Salimans et al. 2016)

With S_a = L_a L_a^T, tr (S_a S_b)^(1/2) is the sum of the singular values of L_a^T L_b, that is of the square roots
of the eigenvalues of the symmetric L_a^T S_b L_a: no matrix square root, nothing complex, and finite for n < d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qa_hooks.functional.numerics import to_float64

BLOCK = 256  # columns of a product at a time


def frechet_distance(
    mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, *, factor_a: Tensor | None = None
) -> Tensor:
    """The squared Frechet distance, the number that "FID" reports.

    Args:
        mean_a, mean_b: `(d,)`.
        cov_a, cov_b: `(d, d)`, symmetric; singular ones are fine.
        factor_a: `frechet_factor(cov_a)`, where the same reference is compared with many sets.

    Returns:
        A float64 scalar, at least 0.

    Raises:
        ValueError: shapes that do not fit or non-finite values.

    Example:
        >>> eye = torch.eye(2)
        >>> round(float(frechet_distance(torch.zeros(2), eye, torch.ones(2), 4 * eye)), 9)
        4.0
    """
    mean_a, cov_a, mean_b, cov_b = (to_float64(value) for value in (mean_a, cov_a, mean_b, cov_b))
    dim = mean_a.shape[0] if mean_a.ndim == 1 else -1
    shapes = [tuple(value.shape) for value in (mean_a, cov_a, mean_b, cov_b)]
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(f"means must be (d,) and covariances (d, d) with one d, got {shapes}")
    if not all(bool(torch.isfinite(value).all()) for value in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("the moments hold non-finite values")
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()
    other = cov_b
    if factor_a is not None:
        factor = to_float64(factor_a)
    else:
        factor, failed = torch.linalg.cholesky_ex(cov_a)
        if bool(failed):  # fewer rows than dimensions; the other set may have more
            factor, other = frechet_factor(cov_b), cov_a
    if factor.shape[0] != dim or factor.ndim != 2:
        raise ValueError(f"factor_a must be frechet_factor(cov_a), ({dim}, rank), got {tuple(factor.shape)}")
    if not factor.shape[1]:
        return distance
    eigenvalues = torch.linalg.eigvalsh(_congruence(factor, other))
    # Rounding of the product leaves eigenvalues of about +-eps * scale where there should be zeros; their roots would
    # count.
    floor = eigenvalues.abs().max() * dim * torch.finfo(torch.float64).eps
    root_trace = torch.where(eigenvalues > floor, eigenvalues, torch.zeros_like(eigenvalues)).sqrt().sum()
    return (distance - 2 * root_trace).clamp_min(0)


def frechet_factor(covariance: Tensor) -> Tensor:
    """F `(d, rank)` float64 with F F^T = covariance: Cholesky, or where that fails the eigenvectors of its range."""
    covariance = to_float64(covariance)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not bool(failed):
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > values.abs().max() * len(values) * torch.finfo(torch.float64).eps
    scaled: Tensor = vectors[:, positive] * values[positive].sqrt()
    return scaled


def _congruence(factor: Tensor, covariance: Tensor) -> Tensor:
    """The lower triangle of F^T S F; without the zeros of a triangular F, a third of the work."""
    if factor.shape[0] != factor.shape[1] or bool(factor.triu(1).any()):
        return factor.T @ covariance @ factor
    product = torch.zeros_like(factor)
    for start in range(0, len(factor), BLOCK):
        rest = factor[start:, start:]
        product[start:, start : start + BLOCK] = rest.T @ (covariance[start:, start:] @ rest[:, :BLOCK])
    return product


def inception_score(logits: Tensor, *, splits: int = 10) -> tuple[Tensor, Tensor]:
    """The inception score of class logits, over consecutive splits (shuffle first when the images are in an order).

    Args:
        logits: `(N, classes)`, before the softmax.
        splits: p(y) is computed within each split.

    Returns:
        Mean and standard deviation over the splits, float64 scalars; between 1 and the number of classes.

    Raises:
        ValueError: fewer images than splits, or non-finite logits.

    Example:
        >>> round(float(inception_score(1000 * torch.eye(10).repeat(10, 1), splits=1)[0]), 6)
        10.0
    """
    if logits.ndim != 2 or not 1 <= splits <= logits.shape[0]:
        raise ValueError(f"logits must be (N, classes) with N >= splits = {splits}, got {tuple(logits.shape)}")
    logits = to_float64(logits)
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("logits hold non-finite values")
    scores = []
    for part in logits.log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - math.log(part.shape[0])
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    stacked = torch.stack(scores)
    return stacked.mean(), stacked.std(unbiased=False)
