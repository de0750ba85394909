"""The example that tunes a VAE's decoder: its alarm sees tiles, its encoder stays as it is, and it runs as printed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qa_hooks.demo.autoencoder import PERIODS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("vae_decoder", ROOT / "examples" / "vae_decoder.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks it up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("period", [2, 4, 8])
@pytest.mark.parametrize("columns", [True, False])
def test_the_tile_alarm_sees_seams_of_each_period(example, photographs, period, columns):
    images = photographs[:, :, :96, :96]
    clean = example.tile_ratio(images)
    steps = 0.05 * (torch.arange(96) // period % 2)  # a jump at each seam
    tiled = images + (steps if columns else steps[:, None])
    assert clean < 1.1
    assert example.tile_ratio(tiled) > example.LIMIT * clean


def test_the_tile_ratio_is_that_of_a_loop(example):
    images = torch.rand(2, 3, 17, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for rows in (images, images.transpose(2, 3)):
        width = rows.shape[3]
        for period in PERIODS:
            whole = (width - 1) // period * period
            phases = []
            for phase in range(period):
                values = [(rows[..., x + 1] - rows[..., x]).abs().mean() for x in range(phase, whole, period)]
                phases.append(sum(values) / len(values))
            found.append(max(phases) / (sum(phases) / period))
    assert example.tile_ratio(images) == pytest.approx(float(max(found)))
    assert example.tile_ratio(torch.full((1, 3, 96, 96), 0.5)) == 0.0


def options(tmp_path, **changed):
    settings = {
        "data": None, "vae": None, "out": tmp_path, "runs": ["critic"], "batch": 2, "seconds": 60.0, "steps": 2,
        "judged": 1, "lr": 1e-3, "look_every": 1, "available": [], "extractor": "random",
    }  # fmt: skip
    return argparse.Namespace(**(settings | changed))


@pytest.mark.filterwarnings("ignore")
def test_a_run_changes_the_decoder_and_no_latent(example, tmp_path):
    torch.manual_seed(0)
    example.small_vae().save_pretrained(tmp_path / "vae-seed0")
    done = []
    progress = argparse.Namespace(put=done.append)
    result = example.tune(options(tmp_path), example.Job("critic", 0), progress)
    assert result["same latents"] is True
    assert result["steps"] == 2 == len(done)
    start = example.tune(options(tmp_path), example.Job("base", 0), progress)
    assert result["rows"]["critic"]["PSNR"] != start["rows"]["base"]["PSNR"]
    before, after = (
        example.load_vae(options(tmp_path, vae=folder), 0).state_dict()
        for folder in (tmp_path / "vae-seed0", tmp_path / "critic-seed0" / "vae")
    )
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}
    text = example.report([{**result, "same latents": False}])
    assert "CHANGED" in text


@pytest.mark.slow
def test_it_runs_as_printed(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "vae_decoder.py"), "--tiny", "--out", str(tmp_path)]
    command += ["--jobs", "1", "--runs", "L1-L2", "SSIM", "NIQE", "RankScorer", "critic"]
    text = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    names = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert names == ["base", "L1-L2", "SSIM", "NIQE", "RankScorer", "critic"]
    assert "bit for bit as before" in text
    kept = json.loads((tmp_path / "results.json").read_text())["found"]
    assert all(kept[f"Job(name='{name}', seed=0)"]["same latents"] for name in names[1:])
