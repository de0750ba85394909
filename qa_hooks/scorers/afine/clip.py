"""The backbone of the published A-FINE: CLIP's vision transformer, read for the tokens after each block.

The positions' embedding is stretched to other sizes as the published code does it: as one picture of tokens x width,
class token included, by two-dimensional bicubic interpolation. The trained weights depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_WIDTH = 64  # of CLIP's attention
BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.")


class Block(nn.Module):
    """Attention and a small network, each after a normalisation and added to its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.attn = nn.ModuleDict({"out_proj": nn.Linear(width, width)})
        joint = nn.Linear(width, 3 * width)
        self.attn.register_parameter("in_proj_weight", nn.Parameter(joint.weight))
        self.attn.register_parameter("in_proj_bias", nn.Parameter(joint.bias))
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        shape = tokens.shape
        joint = F.linear(self.ln_1(tokens), self.attn.in_proj_weight, self.attn.in_proj_bias)  # type: ignore[arg-type]
        query, key, value = joint.view(*shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(shape)
        tokens = tokens + self.attn["out_proj"](mixed)
        hidden = self.mlp["c_fc"](self.ln_2(tokens))
        added: Tensor = self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))
        return tokens + added


class ClipVision(nn.Module):
    """Normalised images `(N, 3, H, W)`, sides multiples of `patch` -> the tokens after each block, `(N, n, width)`.

    Args:
        width, depth, patch: of ViT-B/32 they are 768, 12 and 32.
        positions: rows of the positions' embedding, class token included.
    """

    def __init__(self, width: int, depth: int, patch: int, positions: int) -> None:
        super().__init__()
        if width % HEAD_WIDTH:
            raise ValueError(f"CLIP's width is a multiple of {HEAD_WIDTH}, got {width}")
        self.width, self.depth, self.patch = width, depth, patch
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(self.conv1.weight.new_empty(width))
        self.positional_embedding = nn.Parameter(self.conv1.weight.new_empty(positions, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(width) for _ in range(depth))})

    def forward(self, images: Tensor) -> list[Tensor]:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        tokens = self.ln_pre(tokens + self.positions(tokens.shape[1]))
        found = []
        for block in self.transformer["resblocks"]:  # type: ignore[attr-defined]
            tokens = block(tokens)
            found.append(tokens[:, 1:])
        return found

    def positions(self, count: int) -> Tensor:
        """The embedding of so many tokens, `(count, width)`."""
        own = self.positional_embedding
        if len(own) == count:  # equal to the interpolation, bit for bit
            return own
        stretched = F.interpolate(own[None, None], (count, own.shape[1]), mode="bicubic", align_corners=False)
        return stretched[0, 0]

    @classmethod
    def like(cls, state: Mapping[str, Tensor]) -> ClipVision:
        """An empty network of the size that a state dict has; the caller loads it with `assign=True`."""
        blocks = {int(found[1]) for name in state if (found := BLOCK.match(name))}
        width, _, patch, _ = state["conv1.weight"].shape
        with torch.device("meta"):
            return cls(width, len(blocks), patch, len(state["positional_embedding"]))
