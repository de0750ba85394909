"""The two heads of A-FINE, and how their outputs are joined: pure functions of statistics of feature levels.

x is the reference, y the image under test; every quantity is lower for better images.

    F   = 1 - sum over levels and channels of alpha S1 + beta S2
          S1 = (2 mx my + c) / (mx^2 + my^2 + c),  S2 = (2 cov + c) / (vx + vy + c),  c = 1e-10
    N   = a small network of the means and variances of all levels
    h(u) = 4 sigmoid((u - centre) / (|width| + 1e-10)) - 2
    D   = h(F) + lambda h(N(y)),   lambda = exp(k (h(N(x)) - h(N(y)))),   k = softplus(k0)

Means, variances and covariances are over the positions of a level. alpha and beta are softplus values divided by the
sum of all of them.

Source: Chen, Wu, Ma and Zhang, "Toward Generalized Image Quality Assessment: Relaxing the Perfect Reference Quality
Assumption", 2025, and its published code (Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

C = 1e-10
TOP, BOTTOM = 2.0, -2.0  # of h
FINAL_CENTRE, FINAL_WIDTH = -1.9710, 2.3734  # of the final score in [0, 100]


class Level(NamedTuple):
    """A feature level of N images: values minus their mean `(N, C, n)`, mean and variance `(N, C)` over n positions."""

    centred: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Level:
        """From values `(N, C, n)`; half precision is widened, because c is 0 there."""
        values = values if values.dtype == torch.float64 else values.float()
        mean = values.mean(2, keepdim=True)
        centred = values - mean
        return cls(centred, mean.squeeze(2), centred.square().mean(2))

    def rows(self, keep: slice | Tensor) -> Level:
        """Some of the images."""
        return Level(self.centred[keep], self.mean[keep], self.variance[keep])


class FidelityHead(nn.Module):
    """F of two lists of levels: `(N,)`, 0 for equal images."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        weights = nn.Linear(sum(widths), 2, bias=False).weight.detach()
        self.alpha, self.beta = (nn.Parameter(nn.init.normal_(row, 0.1, 0.01)[None, None]) for row in weights)

    def forward(self, x: Sequence[Level], y: Sequence[Level]) -> Tensor:
        return self.from_similarities(similarities(x, y))

    def from_similarities(self, values: Tensor) -> Tensor:
        """From `similarities(x, y)`."""
        weights = F.softplus(torch.cat([self.alpha, self.beta], 2).flatten())
        return 1 - values @ (weights / (weights.sum() + C)).to(values)


def similarities(x: Sequence[Level], y: Sequence[Level]) -> Tensor:
    """S1 of all channels of all levels, then S2: `(N, 2 C)`."""
    means = torch.cat([torch.stack([a.mean, b.mean]) for a, b in zip(x, y, strict=True)], 2)
    variances = torch.cat([torch.stack([a.variance, b.variance]) for a, b in zip(x, y, strict=True)], 2)
    covariance = torch.cat([(a.centred * b.centred).mean(2) for a, b in zip(x, y, strict=True)], 1)
    s1 = (2 * means[0] * means[1] + C) / (means[0].square() + means[1].square() + C)
    s2 = (2 * covariance + C) / (variances[0] + variances[1] + C)
    return torch.cat([s1, s2], 1)


class NaturalnessHead(nn.Module):
    """N of a list of levels, `(N,)`: the published network, whose parameters have the published names.

    Args:
        widths: channels of each level; those after the first are equal, and share one layer.
        hidden: its outputs.
    """

    def __init__(self, widths: Sequence[int], *, hidden: int = 128) -> None:
        super().__init__()
        self.proj_feat = nn.Linear(2 * widths[1], hidden)
        self.proj_head = nn.Sequential(
            nn.Linear(2 * widths[0] + hidden * (len(widths) - 1), 6 * hidden), nn.GELU(), nn.Linear(6 * hidden, 1)
        )

    def forward(self, levels: Sequence[Level]) -> Tensor:
        rows = [torch.cat([level.mean, level.variance], 1) for level in levels]
        shared = self.proj_feat(torch.stack(rows[1:], 1)).flatten(1)
        found: Tensor = self.proj_head(torch.cat([rows[0], shared], 1)).squeeze(1)
        return found


class Calibrated(nn.Module):
    """h: a raw output `(N,)` to (-2, 2); centre and width have the published names, and limits where they are given."""

    def __init__(
        self, centre: float, width: float, *, limits: tuple[tuple[float, float], tuple[float, float]] | None = None
    ) -> None:
        super().__init__()
        self.yita3 = nn.Parameter(torch.tensor(float(centre), dtype=torch.float32, device="cpu"))
        self.yita4 = nn.Parameter(torch.tensor(float(width), dtype=torch.float32, device="cpu"))
        self.limits = limits

    def forward(self, values: Tensor) -> Tensor:
        centre: Tensor = self.yita3
        width: Tensor = self.yita4
        if self.limits is not None:
            centre, width = centre.clamp(*self.limits[0]), width.clamp(*self.limits[1])
        return (TOP - BOTTOM) * torch.sigmoid((values - centre) / (width.abs() + 1e-10)) + BOTTOM


class Adapter(nn.Module):
    """k of lambda, under its published name."""

    def __init__(self, k: float = 5.0) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(float(k), dtype=torch.float32, device="cpu"))

    def log_lambda(self, reference: Tensor, test: Tensor) -> Tensor:
        """From the calibrated naturalness of reference and test, `(N,)` each."""
        return F.softplus(self.k) * (reference - test)


class Heads(nn.Module):
    """Both heads, both calibrations and k, under the keys of the published file.

    Args:
        natural: levels -> raw N `(N,)`.
        fidelity: two lists of levels -> raw F `(N,)`.
    """

    def __init__(self, natural: nn.Module, fidelity: FidelityHead) -> None:
        super().__init__()
        self.natural, self.fidelity = natural, fidelity
        self.fidelity_scale = Calibrated(0.5, 0.15, limits=((0.05, 0.95), (0.01, 0.70)))
        self.natural_scale = Calibrated(4.9592, 21.5968)
        self.adapter = Adapter()

    def naturalness(self, levels: Sequence[Level]) -> Tensor:
        """h(N), `(N,)`."""
        found: Tensor = self.natural_scale(self.natural(levels))
        return found

    def terms(self, test: Sequence[Level], reference: Sequence[Level], reference_naturalness: Tensor) -> Terms:
        """All that the score is made of."""
        fidelity, natural = self.fidelity_scale(self.fidelity(reference, test)), self.naturalness(test)
        itself = self.fidelity_scale(torch.zeros_like(reference_naturalness)) + reference_naturalness
        weight = self.adapter.log_lambda(reference_naturalness, natural)
        return Terms(fidelity, natural, reference_naturalness, weight, itself)


class Terms(NamedTuple):
    """What A-FINE's score is made of, `(N,)` each; all but `log_lambda` are lower for better images.

    Attributes:
        fidelity: h(F), how far the image lies from its reference, in (-2, 2).
        naturalness: h(N) of the image, in (-2, 2).
        reference_naturalness: h(N) of the reference.
        log_lambda: the logarithm of the weight of naturalness; above 0 where the image is the more natural one.
        reference_distance: D of the reference itself, for which lambda is 1.
    """

    fidelity: Tensor
    naturalness: Tensor
    reference_naturalness: Tensor
    log_lambda: Tensor
    reference_distance: Tensor

    @property
    def distance(self) -> Tensor:
        """D, as published: unbounded, lower is better."""
        return self.fidelity + self.log_lambda.exp() * self.naturalness

    @property
    def score(self) -> Tensor:
        """D mapped to [0, 100] by the published curve; lower is better."""
        return 100 * torch.sigmoid((self.distance - FINAL_CENTRE) / FINAL_WIDTH)

    @property
    def better_than_reference(self) -> Tensor:
        """1 where the image scores better than its own reference does, else 0."""
        return (self.distance < self.reference_distance).to(self.fidelity)

    def loss(self, max_lambda: float) -> Tensor:
        """h(F) + stop_grad(min(lambda, max_lambda)) h(N): falls whenever F or N falls, unlike D for N > 1/k."""
        weight = self.log_lambda.detach().clamp(max=math.log(max_lambda)).exp()
        return self.fidelity + weight * self.naturalness
