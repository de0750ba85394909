"""One file of opinions: ratings or preferences, by what it holds."""

from __future__ import annotations

import json

import pytest

from qa_hooks.ratings import Preferences, Ratings, read_opinions


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.csv", "image_a,image_b,label\na.png,b.png,1\n", Preferences),
        ("a.txt", "x_1.png,x_2.png,x.png,0,0,1\n", Preferences),
        ("a.json", json.dumps([{"prompt": "x", "generations": ["a.png", "b.png"], "ranking": [1, 2]}]), Preferences),
        ("a.txt", "5.5 I01_01_1.bmp\n4.5 I01_01_2.bmp\n", Ratings),
        ("a.csv", "filename,MOS_nat,MOS_tech,MOS_rat\na.png,1,2,3\n", Ratings),
    ],
)
def test_the_content_decides(name, text, kind, tmp_path):
    (tmp_path / name).write_text(text)
    assert isinstance(read_opinions(tmp_path / name), kind)


def test_raters_of_pairs_vote(tmp_path):
    lines = ["image_a,image_b,label,rater", *(f"a.png,b.png,{label},{who}" for who, label in enumerate((1, 1, -1)))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert [pair.better for pair in read_opinions(tmp_path / "a.csv")] == [1.0]


def test_a_split(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("file,stars,part\na.png,1,train\nb.png,2,test\n")
    columns = {"name": "file", "rating": "stars", "split": "part"}
    found = read_opinions(path, columns=columns, higher_is_better=True, split="test")
    assert found.names == ["b.png"]
    with pytest.raises(ValueError, match="has no split 'val'; its splits are test, train"):
        read_opinions(path, columns=columns, higher_is_better=True, split="val")


def test_pairs_have_no_ratings_to_choose_from(tmp_path):
    (tmp_path / "a.csv").write_text("image_a,image_b,label\na.png,b.png,1\n")
    with pytest.raises(ValueError, match="holds pairs, which have no rating: leave it out"):
        read_opinions(tmp_path / "a.csv", rating="align")
