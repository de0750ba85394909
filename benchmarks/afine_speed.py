"""The speed of A-FINE with random weights: batches, against a loop over single images like its published program."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import OURS, compare, table
from qa_hooks.scorers import AFINE
from qa_hooks.scorers.afine.checkpoint import BACKBONE, random_checkpoint
from qa_hooks.scorers.afine.published import MEAN, STD

C = 1e-10


class Loop:
    """One image and its reference at a time, through torch's own attention, with the formulas as they are written."""

    def __init__(self, content: dict[str, dict[str, Tensor]], depth: int, width: int) -> None:
        self.content, self.width = content, width
        self.blocks = []
        state = content[BACKBONE]
        for number in range(depth):
            own = {k.split(f"resblocks.{number}.")[1]: v for k, v in state.items() if f"resblocks.{number}." in k}
            attention = nn.MultiheadAttention(width, width // 64)
            attention.load_state_dict({k[5:]: v for k, v in own.items() if k.startswith("attn.")})
            self.blocks.append((attention.eval(), own))

    def encode(self, image: Tensor) -> list[Tensor]:
        state = self.content[BACKBONE]
        x = F.conv2d(image, state["visual.conv1.weight"], stride=32).flatten(2).permute(0, 2, 1)
        x = torch.cat([state["visual.class_embedding"].expand(1, 1, -1), x], 1)
        own = state["visual.positional_embedding"][None, None]
        x = x + F.interpolate(own, (x.shape[1], self.width), mode="bicubic", align_corners=False)[0, 0]
        x = F.layer_norm(x, (self.width,), state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
        x, found = x.permute(1, 0, 2), []
        for attention, own in self.blocks:
            y = F.layer_norm(x, (self.width,), own["ln_1.weight"], own["ln_1.bias"])
            x = x + attention(y, y, y, need_weights=False)[0]
            y = F.layer_norm(x, (self.width,), own["ln_2.weight"], own["ln_2.bias"])
            y = F.linear(y, own["mlp.c_fc.weight"], own["mlp.c_fc.bias"])
            x = x + F.linear(y * torch.sigmoid(1.702 * y), own["mlp.c_proj.weight"], own["mlp.c_proj.bias"])
            found.append(x.permute(1, 0, 2)[:, 1:])
        return found

    def natural(self, image: Tensor, tokens: list[Tensor]) -> Tensor:
        state, parts = self.content["natural"], []
        for k, x in enumerate([image.flatten(2).permute(0, 2, 1), *map(F.relu, tokens)]):
            mean = x.mean(1, keepdim=True)
            row = torch.cat([mean.flatten(1), ((x - mean) ** 2).mean(1)], 1)
            parts.append(row if k == 0 else F.linear(row, state["proj_feat.weight"], state["proj_feat.bias"]))
        x = F.gelu(F.linear(torch.cat(parts, 1), state["proj_head.0.weight"], state["proj_head.0.bias"]))
        raw = F.linear(x, state["proj_head.2.weight"], state["proj_head.2.bias"])
        centre, width = (self.content["natural_scale"][key] for key in ("yita3", "yita4"))
        return 4 / (1 + torch.exp(-(raw - centre) / (width.abs() + C))) - 2

    def fidelity(self, x: Tensor, y: Tensor, tokens_x: list[Tensor], tokens_y: list[Tensor]) -> Tensor:
        alpha, beta = (F.softplus(self.content["fidelity"][key]) for key in ("alpha", "beta"))
        total, place = alpha.sum() + beta.sum() + C, 0
        found: Tensor = torch.ones(1, 1)
        levels_x = [x.flatten(2).permute(0, 2, 1), *map(F.relu, tokens_x)]
        levels_y = [y.flatten(2).permute(0, 2, 1), *map(F.relu, tokens_y)]
        for a, b in zip(levels_x, levels_y, strict=True):
            ma, mb = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
            va, vb = ((a - ma) ** 2).mean(1, keepdim=True), ((b - mb) ** 2).mean(1, keepdim=True)
            covariance = (a * b).mean(1, keepdim=True) - ma * mb
            own = slice(place, place + a.shape[2])
            s1 = (2 * ma * mb + C) / (ma**2 + mb**2 + C)
            s2 = (2 * covariance + C) / (va + vb + C)
            found = found - ((alpha[..., own] * s1 + beta[..., own] * s2) / total).sum(2)
            place += a.shape[2]
        centre, width = (self.content["fidelity_scale"][key] for key in ("yita3", "yita4"))
        return 4 / (1 + torch.exp(-(found - centre.clamp(0.05, 0.95)) / width.clamp(0.01, 0.7))) - 2

    def __call__(self, images: Tensor, references: Tensor) -> Tensor:
        mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
        k, found = F.softplus(self.content["adapter"]["k"]), []
        for image, reference in zip(images.split(1), references.split(1), strict=True):
            tokens, other = (self.encode((x - mean) / std) for x in (image, reference))
            own, its = self.natural(image, tokens), self.natural(reference, other)
            distance = torch.exp(k * (its - own)) * own + self.fidelity(image, reference, tokens, other)
            found.append(100 / (1 + torch.exp(-(distance + 1.9710) / 2.3734)))
        return torch.cat(found).flatten()


@torch.no_grad()
def speed(batch: int, side: int, runs: int) -> None:
    """The table, for square images of this side."""
    depth, width = 12, 768
    content = random_checkpoint(width=width, depth=depth, hidden=128)
    loop, scorer = Loop(content, depth, width), AFINE(content)
    images, references = (torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    known = scorer.describe(references)
    difference = (loop(images, references) - scorer(images, reference=references)).abs().max()
    rows = [
        compare(
            f"{batch} pairs of {side} x {side}",
            {OURS: lambda: scorer(images, reference=references), "loop": lambda: loop(images, references)},
            goal=1 / 1.3,
            runs=runs,
        ),
        compare(
            "the same, references described before",
            {OURS: lambda: scorer.against(images, known), "loop": lambda: loop(images, references)},
            goal=1 / 1.8,
            runs=runs,
        ),
    ]
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{torch.get_num_threads()} threads of {os.cpu_count()} cores, torch {torch.__version__}, load {load}")
    print(f"largest difference of the scores in [0, 100]: {difference:.1e}")
    print(table(rows))
