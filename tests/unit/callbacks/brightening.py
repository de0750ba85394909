"""A generator that gets brighter with each step, the monitors that see it, and a loop that trains it."""

from __future__ import annotations

import torch
from torch import nn

from qa_hooks.callbacks import (
    GenerativeMonitor,
    Hooks,
    ScoreMonitor,
)
from qa_hooks.scorers import GMMScorer, create_scorer

REAL = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
EXTRACTOR = {"type": "random", "width": 4}


class Bright(nn.Module):
    """A generator whose images get brighter by one level a step; the step can be read off its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return (torch.rand(n, 1, 8, 8, generator=generator) + self.level).clamp(0, 1)


def brightness() -> GMMScorer:
    return GMMScorer(EXTRACTOR, 1, pca=2).fit(REAL, progress=False)


def tone(where: str | None, net: Bright, **options) -> ScoreMonitor:
    return ScoreMonitor(create_scorer("psnr"), images="fake", reference="real", where=where, **options)


def distance(where: str | None, net: Bright, **options) -> GenerativeMonitor:
    options = {"extractor": EXTRACTOR, "n": 50, "every": 1, "metrics": ("fd",), **options}
    return GenerativeMonitor(net.sample, REAL, where=where, **options)


def step(hooks: Hooks, net: Bright) -> None:
    with torch.no_grad():
        net.level += 0.1
    hooks.step(fake=torch.full((2, 1, 16, 16), net.level.item()).clamp(0, 1), real=torch.ones(2, 1, 16, 16))


def settled(monitor) -> None:
    """Wait until what is under way is known; it lands at the next step."""
    for job in monitor.pending:
        assert job.done.wait(300)  # however busy the machine is
