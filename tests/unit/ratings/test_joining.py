"""Scores joined with ratings by name, with directions that somebody must have said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qa_hooks.ratings.joining import join_scores, scored_by_all

NAMES = ["set/I01_01_1.BMP", "set/I01_01_2.BMP", "set/I02_01_1.BMP"]


def table(path, text, **directions):
    path.write_text(text)
    if directions:
        scorers = [
            {
                "name": n,
                "class": "X",
                "fingerprint": "0",
                "higher_is_better": h,
                "score_range": None,
                "calibrated": False,
            }
            for n, h in directions.items()
        ]
        spec = {"format": "qa_hooks.scores", "version": 1, "folder": "", "scorers": scorers, "complete": True}
        path.with_name(path.name + ".json").write_text(json.dumps(spec))
    return path


def test_names_of_another_case_folder_and_suffix_are_found(tmp_path):
    path = table(tmp_path / "a.csv", "path,niqe\ni02_01_1.png,3\ni01_01_1.png,5\n", niqe=False)
    found = join_scores(NAMES, [path])
    np.testing.assert_array_equal(found["niqe"], [-5, np.nan, -3])


def test_columns_of_one_name_carry_their_tables(tmp_path):
    text = "path,m\nI01_01_1.bmp,1\nI01_01_2.bmp,2\nI02_01_1.bmp,3\n"
    found = join_scores(NAMES, [table(tmp_path / f"{name}.csv", text) for name in "ab"], higher=["m"])
    assert list(found) == ["m@a", "m@b"]


def test_only_the_metrics_that_are_asked_for(tmp_path):
    text = "path,m,m_calibrated,width\nI01_01_1.bmp,1,0.1,9\nI01_01_2.bmp,2,0.2,9\nI02_01_1.bmp,3,0.3,9\n"
    found = join_scores(NAMES, [table(tmp_path / "a.csv", text)], metrics=["m"], higher=["m"])
    assert {name: values.tolist() for name, values in found.items()} == {"m": [1, 2, 3]}


@pytest.mark.parametrize(
    ("directions", "options", "message"),
    [
        ({}, {}, "does not say whether m is better higher or lower: name it with"),
        ({"m": True}, {"lower": ["m"]}, "says that m is better higher"),
        ({}, {"lower": ["m"], "higher": ["m"]}, "m cannot be better both"),
        ({}, {"higher": ["n"]}, "no table has a column n; they have m"),
        ({}, {"metrics": ["n"]}, "no table has a column n; they have m"),
    ],
)
def test_a_direction_is_said_once(directions, options, message, tmp_path):
    path = table(tmp_path / "a.csv", "path,m\nI01_01_1.bmp,1\nI01_01_2.bmp,2\n", **directions)
    with pytest.raises(ValueError, match=message):
        join_scores(NAMES, [path], **options)


def test_the_table_of_another_set_is_refused(tmp_path):
    path = table(tmp_path / "a.csv", "path,m\nI01_01_1.bmp,1\nother.png,2\n")
    with pytest.raises(ValueError, match=r"2 of 3 images are not in .*is it the right one"):
        join_scores(NAMES, [path], higher=["m"])
    with pytest.raises(ValueError, match="is a folder: name a table"):
        join_scores(NAMES, [tmp_path])
    with pytest.raises(ValueError, match="has no rows"):
        join_scores(NAMES, [table(tmp_path / "b.csv", "path,m\n")])
    with pytest.raises(ValueError, match="name at least one table"):
        join_scores(NAMES, [])


def test_metrics_are_compared_on_the_images_that_all_have_scored():
    nan = float("nan")
    mask, lacking = scored_by_all({"a": np.array([1, nan, 3]), "b": np.array([1.0, 2, 3])}, NAMES)
    assert mask.tolist() == [True, False, True]
    assert lacking == {"a": [NAMES[1]]}
    with pytest.raises(ValueError, match="a has no score for 2 of 3 images"):
        scored_by_all({"a": np.array([1, nan, nan])}, NAMES)
