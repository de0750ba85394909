"""`qa-hooks agree` and `qa-hooks select`, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from qa_hooks.cli import main


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Six pictures at four levels of noise, their ratings, and a table of scores of one's own."""
    monkeypatch.chdir(tmp_path)
    g = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    lines, scores = ["file,stars,scene,ref"], ["path,rough,smooth"]
    for c in range(6):
        clean = np.full((24, 24, 3), 60.0 + 20 * c)
        Image.fromarray(clean.astype(np.uint8)).save(tmp_path / "images" / f"ref{c}.png")
        for level in range(4):
            noisy = clean + 4 * (level + 1) * g.normal(size=clean.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"s{c}_{level}.png")
            lines.append(f"s{c}_{level}.png,{4 - level + 0.2 * g.normal():.3f},{c},ref{c}.png")
            scores.append(f"images/S{c}_{level}.jpg,{level + g.normal():.3f},{g.normal():.3f}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    (tmp_path / "scores.csv").write_text("\n".join(scores))
    return ["--columns", "name=file", "rating=stars", "content=scene", "reference=ref", "--better", "higher"]


def test_agree(mine, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    command = ["agree", "mine.csv", "scores.csv", *mine, "--lower", "rough", "--higher", "smooth"]
    assert main([*command, "--json", "a.json", "--report", "a.png"]) == 0
    out = capsys.readouterr().out
    assert "rough agrees best with people (srcc)" in out
    assert "24 ratings read as a table of your own" in out
    assert json.loads((tmp_path / "a.json").read_text())["best"] == ["rough"]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"] == ["rough"]


def test_where_the_picture_goes_is_checked_before_the_work(mine, tmp_path, capsys):
    command = ["agree", "mine.csv", "scores.csv", *mine, "--lower", "rough", "--higher", "smooth", "--report"]
    assert main([*command, "mine.csv/a.png"]) == main([*command, "images"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "--report mine.csv cannot be written" in said.err
    assert "--report must be a PNG file, got 'images'" in said.err


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    for command, codes in ((["scorers"], [141]), (["--help"], [0, 141])):  # argparse has its own way
        read, write = os.pipe()
        os.close(read)
        code = "import sys; from qa_hooks.cli import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run([sys.executable, "-c", code, *command], stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert done.returncode in codes
        assert done.stderr == ""


def test_agree_with_pairs(mine, tmp_path, capsys):
    lines = ["image_a,image_b,label", *(f"s{c}_0.png,s{c}_3.png,{1 if c else 0}" for c in range(6))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    assert main(["agree", "pairs.csv", "scores.csv", "--lower", "rough", "--higher", "smooth"]) == 0
    out = capsys.readouterr().out
    assert "6 pairs read as pairs, 1 of them ties, which are left out" in out
    assert "agreement on 5 pairs" in out


def test_select_and_again(mine, tmp_path, capsys):
    command = ["select", "mine.csv", "images", *mine, "--scorers", "psnr", "piq:tv", "-o", "out", "--use", "monitor"]
    pytest.importorskip("piq")
    assert main([*command, "--device", "cpu"]) == 0
    first = capsys.readouterr()
    assert "monitor: " in first.out
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.txt", "report.json", "scores"}
    assert main([*command, "--device", "cpu"]) == 0
    assert "scores: 24 images" in first.err
    assert "scores: 24 images" not in capsys.readouterr().err  # they are kept


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["agree", "missing.csv", "scores.csv"], "missing.csv does not exist"),
        (["agree", "mine.csv", "scores.csv"], "has none of the known forms"),
        (["agree", "mine.csv", "missing.csv", "MINE"], "missing.csv does not exist"),
        (["agree", "mine.csv", "scores.csv", "MINE"], "name it with --higher or --lower"),
        (["agree", "mine.csv", "scores.csv", "MINE", "--report", "a.txt"], "must be a PNG file"),
        (["agree", "mine.csv", "mine.csv", "MINE"], "is not a table of scores"),
        (
            ["agree", "mine.csv", "scores.csv", "--columns", "name=file", "rating=stars"],
            "--better higher or --better lower",
        ),
        (["select", "mine.csv", "missing", "MINE", "--scorers", "psnr", "-o", "out"], "is no folder"),
        (["select", "mine.csv", "images", "MINE", "--scorers", "nonsense", "-o", "out"], "unknown scorer"),
        (
            ["select", "mine.csv", "images", "MINE", "--scorers", "psnr", "-o", "out", "--target", "align"],
            "--rating are for published sets",
        ),
        (
            ["select", "mine.csv", "images", "--rating", "a", "--target", "b", "--scorers", "psnr", "-o", "out"],
            "name two ratings",
        ),
    ],
)
def test_bad_input_is_one_line(command, message, mine, capsys):
    command = [part for given in command for part in (mine if given == "MINE" else [given])]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"qa-hooks {command[0]}: ")
    assert message in error


def test_options_that_are_no_columns_are_refused(mine, capsys):
    with pytest.raises(SystemExit):
        main(["agree", "mine.csv", "scores.csv", "--columns", "file"])
    assert "is not WHAT=COLUMN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--by", "kind", "level", "content"], "by (kind, level, content)"),
        (["--statistics", "srcc", "accuracy"], "(srcc)"),
    ],
)
def test_what_preferences_do_not_have_is_refused_before_the_scores_are_read(options, message, tmp_path, capsys):
    lines = ["image_a,image_b,label", *(f"{c}a.png,{c}b.png,1" for c in range(6))]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    rows = ["path,m", *(f"{c}{side}.png,{side == 'a':d}" for c in range(6) for side in "ab")]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    command = ["agree", str(tmp_path / "pairs.csv"), str(tmp_path / "m.csv"), "--higher", "m"]
    assert main([*command, *options]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err
    assert main(command) == 0
