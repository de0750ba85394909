"""`qa-hooks fit rank` on a folder of photographs, and what its file is good for."""

from __future__ import annotations

import csv

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.functional.degradations import LADDERS, degrade
from qa_hooks.images import save_image
from qa_hooks.scorers import load_scorer


@pytest.fixture
def photos(tmp_path, photographs):
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for number in range(24):
        top, left = (int(value) for value in torch.randint(96, (2,), generator=generator))
        crop = photographs[number % 3, :, top : top + 96, left : left + 96]
        save_image((crop * 255).round().byte(), tmp_path / "photos" / ("more" if number % 2 else "") / f"{number}.png")
    (tmp_path / "photos" / "broken.png").write_bytes(b"nothing")
    return tmp_path / "photos"


def test_fit_and_score_photographs_it_has_not_seen(photos, photographs, tmp_path, capsys):
    output = tmp_path / "rank.safetensors"
    command = ["fit", "rank", str(photos), "-o", str(output), "--steps", "80", "--crop", "32", "--device", "cpu"]
    assert main(command) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split() for line in out.splitlines()[:-1])
    assert list(lines) == [*LADDERS, "adjacent", "other_image"]
    assert all(0 < float(value) <= 1 for value in lines.values())
    assert float(lines["noise"]) > 0.7  # what it learns first
    scorer = load_scorer(output)
    assert out.splitlines()[-1] == f"{output}: rank, real level {scorer.real_level:.3f}"
    assert {name: f"{value:.3f}" for name, value in scorer.accuracies.items()} == lines
    assert "1 image could not be read and was left out" in err

    (tmp_path / "test").mkdir()
    for level in (0, 3):
        spoilt = degrade(photographs[3:], "noise", level, generator=torch.Generator().manual_seed(1))[0]
        save_image((spoilt * 255).round().byte(), tmp_path / "test" / f"noise{level}.png")
    assert main(["score", str(tmp_path / "test"), "--scorer", str(output), "-o", str(tmp_path / "scores.csv")]) == 0
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(line for line in file if not line.startswith("#"))}
    assert float(rows["noise0.png"]["rank"]) > float(rows["noise3.png"]["rank"])


def test_a_poor_fit_is_warned_of_and_bad_input_named(photos, tmp_path, capsys):
    output = ["-o", str(tmp_path / "rank.safetensors")]
    short = ["fit", "rank", str(photos), "--steps", "1", "--crops", "2", "--calibration", "minmax"]
    assert main([*short, *output, "--crop", "32"]) == 0
    assert "too few held-out pairs in the right order (blur" in capsys.readouterr().err
    assert main([*short, *output, "--crop", "200"]) == 1
    err = capsys.readouterr().err
    assert "24 of 24 images are smaller than --crop 200" in err
    assert "at least two images" in err
    assert main([*short, "-o", str(tmp_path / "rank.pt")]) == 1
    assert "must be a file ending in .safetensors" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["fit", "rank", str(tmp_path / "empty"), *output]) == 1
    assert "holds no image files" in capsys.readouterr().err
