"""From a setting of the dial to tokens: what training and sampling both call.

    e(q) = (q, sin(pi 2^l q), cos(pi 2^l q)),  l < L        or q itself without an encoding
    tokens = LayerNorm(W [e(q) present, 1 - present])        (B, T, d)

A score that is missing has a column of its own, so that "not given" is learned and differs from "average" (q = 0).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HIDDEN = 128  # of the projector with a hidden layer


def encode(q: Tensor, frequencies: int) -> Tensor:
    """Sines and cosines of `(B, D)` beside the values: `(B, D, 1 + 2 frequencies)`.

    Example:
        >>> encode(torch.tensor([[0.0]]), 1)
        tensor([[[0., 0., 1.]]])
    """
    angles = math.pi * q[..., None] * 2.0 ** torch.arange(frequencies, device=q.device, dtype=q.dtype)
    return torch.cat([q[..., None], angles.sin(), angles.cos()], dim=-1)


class QualityProjector(nn.Module):
    """q `(B, D)`, NaN for missing -> tokens `(B, T, d)`.

    Args:
        widths: how many columns of q belong together: they are missing together.
        tokens: T.
        dim: d.
        frequencies: of the encoding; 0 for none.
        hidden: whether a hidden layer of 128 with GELU comes first.
    """

    def __init__(self, widths: tuple[int, ...], tokens: int, dim: int, *, frequencies: int, hidden: bool) -> None:
        super().__init__()
        self.widths, self.tokens, self.frequencies = widths, tokens, frequencies
        size = sum(widths) * (1 + 2 * frequencies) + len(widths)
        first: list[nn.Module] = [nn.Linear(size, HIDDEN), nn.GELU()] if hidden else []
        self.project = nn.Sequential(*first, nn.Linear(HIDDEN if hidden else size, tokens * dim))
        self.norm = nn.LayerNorm(dim)

    def forward(self, q: Tensor) -> Tensor:
        missing = torch.stack([group.isnan().any(1) for group in q.split(self.widths, dim=1)], 1)
        gone = torch.cat([missing[:, i : i + 1].expand(-1, width) for i, width in enumerate(self.widths)], 1)
        encoded = encode(torch.where(gone, 0.0, q), self.frequencies) * ~gone[..., None]
        features = torch.cat([encoded.flatten(1), missing.to(q)], 1)
        projected: Tensor = self.project(features)
        tokens: Tensor = self.norm(projected.unflatten(1, (self.tokens, -1)))
        return tokens
