"""The example of the dial, run as a user runs it, with a few steps of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

import torch

from qa_hooks.demo.graded import load_graded_crops, naturalness_of, pack, unpack
from qa_hooks.images import load_image, save_image

ROOT = Path(__file__).resolve().parents[2]


def test_it_ends_with_a_table_strips_and_a_run(tmp_path):
    rows = ["adapter-gated", "gradient-guidance", "quality-words", "reward-fine-tuning"]
    command = [sys.executable, str(ROOT / "examples" / "quality_dial.py"), "--tiny", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--rows", *rows], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["found"]
    assert list(results) == [f"{name}, seed 0" for name in ("base", *rows)]
    for name, run in zip(("base", *rows), results.values(), strict=True):
        assert len(run["levels"]) == len(run["rank"]) == len(run["held-out"]) == 9
        assert f"| {name} |" in done.stdout
        strip = load_image(tmp_path / f"strip_{name.replace(', ', '_').replace(' ', '_')}_0.png")
        assert strip.shape[2] > 9 * 96
    assert results["base, seed 0"]["spearman rank"] is None
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_the_crops_are_graded_and_judged(tmp_path):
    crops = load_graded_crops(count=300)
    assert crops.images.shape == (300, 3, 32, 32)
    assert crops.labels.bincount().min() > 60
    assert torch.equal(unpack(pack(crops.images)), 2 * crops.images - 1)
    judged = naturalness_of(crops.clean).goodness(crops.images)
    assert judged[crops.levels == 0].mean() > judged[crops.levels == 4].mean()
    for label in ("cat", "dog"):
        for number in range(40):
            (tmp_path / label).mkdir(exist_ok=True)
            save_image((crops.images[number] * 255).byte(), tmp_path / label / f"{number}.png")
    own = load_graded_crops(tmp_path, count=30)
    assert (len(own.images), own.classes, len(own.clean)) == (30, 2, 10)
