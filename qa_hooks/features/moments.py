"""Count, mean and covariance of feature rows, gathered batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.processes import gather_equal, is_distributed
from qa_hooks.functional.numerics import to_float64


class Moments:
    """Count, mean and covariance of feature rows, gathered batch by batch, exact to float64 and mergeable.

    Rows are centred by a shift taken from the first batch before their products are formed (raw second moments lose
    all digits far from the origin). A product of few rows costs more to add up than to form, so rows wait until there
    are enough of them, and only one triangle is computed.

    Example:
        >>> moments = Moments(3)
        >>> rows = torch.arange(12.0).reshape(4, 3)
        >>> moments.update(rows[:1]); moments.update(rows[1:])
        >>> bool(torch.allclose(moments.covariance(), torch.cov(rows.T).double()))
        True
    """

    WAITING = 512  # rows
    BLOCK = 256  # columns of a product at a time

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._shift: Tensor | None = None
        self._total = torch.zeros(dim, dtype=torch.float64, device="cpu")
        self._outer = torch.zeros(dim, dim, dtype=torch.float64, device="cpu")  # its lower triangle
        self._waiting: list[Tensor] = []

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        """The moments of rows `(n, dim)`."""
        moments = cls(rows.shape[1])
        for part in rows.split(512):
            moments.update(part)
        return moments

    def update(self, rows: Tensor) -> None:
        """Add rows `(n, dim)`; `ValueError` when they are not finite."""
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise ValueError(f"rows must have the shape (n, {self.dim}), got {tuple(rows.shape)}")
        if not bool(torch.isfinite(rows).all()):
            raise ValueError("rows hold non-finite values")
        if not rows.shape[0]:
            return
        rows = to_float64(rows.detach())
        if self._shift is None:
            self._shift = rows.mean(0)
        self._total, self._outer = self._total.to(rows.device), self._outer.to(rows.device)
        centred = rows - self._shift.to(rows.device)
        self.count += rows.shape[0]
        self._total = self._total + centred.sum(0)
        self._waiting.append(centred)
        if sum(len(part) for part in self._waiting) >= self.WAITING:
            self._multiply()

    def _multiply(self) -> None:
        """Add the products of the rows that wait."""
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting = []
        for start in range(0, self.dim, self.BLOCK):
            stop = start + self.BLOCK
            self._outer[start:, start:stop].addmm_(rows[:, start:].T, rows[:, start:stop])

    def merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Add a set given by its count, mean and centred sum of outer products (Chan, Golub, LeVeque 1979)."""
        if not count:
            return
        if not self.count:
            self.count, self._shift = count, mean
            self._total, self._outer = torch.zeros_like(mean), scatter.clone()
            return
        own_mean, own_scatter, n = self.mean(), self.scatter(), self.count
        delta = mean - own_mean
        self.count = n + count
        self._shift = own_mean + delta * (count / self.count)
        self._total = torch.zeros_like(self._total)
        self._outer = own_scatter + scatter + torch.outer(delta, delta) * (n * count / self.count)

    def mean(self) -> Tensor:
        """`(dim,)` float64."""
        if self._shift is None:
            raise ValueError("no rows have been added")
        return self._shift + self._total / self.count

    def scatter(self) -> Tensor:
        """The sum of outer products about the mean, `(dim, dim)` float64."""
        self._multiply()
        outer = self._outer.tril() + self._outer.tril(-1).T
        return outer - torch.outer(self._total, self._total) / max(self.count, 1)

    def covariance(self) -> Tensor:
        """The unbiased covariance `(dim, dim)` float64; `ValueError` below two rows."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count}")
        return self.scatter() / (self.count - 1)

    def reduced(self) -> Moments:
        """The moments of the rows of all processes, on every process; one collective."""
        if not is_distributed():
            return self
        merged = Moments(self.dim)
        local = torch.zeros(1 + self.dim + self.dim**2, dtype=torch.float64, device="cpu")
        if self.count:
            count = torch.tensor([self.count], dtype=torch.float64, device="cpu")
            local = torch.cat([count, self.mean().cpu(), self.scatter().flatten().cpu()])
        for part in gather_equal(local):
            merged.merge(int(part[0]), part[1 : 1 + self.dim], part[1 + self.dim :].reshape(self.dim, self.dim))
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        waiting = torch.cat(self._waiting) if self._waiting else None
        return {
            "count": self.count,
            "shift": self._shift,
            "total": self._total,
            "outer": self._outer.clone(),  # which is added to in place
            "waiting": waiting,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.count, self._shift = int(state["count"]), state["shift"]
        self._total, self._outer = state["total"], state["outer"].clone()
        self._waiting = [state["waiting"]] if state.get("waiting") is not None else []
