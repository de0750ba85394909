"""The NIQE distance: how far a set of feature rows lies from a Gaussian model of natural ones.

    d(mu, Sigma) = sqrt( (mu - mu_p)^T ((Sigma_p + Sigma) / 2)^-1 (mu - mu_p) + 1e-12 )

in float64. Images are scored one by one (`image_naturalness`, the NIQE metric); a batch of gradient maps is scored as
one set (`naturalness_distance`), whose sums can be added over processes in between: `feature_moments`, then
`naturalness_distance_from_moments`.

Source: Mittal, Soundararajan, Bovik 2013, equation 10.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_hooks.functional.niqe import valid_rows
from qa_hooks.functional.numerics import check_reverse_mode, differentiable_once, result_dtype, to_float64

_ONCE = "the NIQE distance is differentiable once; keep it out of what is differentiated twice (`.detach()` it there)"
_EPSILON = 1e-12
_RIDGE = 1e-6


def naturalness_distance(
    features: Tensor,
    model_mean: Tensor,
    model_covariance: Tensor,
    *,
    variant: str = "mvg",
    shrink: float | None = None,
    ridge: float = _RIDGE,
) -> Tensor:
    """Distance of a set of feature rows from a model; differentiable, for critic penalties.

    Args:
        features: `(..., 36)`: all leading axes are rows of one set. Rows of flat maps (`valid_rows`) do not count.
        model_mean, model_covariance: `(36,)` and `(36, 36)` of the pristine model.
        variant: "mvg" (multivariate Gaussian): the distance between the model and the rows' own mean and covariance.
            "sample": the mean of the rows' Mahalanobis distances. It is a mean of one term for each row, so it needs no
            second row and no communication between processes.
        shrink: share by which the covariance moves to its diagonal; default 0.1, below 37 rows 0.5. Only for "mvg".
        ridge: times mean variance, added to the diagonal of the matrix that is inverted.

    Returns:
        A scalar of the features' dtype, at least float32; 1e-6 (without a gradient) when there is no valid row.

    Raises:
        ValueError: shapes that do not fit, or an unknown variant.

    Example:
        >>> rows = torch.randn(200, 36, dtype=torch.float64)
        >>> naturalness_distance(rows, torch.zeros(36), torch.eye(36)) < 2
        tensor(True)
    """
    _check_model(features, model_mean, model_covariance)
    rows = features.reshape(-1, features.shape[-1])
    if variant == "mvg":
        moments = feature_moments(rows, model_mean)
        distance = naturalness_distance_from_moments(*moments, model_covariance, shrink=shrink, ridge=ridge)
    elif variant == "sample":
        weights = to_float64(valid_rows(rows.detach()))
        covariance = model_covariance.to(weights)
        offsets = (to_float64(rows) - model_mean.to(weights)) * weights[:, None]
        distances = _root(_quadratic(_with_ridge(covariance, ridge), offsets.t()))
        distance = (distances * weights).sum() / weights.sum().clamp_min(1) + (weights.sum() == 0) * _EPSILON**0.5
    else:
        raise ValueError(f"variant must be 'mvg' or 'sample', got {variant!r}")
    return distance.to(features.device, result_dtype(features))


def feature_moments(features: Tensor, model_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums that describe a set of rows: `(n, sum f, sum f f^T)` in float64, f measured from the model's mean.

    They may be added over processes: all-reduce them, differentiably or as `s_global = all_reduce(s.detach()) +
    world_size * (s - s.detach())`. Rows of flat maps do not count. Measured from the model's mean, the outer products
    do not cancel when the covariance is taken.

    Args:
        features: `(..., 36)`.
        model_mean: `(36,)`.

    Returns:
        `n` (0-d, no gradient), `(36,)` and `(36, 36)`.
    """
    rows = features.reshape(-1, features.shape[-1])
    weights = to_float64(valid_rows(rows.detach()))
    offsets = (to_float64(rows) - model_mean.to(weights)) * weights[:, None]
    return weights.sum(), offsets.sum(0), offsets.t() @ offsets


def naturalness_distance_from_moments(
    count: Tensor | float,
    total: Tensor,
    outer: Tensor,
    model_covariance: Tensor,
    *,
    shrink: float | None = None,
    ridge: float = _RIDGE,
) -> Tensor:
    """The "mvg" variant of `naturalness_distance` from the (global) sums of `feature_moments`; a float64 scalar.

    Example:
        >>> rows, mean, covariance = torch.randn(50, 36), torch.zeros(36), torch.eye(36)
        >>> split = [feature_moments(part, mean) for part in rows.split(25)]
        >>> sums = [sum(parts) for parts in zip(*split)]
        >>> together = naturalness_distance_from_moments(*sums, covariance)
        >>> torch.allclose(together.float(), naturalness_distance(rows, mean, covariance))
        True
    """
    check_reverse_mode("naturalness_distance", total, outer)
    pristine = model_covariance.to(total)
    count = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    share = torch.where(count < total.shape[-1] + 1, 0.5, 0.1) if shrink is None else shrink
    return _root(_SquareFromMoments.apply(count, total, outer, pristine, share, ridge))


class _SquareFromMoments(torch.autograd.Function):
    """The squared distance q = x^T A^-1 x from sums over n rows, as one node.

        x = total / n,   C = (outer - n x x^T) / (n - 1),   A = (Sigma_p + K * C) / 2, and a ridge on its diagonal

    where K (elementwise) is 1 on the diagonal and 1 - share elsewhere. With z = A^-1 x: dq/dx = 2 z, dq/dA = -z z^T.
    """

    @staticmethod
    def forward(
        ctx: Any, count: Tensor, total: Tensor, outer: Tensor, pristine: Tensor, share: Tensor | float, ridge: float
    ) -> Tensor:
        identity = torch.eye(total.shape[-1], dtype=total.dtype, device=total.device)
        ridge = ridge / total.shape[-1]
        keep = (1 - share) + identity * share
        count, degrees = count.clamp_min(1), (count - 1).clamp_min(1)
        mean = total / count
        keep_half = keep / (2 * degrees)
        matrix = torch.addcmul(pristine / 2, torch.addr(outer, total, mean, alpha=-1), keep_half)
        factor, failed = torch.linalg.cholesky_ex(torch.addcmul(matrix, identity, matrix.trace(), value=ridge))
        solved = torch.cholesky_solve(mean[:, None], factor)[:, 0]
        square = torch.where(failed > 0, torch.nan, torch.dot(mean, solved))
        ctx.save_for_backward(square, solved, mean, keep_half, identity, count)
        ctx.ridge = ridge
        return square

    @staticmethod
    @differentiable_once(_ONCE)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        _, solved, mean, keep_half, identity, count = ctx.saved_tensors
        by_matrix = torch.outer(solved, solved * -grad)
        by_matrix = torch.addcmul(by_matrix, identity, by_matrix.trace(), value=ctx.ridge)
        by_outer = by_matrix * keep_half
        by_total = 2 * (grad * solved / count - by_outer @ mean)
        return None, by_total, by_outer, None, None, None


def image_naturalness(
    features: Tensor, model_mean: Tensor, model_covariance: Tensor, *, present: Tensor | None = None
) -> Tensor:
    """The NIQE score of each image from its blocks' features: `(N, blocks, 36)` -> `(N,)` float64; lower is better.

    No ridge and no shrinkage, as in the original; a single block has covariance 0. Where the matrix has no Cholesky
    factor (a model fitted on too few blocks) the pseudo-inverse stands in.

    Args:
        features: of the blocks.
        model_mean, model_covariance: `(36,)` and `(36, 36)` of the pristine model.
        present: as `release_features` gives it: the mean of each column is over the values that are there, and the
            covariance over the rows that are whole, as in the MATLAB release. Without it rows of flat blocks count only
            in images that have no other.
    """
    _check_model(features, model_mean, model_covariance)
    rows = to_float64(features)
    pristine = model_covariance.to(rows)
    offsets = rows - model_mean.to(rows)
    if present is None:
        valid = valid_rows(features.detach())
        weights = (valid | ~valid.any(-1, keepdim=True)).to(rows)[..., None]
        center = middle = _mean(offsets, weights)
    else:
        weights = present.all(-1, keepdim=True).to(rows)
        center, middle = _mean(offsets, present.to(rows)), _mean(offsets, weights)
    deviations = weights * (offsets - middle[:, None])
    covariance = deviations.mT @ deviations / (weights.sum(1) - 1).clamp_min(1)[..., None]
    return _root(_quadratic_or_pinv((pristine + covariance) / 2, center[..., None])[:, 0])


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    """Over the blocks: `(N, blocks, d)` and weights `(N, blocks, d or 1)` -> `(N, d)`; 0 where there are none."""
    return (weights * rows).sum(1) / weights.sum(1).clamp_min(1)


def _quadratic(matrix: Tensor, columns: Tensor) -> Tensor:
    """x^T A^-1 x for each column: `(..., d, d)` and `(..., d, k)` -> `(..., k)`; NaN where A is not positive definite.

    Nothing here waits for a GPU, which matters in a training step. Differentiable once.
    """
    check_reverse_mode("the NIQE distance", matrix, columns)
    return _Quadratic.apply(matrix, columns)  # type: ignore[no-any-return]


class _Quadratic(torch.autograd.Function):
    """q = x^T z with z = A^-1 x; dq/dx = 2 z, dq/dA = -z z^T, which costs less than going back through the factor."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, columns: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(matrix)
        solved = torch.cholesky_solve(columns.expand(*matrix.shape[:-2], *columns.shape[-2:]), factor)
        squares = torch.where(failed[..., None] > 0, torch.nan, (columns * solved).sum(-2))
        ctx.save_for_backward(squares, solved)
        return squares

    @staticmethod
    @differentiable_once(_ONCE)
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        _, solved = ctx.saved_tensors
        weighted = solved * grad[..., None, :]
        return -(weighted @ solved.mT) if ctx.needs_input_grad[0] else None, 2 * weighted


def _quadratic_or_pinv(matrix: Tensor, columns: Tensor) -> Tensor:
    """The same as `_quadratic`, with the pseudo-inverse of singular matrices."""
    failed = torch.linalg.cholesky_ex(matrix.detach())[1]
    if not failed.any():
        return _quadratic(matrix, columns)
    # A NaN has no factor either, and the pseudo-inverse would raise: only finite singular matrices go there.
    singular = (failed > 0) & matrix.isfinite().all((-2, -1))
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    regular = torch.where(singular[..., None, None], identity, matrix)
    solved = _quadratic(regular, columns)
    inverse = torch.linalg.pinv(torch.where(singular[..., None, None], matrix, identity), hermitian=True)
    return torch.where(singular[..., None], (columns * (inverse @ columns)).sum(-2), solved)


def _root(squares: Tensor) -> Tensor:
    return (squares.clamp_min(0) + _EPSILON).sqrt()


def _with_ridge(matrix: Tensor, ridge: float) -> Tensor:
    size = matrix.shape[-1]
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    return torch.addcmul(matrix, identity, matrix.trace(), value=ridge / size)


def _check_model(features: Tensor, mean: Tensor, covariance: Tensor) -> None:
    if features.ndim < 2 or mean.shape != features.shape[-1:] or covariance.shape != (*mean.shape, *mean.shape):
        raise ValueError(
            f"features {tuple(features.shape)}, model mean {tuple(mean.shape)} and model covariance "
            f"{tuple(covariance.shape)} do not fit: expected (..., d), (d,) and (d, d)"
        )
