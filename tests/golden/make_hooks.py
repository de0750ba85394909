"""Makes `hooks.safetensors`: the state of hooks that a run saved after four steps, as version 0.1 writes it.

    PYTHONPATH=. python tests/golden/make_hooks.py

Not to be run again for a change of the code: the file stands for the checkpoints that users have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qa_hooks.callbacks import Hooks, NaNGuard, RewardGuard, SampleGrid, ScoreHistogram, ScoreMonitor, ScorePanel
from qa_hooks.integrations.hook_state import save_state
from qa_hooks.penalties import QAGANPenalty, SSIMPenalty
from qa_hooks.scorers import FunctionScorer
from qa_hooks.weighting import OHEM
from qa_hooks.writers import MemoryWriter

PATH = Path(__file__).with_name("hooks.safetensors")
STEPS = 4


def brightness() -> FunctionScorer:
    return FunctionScorer(lambda images: images.mean((1, 2, 3)), name="brightness", higher_is_better=True)


def make_run() -> tuple[Hooks, Any]:
    """The hooks of a small run, and a function that makes its next step."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 256), torch.nn.Sigmoid(), torch.nn.Unflatten(1, (1, 16, 16)))
    critic = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Tanh())
    penalty = QAGANPenalty("both", value_range=(0, 1), warmup=90)
    single, ohem = SSIMPenalty(value_range=(0, 1), interval=2), OHEM(worst=0.25)
    real = torch.rand(16, 1, 16, 16)

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        return net(torch.randn(n, 4, generator=generator))

    callbacks = [
        SampleGrid(sample, every=2, n=4),
        ScoreMonitor(brightness(), sample=sample, every=2, n=6, batch_size=4),
        ScorePanel(sample=sample, scorer=brightness(), every=2, n=4),
        ScoreHistogram(sample=sample, real=real, scorer=brightness(), every=2, n=4),
        RewardGuard(brightness(), sample=sample, base="start", real=real, n=8, every=2, batch_size=4),
        NaNGuard(),
    ]
    track = {"qagan": penalty, "ssim": single, "ohem": ohem}
    hooks = Hooks(callbacks, writer=MemoryWriter(), track=track, log_every=3)

    def step() -> None:
        fake = sample(16, torch.Generator().manual_seed(1)).detach()
        penalty(critic, real, fake)
        single(critic, real, fake)
        ohem(fake, scores=torch.linspace(0, 1, 16))
        with torch.no_grad():
            net[0].bias += 0.1
        hooks.record(loss=net[0].bias.mean())
        hooks.step(fake=fake)

    return hooks, step


if __name__ == "__main__":
    hooks, step = make_run()
    for _ in range(STEPS):
        step()
    save_state(hooks.state_dict(), PATH)
    print(f"{PATH} ({PATH.stat().st_size} bytes)")
