"""`torch.set_default_device` and `torch.set_default_dtype` change nothing: the same numbers, on the images' device.

The device "meta" stands for an accelerator: a tensor that lands there by accident has no values, so that whatever uses
it fails or is far off.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from qa_hooks import (
    OHEM,
    PSNR,
    FunctionScorer,
    GenerativeMonitor,
    GMMScorer,
    GradientPenalty,
    Hooks,
    MemoryWriter,
    MSSSIMLoss,
    NIQEPenalty,
    PerceptionDistortion,
    QAGANPenalty,
    RewardGuard,
    SampleGrid,
    ScoreHistogram,
    ScoreLoss,
    ScoreMonitor,
    SSIMLoss,
    SSIMPenalty,
    TopK,
    compare_folders,
    diagnose,
    load_scorer,
    pick,
    score_folder,
)  # fmt: skip
from qa_hooks.functional.spectrum import power_spectrum, spectral_peak
from qa_hooks.images import save_image, to_uint8


@contextmanager
def defaults(*, device="cpu", dtype=torch.float32):
    torch.set_default_device(device)
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def pictures(n, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, side // 4, side // 4, generator=generator)
    return nn.functional.interpolate(coarse, side, mode="bicubic").clamp(0, 1)


REAL, FAKE, MANY = pictures(80), pictures(8, seed=1), (pictures(400), pictures(400, seed=1))


class Here(nn.Module):
    """A critic or a generator with weights of its own, made once under torch's own defaults."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


torch.manual_seed(0)
CRITIC = Here(nn.Conv2d(3, 8, 4, 4), nn.Tanh(), nn.Flatten(), nn.Linear(512, 1))
GENERATOR = Here(nn.Linear(8, 3 * 32 * 32), nn.Sigmoid(), nn.Unflatten(1, (3, 32, 32)))


def with_gradient(function):
    images = FAKE.clone().requires_grad_()
    value = function(images)
    value.sum().backward()
    return value, images.grad


def saved_and_loaded(scorer, folder):
    fitted = scorer.fit(REAL, progress=False)
    fitted.save(folder / "fitted.safetensors")
    return fitted(FAKE), load_scorer(folder / "fitted.safetensors")(FAKE)


def sample(n, generator):
    with torch.no_grad():
        return GENERATOR(torch.randn(n, 8, generator=generator, device="cpu", dtype=torch.float32))


def monitored(*monitors):
    writer = MemoryWriter()
    with Hooks(list(monitors), writer=writer) as hooks:
        for _ in range(3):
            hooks.step(fake=FAKE, pred=FAKE, target=REAL[:8], real=REAL[:8])
    assert writer.scalars or writer.images
    curves = [points for tag, points in writer.scalars.items() if "second" not in tag]
    points = [value for points in curves for _, value in points]
    return [torch.tensor(points, device="cpu", dtype=torch.float64)]


def numbers_of(found):
    if isinstance(found, dict):
        return [number for value in found.values() for number in numbers_of(value)]
    if isinstance(found, (float, int)):
        return [torch.tensor(found, device="cpu", dtype=torch.float64)]
    return [found] if isinstance(found, torch.Tensor) else []


def text_of(found):
    """What the doctor prints, without the line of milliseconds."""
    lines = [line for line in str(found).splitlines() if not line.startswith("pass  cost ")]
    return [torch.tensor(list("\n".join(lines).encode()), device="cpu", dtype=torch.uint8)]


def folder_of(folder, images=FAKE):
    folder.mkdir()
    for number, image in enumerate(to_uint8(images)):
        save_image(image, folder / f"{number}.png")
    return folder


def folder_scored(folder):
    images = folder_of(folder / "images")
    return list(score_folder(images, [SHARP], folder / "scores.csv", progress=False).columns.values())


def folders_compared(folder):
    real, fake = folder_of(folder / "real", REAL[:60]), folder_of(folder / "fake", REAL[20:])
    found = compare_folders(real, fake, extractor="random", progress=False)
    return numbers_of(found.as_json()["values"])


def sharpness(images):
    return images.diff(dim=-1).abs().mean((1, 2, 3))


SHARP = FunctionScorer(sharpness, name="sharp", higher_is_better=True)
WAYS = {
    "SSIMLoss": lambda folder: with_gradient(lambda x: SSIMLoss()(x, REAL[:8])),
    "MSSSIMLoss": lambda folder: with_gradient(
        lambda x: MSSSIMLoss()(nn.functional.interpolate(x, 192), nn.functional.interpolate(REAL[:8], 192))
    ),
    "ScoreLoss": lambda folder: with_gradient(ScoreLoss(SHARP, ceiling=1.0)),
    "power_spectrum": lambda folder: [power_spectrum(FAKE), *spectral_peak(power_spectrum(FAKE))],
    "SSIMPenalty": lambda folder: [SSIMPenalty(value_range=(0, 1))(CRITIC, REAL[:8], FAKE)],
    "NIQEPenalty": lambda folder: [NIQEPenalty(value_range=(0, 1), warmup=1)(CRITIC, *MANY)],
    "GradientPenalty": lambda folder: [GradientPenalty(value_range=(0, 1))(CRITIC, REAL[:8], FAKE)],
    "QAGANPenalty": lambda folder: [QAGANPenalty("ssim", value_range=(0, 1))(CRITIC, REAL[:8], FAKE)],
    "OHEM": lambda folder: [OHEM(SHARP)(FAKE)],
    "TopK": lambda folder: [TopK(0.5, scorer=SHARP)(FAKE)],
    "pick": lambda folder: [pick(FAKE, SHARP, keep=0.5).indices],
    "scorer": lambda folder: saved_and_loaded(GMMScorer("random", components=2, pca=4), folder),
    "GenerativeMonitor": lambda folder: monitored(GenerativeMonitor(sample, REAL, extractor="random", n=50, every=1)),
    "ScoreMonitor": lambda folder: monitored(ScoreMonitor(SHARP, sample=sample, n=16, every=1)),
    "ScoreHistogram": lambda folder: monitored(
        ScoreHistogram(sample, REAL, SHARP, n=16, every=1), SampleGrid(sample, every=1, n=4)
    ),
    "RewardGuard": lambda folder: monitored(RewardGuard(SHARP, real=REAL, sample=sample, n=16, every=1)),
    "PerceptionDistortion": lambda folder: monitored(
        PerceptionDistortion(SHARP, PSNR(), images="pred", reference="target", every=1)
    ),
    "diagnose": lambda folder: text_of(diagnose(SHARP, REAL[:4], size=32)),
    "score_folder": folder_scored,
    "compare_folders": folders_compared,
}


@pytest.mark.filterwarnings("ignore:.* has been made anew")  # each run has its own penalty
@pytest.mark.parametrize("changed", [{"device": "meta"}, {"dtype": torch.float64}], ids=["meta", "float64"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_numbers_under_other_defaults(way, changed, tmp_path):
    for folder in ("ordinary", "changed"):
        (tmp_path / folder).mkdir()
    right = WAYS[way](tmp_path / "ordinary")
    with defaults(**changed):
        got = WAYS[way](tmp_path / "changed")
    assert len(got) == len(right) > 0
    for a, b in zip(got, right, strict=True):
        assert (a.device, a.dtype) == (b.device, b.dtype)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
