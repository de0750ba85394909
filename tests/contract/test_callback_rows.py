"""What every callback promises: it runs, leaves the random state alone, saves, loads and may be closed twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import qa_hooks.callbacks
from qa_hooks.callbacks import (
    BestCheckpoint,
    Callback,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    NaNGuard,
    PerceptionDistortion,
    RefreshGradientModel,
    RewardGuard,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    SnapshotCollector,
)
from qa_hooks.penalties import NIQEPenalty
from qa_hooks.scorers import PSNR, FunctionScorer
from qa_hooks.writers import MemoryWriter

NO_CALLBACKS = {"Callback", "Context", "Hooks", "Monitor", "TrainingStopped", "with_weights"}


def brightness() -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)


def noise(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, 1, 8, 8, generator=generator)


def watched(make) -> list[Callback]:
    """A callback that decides, after the monitor that it reads."""
    monitor = ScoreMonitor(brightness(), every=1, images="fake")
    return [monitor, make(monitor)]


BEST = Path(tempfile.mkdtemp())

CALLBACKS = {
    "GenerativeMonitor": lambda: GenerativeMonitor(
        lambda n, g: torch.rand(n, 1, 8, 8, generator=g),
        torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        extractor={"type": "random", "width": 4},
        n=50,
        every=1,
    ),
    "RewardGuard": lambda: RewardGuard(sample=noise, every=1, n=8, extractor={"type": "random", "width": 4}),
    "SampleGrid": lambda: SampleGrid(lambda n, g: torch.rand(n, 1, 8, 8, generator=g), every=1, n=4),
    "ScoreMonitor": lambda: ScoreMonitor(brightness(), every=1, images="fake"),
    "SnapshotCollector": lambda: SnapshotCollector(
        lambda n, g: torch.rand(n, 1, 8, 8, generator=g), folder=Path(tempfile.mkdtemp()) / "run", every=1, n=4
    ),
    "ScorePanel": lambda: ScorePanel(noise, brightness(), every=1, n=4),
    "ScoreHistogram": lambda: ScoreHistogram(noise, torch.full((2, 1, 8, 8), 0.5), brightness(), every=1, n=4),
    "PerceptionDistortion": lambda: PerceptionDistortion(
        brightness(), PSNR(), images=noise, reference=torch.zeros(4, 1, 8, 8), every=1
    ),
    "BestCheckpoint": lambda: watched(
        lambda monitor: BestCheckpoint(monitor, "mean", mode="max", save=lambda path: path.touch(), folder=BEST)
    ),
    "EarlyStop": lambda: watched(lambda monitor: EarlyStop(monitor, "mean", mode="max", patience=9)),
    "NaNGuard": lambda: NaNGuard(),
    "RefreshGradientModel": lambda: RefreshGradientModel(
        NIQEPenalty(value_range=(0, 1), warmup=400),
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 1)),
        [torch.rand(400, 1, 16, 16, generator=torch.Generator().manual_seed(0))],
        every=1,
    ),
}


def test_every_export_has_a_row():
    assert set(CALLBACKS) == set(qa_hooks.callbacks.__all__) - NO_CALLBACKS


def listed(made: Callback | list[Callback]) -> list[Callback]:
    return made if isinstance(made, list) else [made]


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.filterwarnings("error")
def test_callbacks_run_save_load_and_end_twice(name):
    writer = MemoryWriter()
    hooks = Hooks(listed(CALLBACKS[name]()), writer=writer)
    before = torch.get_rng_state()
    fake = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    hooks.step(fake=fake)
    assert torch.equal(torch.get_rng_state(), before)
    other = Hooks(listed(CALLBACKS[name]()), writer=MemoryWriter())
    other.load_state_dict(hooks.state_dict())
    assert str(other.state_dict()) == str(hooks.state_dict())
    other.step(fake=fake)
    assert other.step_count == 2
    hooks.close()
    hooks.close()
    with pytest.raises(RuntimeError, match="these hooks are closed"):
        hooks.step(fake=fake)
