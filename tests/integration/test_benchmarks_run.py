"""Every benchmark that has a small form still runs in it; what it measures is not looked at here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = {
    "ssim": ["--quick", "--threads", "1"],
    "evaluation": ["--quick", "--threads", "1"],
    "giqa": ["--quick", "--threads", "1"],
    "penalties": ["--quick", "--threads", "1"],
    "niqe": ["--quick", "--threads", "1"],
    "diffusion": ["--quick", "--threads", "1"],
    "reward_guard": ["--quick", "--workers", "1"],
    "sr_architectures": ["--only", "SPAN"],
    "pipelines": ["--only", "StableDiffusionPipeline", "--out", "rows.jsonl"],
    "afine": ["--speed", "--batch", "2", "--side", "64", "--runs", "7"],
    "dial_drops": ["--drops", "0.1", "--seeds", "0", "--steps", "3", "--base-steps", "3"],
    "niqe_weight": ["--steps", "3", "--seeds", "0", "--jobs", "1", "--settings", "weight 0.1"],
}
NEEDS = {"sr_architectures": "spandrel"}  # of the extra `bench`, which the tests do without
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks", name, *COMMANDS[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
