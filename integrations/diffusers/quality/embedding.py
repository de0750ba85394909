"""The dial for networks without cross-attention: q added to the embedding of time or class.

    emb(t, c) + scale Z(tokens(q)),        Z starts at zero, so an untrained adapter changes nothing

UNet2DModel and UNet2DConditionModel add it to `time_embedding`, SD3 and Flux to `time_text_embed`, and DiT to the
embedding of each of its blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

WHOLE = ("time_embedding", "time_text_embed")  # embeddings that a network computes once a call


class EmbeddingBranch(nn.Module):
    """Tokens `(B, T, d)` -> what is added to an embedding, `(B, width)`; zero at first."""

    def __init__(self, tokens: int, dim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(tokens * dim, width, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.project(tokens.flatten(1))
        return projected


class EmbeddingHook:
    """The forward hook of one embedding; `tokens` is None where nothing is added.

    It is an object and no closure, so that a call that is made again in the backward pass finds it as it was.
    """

    def __init__(self, branch: EmbeddingBranch, dial: Any) -> None:
        self.branch, self.dial = branch, dial
        self.tokens: Tensor | None = None
        self.scale = 1.0

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
        if self.tokens is None:
            return None
        if output.ndim != 2 or len(output) != len(self.tokens):
            raise ValueError(f"the embedding is {tuple(output.shape)} for {len(self.tokens)} rows of quality")
        added: Tensor = (self.scale * self.branch(self.tokens)).to(output.dtype)
        return output + added


def embeddings(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The embeddings that q can be added to, by name; {} for a network that has none."""
    for name in WHOLE:
        part = getattr(denoiser, name, None)
        if isinstance(part, nn.Module):
            return {name: part}
    return {n: m for n, m in denoiser.named_modules() if type(m).__name__ == "CombinedTimestepLabelEmbeddings"}


def embedding_width(embedding: Any) -> int:
    """The width of an embedding."""
    last = getattr(embedding, "timestep_embedder", embedding).linear_2
    return int(getattr(last, "base_layer", last).out_features)


def check_recomputed(denoiser: nn.Module, places: dict[str, nn.Module]) -> None:
    """Refuse gradient checkpointing of blocks that hold the embeddings: by then another q may be set."""
    inside = any(name not in WHOLE for name in places)
    if inside and torch.is_grad_enabled() and getattr(denoiser, "is_gradient_checkpointing", False):
        raise ValueError(
            f"{type(denoiser).__name__} embeds time and class inside its blocks, and gradient checkpointing would "
            "compute them again without the quality: denoiser.disable_gradient_checkpointing()"
        )
