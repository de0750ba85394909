"""The example of a reward for super-resolution, run as a user runs it, with few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qa_hooks.images import load_image, save_image
from qa_hooks.integrations.peft import load_lora
from qa_hooks.scorers import load_scorer

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def ran(tmp_path_factory, photographs):
    """What four steps on ten pieces of photographs print and leave behind."""
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(10):
        top, left = (number * 9) % 64, (number * 23) % 64
        piece = photographs[number % 4, :, top : top + 120, left : left + 128]
        save_image((piece * 255).round().byte(), folder / f"{number}.png")
    out = tmp_path_factory.mktemp("out")
    command = [sys.executable, str(ROOT / "examples" / "sr_reward_lora.py"), "--data", str(folder), "--out", str(out)]
    command += ["--base-steps", "3", "--rank-steps", "3", "--steps", "4", "--look-every", "2", "--batch", "2"]
    command += ["--runs", "LoRA", "LoRA-x10-views", "guarded", "--jobs", "1"]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout, out


def runs_of(out):
    found = json.loads((out / "results.json").read_text())["found"]
    return [result for result in found.values() if result is not None]  # nothing is kept of what went into a file


def test_the_table_has_every_net_and_its_change(ran):
    text, out = ran
    names = ["HR", "bicubic", "base", "LoRA", "LoRA-adapter-0.5", "LoRA-adapter-0.25"]
    names += ["LoRA-x10-views", "LoRA-x10-views-adapter-0.5", "LoRA-x10-views-adapter-0.25", "guarded"]
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in table] == names
    results = {result["name"]: result for result in runs_of(out)}
    base, lora = (results[name]["rows"][name] for name in ("base", "LoRA"))
    assert table[3][2] == f"{lora['PSNR']:.2f} ({lora['PSNR'] - base['PSNR']:+.2f})"
    assert base["peak of change"] == 1.0  # nothing stands out of nothing
    assert all(f"the guard of {name}, seed 0" in text for name in ("LoRA", "LoRA-x10-views", "guarded"))


def test_an_adapter_at_half_strength_lies_between_the_base_and_itself(ran):
    rows = {}
    for result in runs_of(ran[1]):
        rows |= result["rows"]
    base, quarter, whole = (rows[name]["reward"] for name in ("base", "LoRA-adapter-0.25", "LoRA"))
    assert abs(quarter - base) < abs(whole - base)


def test_what_it_leaves_behind_can_be_used(ran):
    from safetensors.torch import load_file

    from qa_hooks.demo.super_resolution import SRNet

    out = ran[1]
    reward, held_out = (load_scorer(out / f"{name}-seed0.safetensors") for name in ("reward", "held-out"))
    images = torch.rand(2, 3, 48, 48)
    assert not torch.equal(reward(images), held_out(images))
    net = SRNet(3)
    net.load_state_dict(load_file(out / "net-seed0.safetensors"))
    before = net(images)
    load_lora(net, out / "LoRA-seed0")
    assert not torch.equal(net(images), before)
    assert load_image(out / "strip.png").shape[0] == 3
    assert any((out / "guarded-seed0").glob("events.*"))
