"""Exact nearest neighbours in a bank of features, at the price of one matrix product.

    |q - b|^2 = |q|^2 - 2 q.b + |b|^2

finds candidates, a few more than asked for. Features are centred first, because far from the origin the three terms
cancel. Where candidates lie closer together than the rounding of the product, they are ranked by their differences in
float64. Where rounding could still have hidden a nearer row, all rows in question are compared in that way, so the
answer does not depend on rounding. The work is done over parts of the bank and of the queries: beyond the bank and a
centred copy of it the memory is constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks.functional.filters import full_precision
from qa_hooks.functional.numerics import result_dtype, to_float64

METRICS = ("euclidean", "l1")
CHUNK = 1 << 22  # numbers in a temporary
ROWS = 1024  # queries at a time
SPARE = 4  # candidates beyond k


class Neighbours(NamedTuple):
    """What `nearest_neighbours` found, nearest first.

    Attributes:
        distances: `(n, k)`, of the type of the queries, at least float32, with a gradient to them.
        indices: `(n, k)` int64, rows of the bank.
    """

    distances: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False)
class Bank:
    """Features to search in, with what every search needs again; made by `prepare_bank`.

    Attributes:
        values: `(m, d)`, as given; in float32 when they came in half precision.
        origin: `(d,)`, their mean where it is far from zero, otherwise zero.
        centred: `(m, d)`, values - origin; no copy where the origin is zero.
        norms: `(m,)`, the squared norms of `centred`.
    """

    values: Tensor
    origin: Tensor
    centred: Tensor
    norms: Tensor


def prepare_bank(values: Tensor) -> Bank:
    """Centre a bank `(m, d)` and compute its norms, once for many searches; `ValueError` for empty or non-finite ones.

    Example:
        >>> prepare_bank(torch.tensor([[10.0, 14.0], [12.0, 10.0]])).norms
        tensor([5., 5.])
    """
    if values.ndim != 2 or not values.numel():
        raise ValueError(f"a bank of features must be (m, d) and not empty, got {tuple(values.shape)}")
    values = values.detach() if values.requires_grad else values
    if values.dtype in (torch.float16, torch.bfloat16):  # squared norms above 65504 would be infinite
        values = values.float()
    origin = values.mean(0)
    if float(origin.square().sum()) > float(values.var(0, correction=0).sum()):
        centred = values - origin
    else:
        origin, centred = torch.zeros_like(origin), values
    norms = centred.square().sum(1)
    if not bool(torch.isfinite(norms).all()):
        raise ValueError("the bank of features holds non-finite values")
    return Bank(values, origin, centred, norms)


def nearest_neighbours(
    queries: Tensor, bank: Bank | Tensor, k: int = 1, *, metric: str = "euclidean", exclude_self: bool = False
) -> Neighbours:
    """The `k` nearest rows of the bank for each query, exactly; equally near ones in the bank's order.

    Args:
        queries: `(n, d)`; gradients flow to it through the distances. Non-finite ones get non-finite distances.
        bank: `(m, d)`, or `prepare_bank` of it when it is searched more than once.
        k: how many.
        metric: "euclidean", or "l1", which has no matrix product and is slow.
        exclude_self: leave-one-out: query i is row i of the bank and not its own neighbour; equal rows still are.

    Raises:
        ValueError: shapes that do not fit, an unknown metric, more neighbours than the bank has.

    Example:
        >>> found = nearest_neighbours(torch.tensor([[0.9]]), torch.tensor([[0.0], [1.0], [5.0]]), k=2)
        >>> found.indices.tolist()
        [[1, 0]]
    """
    bank = bank if isinstance(bank, Bank) else prepare_bank(bank)
    indices = neighbour_indices(queries, bank, k, metric=metric, exclude_self=exclude_self)
    step = max(1, CHUNK // (k * queries.shape[1]))
    parts = zip(queries.split(step), indices.split(step), strict=True)
    dtype = result_dtype(queries)
    distances = [exact_distances(part, bank.values, found, metric).to(queries.device, dtype) for part, found in parts]
    return Neighbours(torch.cat(distances), indices)


@torch.no_grad()
def neighbour_indices(
    queries: Tensor, bank: Bank, k: int = 1, *, metric: str = "euclidean", exclude_self: bool = False
) -> Tensor:
    """The indices `(n, k)` of `nearest_neighbours` alone.

    Example:
        >>> neighbour_indices(torch.tensor([[0.9]]), prepare_bank(torch.tensor([[0.0], [1.0], [5.0]])))
        tensor([[1]])
    """
    rows, dim = bank.values.shape
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {METRICS}, got {metric!r}")
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ValueError(f"queries must be (n, {dim}) like the bank, got {tuple(queries.shape)}")
    if exclude_self and queries.shape[0] != rows:
        raise ValueError(f"exclude_self needs the bank itself as queries: {rows} rows, got {queries.shape[0]}")
    if check_count("k", k) > rows - exclude_self:
        others = " others" if exclude_self else ""
        raise ValueError(f"k must not exceed the bank: k={k}, but it has {rows - exclude_self}{others}")
    plain = queries.detach().to(bank.values.dtype)
    indices = torch.empty(queries.shape[0], k, dtype=torch.int64, device=queries.device)
    wanted = min(k + SPARE, rows)
    own = None
    if exclude_self and metric == "euclidean" and rows * wanted <= CHUNK:
        own = _own_candidates(bank, wanted)
    for start in range(0, queries.shape[0], ROWS):
        chosen = slice(start, start + ROWS)
        search = _Search(plain[chosen], bank, metric, start if exclude_self else None)
        near, candidates = _candidates(search, wanted) if own is None else (own[0][chosen], own[1][chosen])
        indices[chosen] = _nearest_indices(search, near, candidates, k)
    return indices


def exact_distances(queries: Tensor, rows: Tensor, indices: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances of queries `(n, d)` to the rows `(n, k)` of a bank, by differences in float64; `(n, k)` float64.

    The gradient of a Euclidean distance of zero is zero.
    """
    differences = to_float64(queries)[:, None] - to_float64(rows[indices])
    if metric == "l1":
        return differences.abs().sum(2)
    norms: Tensor = torch.linalg.vector_norm(differences, dim=2)
    return norms


def squared_distances(centred: Tensor, bank: Bank, rows: slice) -> Tensor:
    """Squared distances `(n, rows)` of centred queries to rows of the bank, by a matrix product: up to rounding."""
    with full_precision(centred.device):  # as the bound on the rounding supposes
        cross = torch.addmm(bank.norms[rows], centred, bank.centred[rows].T, alpha=-2)
    return cross.add_(centred.square().sum(1, keepdim=True))


def rounding_error(centred: Tensor, bank: Bank) -> Tensor:
    """By how much `squared_distances` may be wrong, `(n, 1)`: eps (|q| + |b|)^2 sqrt(d)."""
    eps = torch.finfo(centred.dtype).eps
    reach = torch.linalg.vector_norm(centred, dim=1, keepdim=True) + bank.norms.max().sqrt()
    error: Tensor = eps * centred.shape[1] ** 0.5 * reach.square()
    return error


class _Search:
    """Approximate comparisons of some queries with a bank: squared distances, or sums of absolute differences.

    `first` is the row of the bank that the first query is, for leave-one-out.
    """

    def __init__(self, queries: Tensor, bank: Bank, metric: str, first: int | None) -> None:
        self.queries, self.bank, self.metric, self.first = queries, bank, metric, first
        self.centred = queries - bank.origin if metric == "euclidean" else queries
        self.error = rounding_error(self.centred, bank) if metric == "euclidean" else None

    def values(self, rows: slice, chosen: Tensor | None = None) -> Tensor:
        """Distances of all or of chosen queries to some rows of the bank; a query's own row is infinitely far."""
        queries = self.centred if chosen is None else self.centred[chosen]
        if self.metric == "euclidean":
            values = squared_distances(queries, self.bank, rows)
        else:
            values = torch.cdist(queries, self.bank.values[rows], p=1.0)
        if self.first is not None:
            own = torch.arange(self.queries.shape[0], device=values.device) + self.first - rows.start
            own = own if chosen is None else own[chosen]
            here = ((own >= 0) & (own < values.shape[1])).nonzero()[:, 0]
            values[here, own[here]] = torch.inf
        return values

    def slack(self, values: Tensor, rows: Tensor) -> Tensor:
        """How wrong these approximations `(n, 1)` of some queries may be."""
        if self.error is not None:
            return self.error[rows]
        relative: float = torch.finfo(values.dtype).eps * self.queries.shape[1] ** 0.5
        return values * relative

    def exact(self, chosen: Tensor, indices: Tensor) -> Tensor:
        """Comparisons of some queries with their candidates, right to float64 and on the same scale as `values`."""
        distances = exact_distances(self.queries[chosen], self.bank.values, indices, self.metric)
        if self.first is not None:
            own = (indices == chosen[:, None] + self.first).to(distances.device)
            distances = distances.masked_fill(own, torch.inf)
        return distances.square() if self.metric == "euclidean" else distances


def _nearest_indices(search: _Search, near: Tensor, candidates: Tensor, k: int) -> Tensor:
    """`(n, k)`; where approximations differ by less than their error, exact differences decide."""
    (count, dim), total, wanted = search.queries.shape, search.bank.values.shape[0], near.shape[1]
    indices = candidates[:, :k].clone()
    everyone = torch.arange(count, device=near.device)
    compared = near[:, : k + 1]
    sure = (compared.diff(dim=1) > 2 * search.slack(compared[:, -1:], everyone)).all(1)
    for rows in _split(everyone[~sure], CHUNK // (wanted * dim)):
        chosen = candidates[rows].sort(dim=1).values  # in the order of the bank, for ties
        exact = search.exact(rows, chosen)
        order = exact.argsort(dim=1, stable=True)[:, :k]
        indices[rows] = chosen.gather(1, order.to(chosen.device))
        if wanted < total:
            outside = near[rows, -1:]  # every row that is no candidate seems at least this far
            furthest = exact.gather(1, order[:, -1:]).to(near)
            # Nothing is nearer than 0, so a bank of equal rows needs no second look.
            missed = (furthest > outside - search.slack(outside, rows)) & (furthest > 0)
            limits = furthest + search.slack(furthest, rows)
            _look_again(search, rows[missed[:, 0]], limits[missed[:, 0]], k, indices)
    return indices


def _look_again(search: _Search, rows: Tensor, limits: Tensor, k: int, indices: Tensor) -> None:
    """Correct the indices of some queries, by exact differences to all of the bank that may lie within the limits."""
    total = search.bank.values.shape[0]
    for part in _split(torch.arange(len(rows), device=rows.device), CHUNK // total):
        within = search.values(slice(0, total), rows[part]) <= limits[part]
        for row, near_enough in zip(rows[part].split(1), within, strict=True):
            candidates = near_enough.nonzero()[:, 0][None]
            found = search.exact(row, candidates).argsort(dim=1, stable=True)[:, :k]
            indices[row] = candidates.gather(1, found.to(candidates.device))


def _split(rows: Tensor, size: int) -> Sequence[Tensor]:
    return rows.split(max(1, size)) if len(rows) else ()


def _candidates(search: _Search, wanted: int) -> tuple[Tensor, Tensor]:
    """The rows that seem nearest: `(n, wanted)` approximate values, ascending, and indices."""
    count, total = search.queries.shape[0], search.bank.values.shape[0]
    near, found = _nothing(search.bank, count)
    for start in range(0, total, step := max(wanted, CHUNK // count)):
        near, found = _merged(near, found, search.values(slice(start, start + step)), start, wanted)
    return near, found


def _own_candidates(bank: Bank, wanted: int) -> tuple[Tensor, Tensor]:
    """`_candidates` of a bank in itself: each product serves both of its rows."""
    total = bank.values.shape[0]
    starts = range(0, total, ROWS)
    lists = [_nothing(bank, min(ROWS, total - start)) for start in starts]
    for i, first in enumerate(starts):
        for j, second in list(enumerate(starts))[i:]:
            values = squared_distances(bank.centred[first : first + ROWS], bank, slice(second, second + ROWS))
            if i == j:
                values.fill_diagonal_(torch.inf)
            else:
                lists[j] = _merged(*lists[j], values.T.contiguous(), first, wanted)
            lists[i] = _merged(*lists[i], values, second, wanted)
    near, found = zip(*lists, strict=True)
    return torch.cat(near), torch.cat(found)


def _nothing(bank: Bank, count: int) -> tuple[Tensor, Tensor]:
    empty = bank.values.new_empty(count, 0)
    return empty, empty.long()


def _merged(near: Tensor, found: Tensor, values: Tensor, start: int, wanted: int) -> tuple[Tensor, Tensor]:
    """The best of what was found and of the values of the rows from `start` on, ascending."""
    best, indices = values.topk(min(wanted, values.shape[1]), largest=False)
    indices += start
    if not near.shape[1]:
        return best, indices
    best, kept = torch.cat([near, best], 1).topk(min(wanted, near.shape[1] + best.shape[1]), largest=False)
    return best, torch.cat([found, indices], 1).gather(1, kept)
