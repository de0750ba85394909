"""AIGCIQA2023's three .mat files with their index."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.io import savemat

from qa_hooks.ratings import read_ratings


@pytest.fixture
def folder(tmp_path):
    for number in (1, 2, 3):
        savemat(tmp_path / f"mosz{number}.mat", {f"MOSz{number}": np.array([[10.0 * number], [50], [60]])})
    (tmp_path / "index.csv").write_text('Glide/0.png,"a cat, red"\nGlide/1.png,a dog\nDALLE/0.png,"a cat, red"\n')
    return tmp_path


def test_each_rating_by_its_name(folder):
    found = {which: read_ratings(folder, rating=which).rating[0] for which in ("quality", "authenticity")}
    assert found == {"quality": 10, "authenticity": 20}
    ratings = read_ratings(folder / "mosz3.mat")
    assert ratings.scale.startswith("mean opinion of correspondence")
    assert ratings.names == ["Glide/0.png", "Glide/1.png", "DALLE/0.png"]
    assert ratings.content == ratings.prompt == ["a cat, red", "a dog", "a cat, red"]
    assert ratings.kind == ["Glide", "Glide", "DALLE"]
    assert read_ratings(folder).rating[0] == 10  # quality, as of the table of the same set


def test_an_index_of_names_alone(folder):
    (folder / "index.csv").unlink()
    (folder / "names.txt").write_text("0.png\n1.png\n2.png\n")
    ratings = read_ratings(folder)
    assert (ratings.names, ratings.content, ratings.kind) == (["0.png", "1.png", "2.png"], [], [])


def test_what_does_not_fit_is_refused(folder):
    for options, message in (
        ({"rating": "beauty"}, "has the ratings quality, authenticity, correspondence, got rating='beauty'"),
        ({"format": "agin"}, r"is no agin: \.mat files are read as aigciqa-2023"),
        ({"higher_is_better": False}, "higher is better: leave higher_is_better out"),
    ):
        with pytest.raises(ValueError, match=message):
            read_ratings(folder, **options)
    with pytest.raises(ValueError, match="holds correspondence, got rating='quality'"):
        read_ratings(folder / "mosz3.mat", rating="quality")
    (folder / "mosz3.mat").rename(folder / "ratings.mat")
    with pytest.raises(ValueError, match="its name must say which rating it holds"):
        read_ratings(folder / "ratings.mat")
    (folder / "index.csv").write_text("0.png,a\n1.png,b\n")
    with pytest.raises(ValueError, match=r"has 3 ratings and no names: .* found index\.csv"):
        read_ratings(folder)
