"""`qa-hooks fit afine`, from photographs, ratings and the published checkpoint."""

from __future__ import annotations

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.functional.degradations import dead_leaves, degrade
from qa_hooks.images import save_image, to_uint8
from qa_hooks.scorers import load_scorer
from qa_hooks.scorers.afine.checkpoint import random_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
QUICK = ["--steps", "3", "--extractor", "random", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photographs")
    pictures = dead_leaves(5, 40, generator=torch.Generator().manual_seed(0), leaves=60)
    rows = []
    for number, picture in enumerate(pictures, 1):
        save_image(to_uint8(picture), root / f"i{number:02d}.png")
        for level in (1, 2, 3):
            worse = degrade(picture[None], "blur", level)[0]
            save_image(to_uint8(worse), root / f"i{number:02d}_08_{level}.png")
            rows.append(f"{7 - level}.0 i{number:02d}_08_{level}.bmp")
    (root / "mos_with_names.txt").write_text("\n".join(rows))
    return root


def run(arguments, capsys):
    code = main(["fit", "afine", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_from_photographs(folder, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    arguments = ["--photos", folder, "--crop", 32, "-o", out, "--cache", tmp_path / "cache", *QUICK]
    code, said, _ = run(arguments, capsys)
    assert code == 0
    assert "afine_random, right in" in said
    assert list((tmp_path / "cache").glob("*.safetensors"))
    scorer = load_scorer(out)
    assert f"{scorer.held_out['accuracy']:.3f}" in said
    code, again, _ = run(arguments, capsys)
    assert (code, again) == (0, said)


def test_from_ratings(folder, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    code, said, _ = run([folder / "mos_with_names.txt", folder, "-o", out, *QUICK], capsys)
    assert code == 0
    assert "30 pairs (0 ties) of 20 images with 5 contents; 0 images are better" in said
    image = torch.rand(1, 3, 40, 40)
    assert load_scorer(out)(image, reference=image).shape == (1,)


def test_from_a_table_of_your_own(folder, tmp_path, capsys):
    rows = ["file;stars;original"]
    for line in (folder / "mos_with_names.txt").read_text().splitlines():
        score, name = line.split()
        rows.append(f"{name};{score.replace('.', ',')};{name[:3]}.png")
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    own = [tmp_path / "mine.csv", folder, "-o", tmp_path / "a.safetensors", *QUICK, "--better", "higher", "--columns"]
    code, said, _ = run([*own, "name=file", "rating=stars", "reference=original"], capsys)
    assert code == 0
    assert "30 pairs (0 ties) of 20 images with 5 contents" in said
    code, _, err = run([*own, "name=file", "rating=stars", "content=original"], capsys)
    assert code == 1
    assert "--columns reference=COLUMN" in err


def test_the_converter(tmp_path, capsys):
    torch.save(random_checkpoint(), tmp_path / "afine.pth")
    code, said, _ = run(["--convert", tmp_path / "afine.pth", "-o", tmp_path / "a.safetensors"], capsys)
    assert code == 0
    assert load_scorer(tmp_path / "a.safetensors").fingerprint in said


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "give RATINGS and IMAGES, or --photos DIR, or --convert FILE"),
        (["--photos", "x", "--convert", "y"], "give RATINGS and IMAGES"),
        (["ratings.csv"], "give RATINGS and IMAGES"),
        (["--convert", "none.pth"], "none.pth does not exist"),
        (["none.csv", "."], "none.csv does not exist"),
        (["--photos", ".", "--extractor", "resnet18"], ""),
    ],
)
def test_bad_input_is_one_line(arguments, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run([*arguments, "-o", "a.safetensors"], capsys)
    assert code == 1
    assert match in err
    assert "Traceback" not in err


def test_an_output_of_another_kind(tmp_path, capsys):
    code, _, err = run(["--convert", "x.pth", "-o", tmp_path / "a.pth"], capsys)
    assert code == 1
    assert "must be a file ending in .safetensors" in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "afine", "--help"])
    assert "qa-hooks fit afine --photos" in capsys.readouterr().out
