"""`qa-hooks fit mos`, `fit pairs`, `rate` and `scorers FILE` as somebody types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.cli import main
from qa_hooks.scorers import load_scorer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """12 scenes at 4 strengths of noise, a table of stars, and pairs."""
    folder, random = tmp_path_factory.mktemp("opinions"), np.random.default_rng(0)
    stars, pairs = ["file,stars,scene"], ["image_a,image_b,label,content,rater"]
    (folder / "images").mkdir()
    for scene in range(12):
        clean = np.kron(random.integers(60, 195, (4, 4, 3)), np.ones((6, 6, 1)))
        for level in range(4):
            noisy = (clean + random.normal(0, 1, clean.shape) * 15 * level).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / "images" / f"s{scene:02d}_{level}.png")
            stars.append(f"s{scene:02d}_{level}.png,{5 - level},s{scene:02d}")
            pairs += [f"s{scene:02d}_{b}.png,s{scene:02d}_{level}.png,1,s{scene:02d},anna" for b in range(level)]
    (folder / "stars.csv").write_text("\n".join(stars) + "\n")
    (folder / "pairs.csv").write_text("\n".join(pairs) + "\n")
    return folder


def fit(kind: str, photos: Path, table: str, output: Path, *more: str) -> int:
    images = str(photos / "images")
    return main(["fit", kind, str(photos / table), images, "-o", str(output), "--extractor", "random", *more])


OWN = ("--columns", "name=file", "rating=stars", "content=scene", "--better", "higher")


def test_ratings_of_ones_own(photos, tmp_path, capsys):
    output = tmp_path / "mine.safetensors"
    assert fit("mos", photos, "stars.csv", output, *OWN) == 0
    said = capsys.readouterr()
    assert "agreement with people: srcc" in said.out
    assert "qa-hooks doctor" in said.out
    assert "which is little" in said.err
    assert not list(tmp_path.glob("*.features"))
    scorer = load_scorer(output)
    assert scorer.facts["held_out"]["srcc"]["value"] > 0.8
    assert main(["scorers", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "OpinionScorer" in shown
    assert "36 - " not in shown
    assert "srcc" in shown
    assert "28 images of 7 contents" in shown
    assert main(["score", str(photos / "images"), "--scorer", str(output), "-o", str(tmp_path / "scores.csv")]) == 0


def test_pairs(photos, tmp_path, capsys):
    output, cache = tmp_path / "mine.safetensors", tmp_path / "cache"
    assert fit("pairs", photos, "pairs.csv", output, "--link", "bradley-terry", "--cache", str(cache)) == 0
    assert "agreement with people: accuracy" in capsys.readouterr().out
    assert len(list(cache.iterdir())) == 1
    assert load_scorer(output).facts["kind"] == "pairs"


@pytest.mark.parametrize(
    ("kind", "table", "more", "message"),
    [
        ("mos", "stars.csv", (), "none of the known forms|your own name its columns|columns="),
        ("mos", "stars.csv", ("--columns", "name=file", "rating=stars"), "--better higher or --better lower"),
        ("mos", "stars.csv", ("--columns", "name=file", "rating=moons", "--better", "higher"), "no column 'moons'"),
        ("mos", "stars.csv", (*OWN, "--format", "tid2013"), "--format and --rating are for published sets"),
        ("mos", "stars.csv", (*OWN, "--weights", "x.pth"), "has no option weights"),
        ("mos", "nowhere.csv", OWN, "does not exist"),
        ("pairs", "stars.csv", (), "no table of pairs"),
        ("pairs", "nowhere.csv", (), "does not exist"),
    ],
)
def test_what_is_wrong_is_told(photos, tmp_path, capsys, kind, table, more, message):
    import re

    assert fit(kind, photos, table, tmp_path / "mine.safetensors", *more) == 1
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not (tmp_path / "mine.safetensors").exists()


def test_bad_options_are_told_before_the_work(photos, tmp_path, capsys):
    assert fit("mos", photos, "stars.csv", tmp_path / "mine.pt", *OWN) == 1
    assert "ending in .safetensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit("mos", photos, "stars.csv", tmp_path / "mine.safetensors", "--columns", "stars")
    assert "WHAT=COLUMN" in capsys.readouterr().err
    assert main(["scorers", str(photos / "stars.csv")]) == 1
    assert "not a whole safetensors file" in capsys.readouterr().err


def test_a_file_that_somebody_made_up_is_refused(photos, tmp_path, capsys):
    import json

    from safetensors.torch import save_file

    for options in ({"facts": {"held_out": {"srcc": 1}}}, {"facts": ["x"]}, {"extractor": "x"}, []):
        header = {"format": "qa_hooks.scorer", "scorer": json.dumps({"class": "OpinionScorer", "options": options})}
        save_file({"bias": torch.zeros(1)}, tmp_path / "odd.safetensors", header)
        assert main(["scorers", str(tmp_path / "odd.safetensors")]) == 1
        assert "is not a saved scorer" in capsys.readouterr().err


def test_rate_tells_its_address_and_ends_without_loss(photos, tmp_path):
    command = [sys.executable, "-m", "qa_hooks", "rate", str(photos / "images"), "-o", str(tmp_path / "pairs.csv")]
    process = subprocess.Popen([*command, "--rater", "anna"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    first = [process.stdout.readline() for _ in range(3)]
    assert "1128 pairs" in first[0]
    assert first[1].startswith("open http://127.0.0.1:")
    import signal

    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "0 of 1128 pairs" in rest
    assert len((tmp_path / "pairs.csv").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--by", "name"), "no two of these 48 images"),
        (("--hidden",), "name their folder"),
        (("--reference", "nowhere"), "is no folder"),
        (("--pairs", "nowhere.csv"), "does not exist"),
        (("--rater", " "), "rater must be a name"),
        (("--port", "99999"), "port 99999 cannot be used"),
    ],
)
def test_what_cannot_be_rated_is_told(photos, tmp_path, capsys, more, message):
    assert main(["rate", str(photos / "images"), "-o", str(tmp_path / "pairs.csv"), *more]) == 1
    assert message in capsys.readouterr().err
