"""The benchmark of whole jobs: what it prepares, and that a job runs in a process of its own and is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.jobs import prepare, spend
from qa_hooks.images import save_image


def fill(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for number in range(count):
        save_image(torch.randint(0, 256, (3, side, side), dtype=torch.uint8), folder / f"{number:03d}.png")
    return folder


def test_a_job_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos, small = fill(tmp_path / "photos", 2, 192), fill(tmp_path / "small", 64, 16)
    prepare(out, photos, small, None, 3)
    assert len(list((out / "photos").iterdir())) == 3  # the first stands there twice
    spent = spend("score, qa_hooks", out)
    assert not spent.failed, spent.said
    assert spent.cpu > 0.1
    assert len((out / "photos.csv").read_text().splitlines()) == 4


def test_a_folder_of_somebody_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="remove it, or name another --out"):
        prepare(tmp_path, tmp_path, tmp_path, None, 1)
    assert (tmp_path / "mine.txt").read_text() == "mine"
