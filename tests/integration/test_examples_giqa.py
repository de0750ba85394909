"""The GIQA examples, run as a user runs them, with few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from qa_hooks.images import save_image

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def test_ohem_ends_with_its_tables_and_a_picture(tmp_path):
    out = run(
        "giqa_ohem.py", "--losses", "hinge", "--seeds", "0", "--variants", "uniform", "shuffled", "letter", "random_k",
        "--steps", "6", "--samples", "200", "--out", str(tmp_path),
    )  # fmt: skip
    for variant in ("uniform", "shuffled", "letter", "random_k"):
        assert f"| {variant} | 6 |" in out
    assert "| picker | 0.5 |" in out
    assert "| truncation | 0.9 |" in out
    results = list(json.loads((tmp_path / "results.json").read_text())["found"].values())
    results.sort(key=lambda row: ["uniform", "shuffled", "letter", "random_k"].index(row["variant"]))
    assert [row["variant"] for row in results] == ["uniform", "shuffled", "letter", "random_k"]
    assert all(0 <= row["qs"] <= 1 and 0 <= row["ds"] <= 1 and row["fd"] > 0 for row in results)
    assert results[0]["share"] == 0 < results[1]["share"] < 1
    assert (tmp_path / "samples.png").stat().st_size > 1000


def test_ranking_of_photographs_with_every_scorer(tmp_path, photographs):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos").mkdir()
    for number in range(20):
        top, left = (int(value) for value in torch.randint(64, (2,), generator=generator))
        crop = photographs[number % 4, :, top : top + 128, left : left + 128]
        save_image((crop * 255).round().byte(), tmp_path / "photos" / f"{number:02d}.png")
    arguments = ["--data", str(tmp_path / "photos"), "--crops", "12", "--brief", "--steps", "8", "--fit-steps", "4"]
    arguments += ["--rank-steps", "4"]
    out = run("giqa_ranking.py", *arguments, "--out", str(tmp_path / "out"))
    results = json.loads((tmp_path / "out" / "photos" / "results.json").read_text())
    assert list(results) == ["NIQE", "RankIQA", "BC", "IR", "SGM", "MBC (N = 8)", "GMM (M = 7)", "KNN (K = 1)"]
    for row in results.values():
        assert list(row) == ["blur", "noise", "jpeg", "downsample", "snapshots"]
        assert all(low <= accuracy <= high for accuracy, low, high, _ in row.values())
    assert "extractor random" in out
    again = run("giqa_ranking.py", *arguments, "--out", str(tmp_path / "out"))  # the two GAN runs are not repeated
    assert again.splitlines()[-5:] == out.splitlines()[-5:]
