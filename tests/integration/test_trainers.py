"""Proof on trainers that we did not write: denoising-diffusion-pytorch's `Trainer`, and a Diffusers training script."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qa_hooks.callbacks import GenerativeMonitor, Hooks, SampleGrid, ScoreMonitor
from qa_hooks.features import create_extractor
from qa_hooks.images import save_image, to_uint8
from qa_hooks.scorers import GMMScorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def diffusion(monkeypatch):
    """The package, as PyPI has it; its loaders would start one process for each core."""
    package = pytest.importorskip("denoising_diffusion_pytorch")
    monkeypatch.setattr("denoising_diffusion_pytorch.denoising_diffusion_pytorch.cpu_count", lambda: 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield package
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def make_trainer(diffusion, data: Path, results: Path, steps: int):
    torch.manual_seed(0)
    net = diffusion.Unet(dim=8, dim_mults=(1, 2), channels=1, attn_heads=1, attn_dim_head=4, flash_attn=False)
    process = diffusion.GaussianDiffusion(net, image_size=16, timesteps=20, sampling_timesteps=4)
    return diffusion.Trainer(
        process,
        str(data),
        train_batch_size=16,
        train_num_steps=steps,
        ema_update_every=1,
        ema_decay=0.9,
        save_and_sample_every=4,
        num_samples=4,
        results_folder=str(results),
        calculate_fid=False,
    )


def test_denoising_diffusion_pytorch(digits, diffusion, tmp_path):
    (tmp_path / "data").mkdir()
    for index, image in enumerate(to_uint8(digits[:128], (-1, 1))):
        save_image(image, tmp_path / "data" / f"{index}.png")
    plain = make_trainer(diffusion, tmp_path / "data", tmp_path / "plain", steps=6)
    plain.train()

    trainer = make_trainer(diffusion, tmp_path / "data", tmp_path / "watched", steps=6)

    def sample(n: int, generator: torch.Generator) -> torch.Tensor:
        """Its sampler draws from the global state, which monitors put back."""
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return trainer.ema.ema_model.sample(batch_size=n)

    real, extractor = (digits[:128] + 1) / 2, create_extractor("random", width=8)
    scorer = GMMScorer(extractor, 2, pca=4).fit(real, progress=False)
    monitor = GenerativeMonitor(sample, real, extractor=extractor, metrics=("fd", "kid"), n=64, every=3)
    callbacks = [SampleGrid(sample, every=3, n=4), ScoreMonitor(scorer, every=3, sample=sample, n=16), monitor]
    with Hooks(callbacks, log_dir=tmp_path / "tensorboard", log_every=2).attach(trainer.opt) as hooks:
        trainer.train()

    assert hooks.step_count == 6
    pairs = zip(plain.model.state_dict().values(), trainer.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    pairs = zip(plain.ema.state_dict().values(), trainer.ema.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Images("qa_images/samples/grid")] == [1, 3, 6]
    tags = events.Tags()["scalars"]
    (score,) = [tag for tag in tags if re.fullmatch(r"qa_eval/giqa_gmm/mean", tag)]
    assert [event.step for event in events.Scalars(score)] == [1, 3, 6]
    assert any("fd_" in tag and "n=64" in tag for tag in tags), tags
    assert monitor.last["step"] == 6
    assert monitor.last["fd"] > 0


def run_script(monkeypatch, capsys, *arguments: str) -> str:
    """Run examples/diffusers_digits.py as a user would, in this process; what it prints."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    monkeypatch.setattr(sys, "argv", ["diffusers_digits.py", *arguments])
    runpy.run_path(str(ROOT / "examples" / "diffusers_digits.py"), run_name="__main__")
    return capsys.readouterr().out


def test_a_diffusers_script(monkeypatch, capsys, tmp_path):
    """A few steps, then resumed for a few more: a table, a picture and one curve."""
    sizes = ["--width", "8", "--samples", "32", "--sampling-steps", "2", "--every", "3", "--batch-size", "8"]
    for more in (["--steps", "3"], ["--steps", "6", "--resume"]):
        printed = run_script(monkeypatch, capsys, "--out", str(tmp_path), *sizes, *more)
        assert len(re.findall(r"^\| (?:generated \(n=32\)|held-out real) \| [\d.]+ \| [\d.]+ \|$", printed, re.M)) == 2
    assert (tmp_path / "samples.png").stat().st_size > 1000
    events = EventAccumulator(str(tmp_path / "digits")).Reload()
    assert [event.step for event in events.Scalars("qa_eval/giqa_gmm/mean")] == [1, 3, 6]
    assert [event.step for event in events.Images("qa_images/samples/grid")] == [1, 3, 6]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def test_the_script_is_short_and_its_lines_are_marked():
    lines = (ROOT / "examples" / "diffusers_digits.py").read_text().splitlines()
    assert len(lines) < 150
    assert sum("# qa_hooks" in line for line in lines) >= 8
