"""What every function, loss, penalty, scorer and callback of the package promises, over one table of settings each."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import (
    BestCheckpoint,
    Callback,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    Monitor,
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
from qa_hooks.functional.input_gradients import gradient_penalty
from qa_hooks.functional.multiscale_similarity import ms_ssim
from qa_hooks.functional.niqe import niqe_features
from qa_hooks.functional.structural_similarity import ssim, ssim_distance
from qa_hooks.losses import HGGTNegativeLoss, MSSSIMLoss, QALoss, ScoreLoss, SSIMDistanceLoss, SSIMLoss
from qa_hooks.penalties import (
    CriticPenalty,
    DriftPenalty,
    GradientPenalty,
    NIQEPenalty,
    QAGANPenalty,
    SSIMPenalty,
    fit_gradient_model,
)
from qa_hooks.scorers import MSSSIM, NIQE, PSNR, SSIM, FunctionScorer, GMMScorer, KNNScorer
from qa_hooks.writers import MemoryWriter

pytestmark = pytest.mark.filterwarnings("ignore:images of:UserWarning", "ignore:.*another convention.*:UserWarning")


def images(kind: str, size: int = 32, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair in [0, 1] of one of the kinds that break image metrics."""
    generator = torch.Generator().manual_seed(0)
    random = torch.rand(2, 2, channels, size, size, generator=generator)
    return {
        "constant": (torch.full_like(random[0], 0.3), torch.full_like(random[0], 0.7)),
        "identical": (random[0], random[0].clone()),
        "identical constant": (torch.full_like(random[0], 0.5), torch.full_like(random[0], 0.5)),
        "saturated": ((random[0] > 0.5).float(), torch.ones_like(random[0])),
        "black": (torch.zeros_like(random[0]), torch.zeros_like(random[0])),
        "faint": (0.5 + 1e-4 * random[0], 0.5 + 1e-4 * random[1]),
        "random": (random[0], random[1]),
    }[kind]


KINDS = ["constant", "identical", "identical constant", "saturated", "black", "faint", "random"]

FUNCTIONS = {
    "ssim": ssim,
    "ssim second order": lambda x, y: ssim(x, y, second_order=True),
    "ms_ssim": ms_ssim,
    "ssim_distance": ssim_distance,
    "ssim_distance official": lambda x, y: ssim_distance(x, y, variant="official"),
    "niqe_features": lambda x, y: niqe_features(x.mean(1, keepdim=True), max_slope=100.0),
}

LOSSES = {
    "SSIMLoss": SSIMLoss,
    "MSSSIMLoss": MSSSIMLoss,
    "SSIMDistanceLoss": SSIMDistanceLoss,
    "ScoreLoss": lambda **options: ScoreLoss(PSNR(), **options),
}


def finite_with_gradient(function, x: torch.Tensor, y: torch.Tensor) -> None:
    x = x.clone().requires_grad_()
    value = function(x, y)
    assert torch.isfinite(value).all()
    value.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_finite_in_value_and_gradient(name, kind):
    finite_with_gradient(FUNCTIONS[name], *images(kind))


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "niqe_features"])
def test_functions_are_finite_on_tiny_images(name, size):
    for kind in KINDS:
        finite_with_gradient(FUNCTIONS[name], *images(kind, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_finite_in_value_and_gradient(name, kind):
    finite_with_gradient(LOSSES[name](), *images(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scorer", [PSNR, SSIM, MSSSIM, NIQE])
def test_scorers_are_finite_in_value_and_gradient(scorer, kind):
    scorer = scorer()
    pair = images(kind, 96)
    inputs = {"reference": pair[1]} if "reference" in scorer.inputs else {}
    finite_with_gradient(lambda x, _: scorer(x, **inputs), *pair)


FITTED = {
    "GMMScorer": lambda extractor: GMMScorer(extractor, 2, pca=4),
    "KNNScorer": lambda extractor: KNNScorer(extractor, 3),
    "KNNScorer official": lambda extractor: KNNScorer(extractor, 3, variant="official_code"),
}


@pytest.mark.parametrize("name", FITTED)
def test_fitted_scorers_are_finite_in_value_and_gradient(name):
    scorer = FITTED[name]({"type": "random", "width": 8}).fit(torch.rand(60, 3, 32, 32), progress=False)
    for kind in KINDS:
        finite_with_gradient(lambda x, _: scorer(x), *images(kind))
        finite_with_gradient(lambda x, _: scorer(x), *images(kind, 5))
    assert not list(scorer.parameters())
    assert not scorer.state_dict()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 30 * 30, 1))
    return fit_gradient_model(critic, [torch.rand(400, 3, 32, 32)], progress=False)


PENALTIES = {
    "GradientPenalty": lambda model, **o: GradientPenalty(**o),
    "SSIMPenalty": lambda model, **o: SSIMPenalty(**o),
    "NIQEPenalty": lambda model, **o: NIQEPenalty(model=model, **o),
    "DriftPenalty": lambda model, **o: DriftPenalty(**o),
    "QAGANPenalty": lambda model, **o: QAGANPenalty("both", model=model, **o),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_finite_in_value_and_gradient(name, kind, model):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 30 * 30, 1))
    penalty = PENALTIES[name](model, value_range=(0, 1))
    value = penalty(critic, *images(kind))
    assert value.shape == ()
    value.backward()
    assert all(torch.isfinite(p.grad).all() for p in critic.parameters() if p.grad is not None)
    assert penalty.terms
    assert all(not term.requires_grad for term in penalty.terms.values())


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_need_a_range_and_keep_their_state(name, model):
    with pytest.raises(TypeError, match="value_range"):
        PENALTIES[name](model)
    penalty = PENALTIES[name](model, value_range=(0, 1))
    critic = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 1))
    penalty(critic, *images("random"))
    other = PENALTIES[name](model, value_range=(0, 1))
    other.load_run_state(penalty.run_state())
    assert penalty.state_dict() == {}
    assert torch.equal(penalty(critic, *images("random")), other(critic, *images("random")))
    assert not list(penalty.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_weight_zero_have_no_graph_and_no_state(name):
    loss = LOSSES[name](weight=0)
    x, y = images("random")
    assert not loss(x.requires_grad_(), y).requires_grad
    assert loss.state_dict() == {}
    assert not list(loss.parameters())


def every_subclass(kind: type) -> set[type]:
    return {
        c for sub in kind.__subclasses__() for c in {sub, *every_subclass(sub)} if c.__module__.startswith("qa_hooks")
    }


def test_the_tables_leave_nothing_out():
    losses = every_subclass(QALoss)
    covered = set(LOSSES) | {HGGTNegativeLoss.__name__}  # takes votes: tests/unit/losses/test_hggt.py
    assert {c.__name__ for c in losses if c.__module__.startswith("qa_hooks.losses")} == covered
    assert {c.__name__ for c in every_subclass(CriticPenalty)} == set(PENALTIES)
    own = every_subclass(Callback) - {Monitor}
    assert {c.__name__ for c in own if c.__module__.startswith("qa_hooks.callbacks")} == set(CALLBACKS)
    assert gradient_penalty.__doc__


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
    other = Hooks(listed(CALLBACKS[name]()))
    other.load_state_dict(hooks.state_dict())
    assert str(other.state_dict()) == str(hooks.state_dict())
    other.step(fake=fake)
    assert other.step_count == 2
    hooks.close()
    hooks.close()
    with pytest.raises(RuntimeError, match="these hooks are closed"):
        hooks.step(fake=fake)
