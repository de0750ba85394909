"""Ratings and preferences as what an A-FINE is trained on."""

from __future__ import annotations

import logging

import pytest
import torch

from qa_hooks.images import save_image
from qa_hooks.ratings import Preference, Preferences, as_comparisons, read_preferences, read_ratings


@pytest.fixture
def folder(tmp_path):
    names = ["i01", "i02", *(f"i{c:02d}_01_{level}" for c in (1, 2) for level in (1, 2, 3))]
    for number, name in enumerate(names):
        save_image(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / f"{name}.png")
    return tmp_path


def said(found):
    """{(better, worse): p} by the files' names, with the reference's name in front."""
    result = {}
    for (a, b), p in zip(found.pairs.tolist(), found.better.tolist(), strict=True):
        names = [found.pictures[int(found.test[item])].stem for item in (a, b)]
        result[(found.pictures[int(found.reference[a])].stem, *names)] = p
    return result


def test_rated_images_of_a_reference_that_nobody_rated(folder):
    lines = [f"{5 - level}.5 I{c:02d}_01_{level}.bmp" for c in (1, 2) for level in (1, 2, 3)]
    (folder / "mos_with_names.txt").write_text("\n".join(lines))
    ratings = read_ratings(folder / "mos_with_names.txt", "tid2013")
    found = as_comparisons(ratings, folder)
    pairs = said(found)
    assert pairs["i01", "i01_01_1", "i01_01_2"] == 1
    assert pairs["i02", "i02", "i02_01_3"] == 1  # the reference counts as the best
    assert len(pairs) == 2 * (3 + 3)
    assert not bool(found.beats_reference.any())
    assert len(as_comparisons(ratings, folder, reference_is_best=False).pairs) == 6
    assert float(as_comparisons(ratings, folder, least=1.0).better.min()) == 0.5


def test_triplets_in_which_an_image_beats_its_reference(folder):
    (folder / "triplets.csv").write_text(
        "i01_01_1.png,i01_01_2.png,i01.png,1,1,0.5\ni02_01_1.png,i02_01_2.png,i02.png,0,0,0\n"
    )
    found = as_comparisons(read_preferences(folder / "triplets.csv"), folder)
    pairs = said(found)
    assert pairs["i01", "i01_01_1", "i01"] == 1
    assert pairs["i01", "i01_01_2", "i01"] == 0.5
    assert len(pairs) == 6  # the references were judged: nothing is added
    assert int(found.beats_reference.sum()) == 1


def test_missing_images_are_left_out_and_counted(folder, caplog):
    (folder / "i01_01_1.png").unlink()
    pairs = [
        Preference("i01_01_1.png", "i01.png", 1.0, "i01.png"),
        Preference("i01_01_2.png", "i01.png", -1.0, "i01.png"),
    ]
    with caplog.at_level(logging.WARNING, "qa_hooks"):
        found = as_comparisons(Preferences(pairs, "mine"), folder)
    assert len(found.pairs) == 1
    assert "1 of 3 images are not in" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ([Preference("i01_01_1", "i01_01_2", 1.0, "x")], "nothing says which image is the reference of 'x'"),
        ([Preference("i01_01_1", "gone.png", 1.0, "gone.png")], "the reference 'gone.png' of 'gone.png' is not in"),
        (
            [Preference("none.png", "i01.png", 1.0, "i01.png")],
            "no pairs of images that are in .*; without an image: 1",
        ),
        ([Preference("../i01.png", "i01.png", 1.0, "i01.png")], "outside the folder"),
    ],
)
def test_bad_preferences(folder, pairs, match):
    with pytest.raises(ValueError, match=match):
        as_comparisons(Preferences(pairs, "mine"), folder)


def test_the_reference_of_a_content_can_be_named(folder):
    pairs = Preferences([Preference("i01_01_1.png", "i01_01_2.png", 1.0, "a beach")], "mine")
    assert said(as_comparisons(pairs, folder, references={"a beach": "i01.png"}))["i01", "i01_01_1", "i01_01_2"] == 1
