"""Names of rated images and their files: no file has two names, and folders must agree."""

from __future__ import annotations

import pytest

from qa_hooks.ratings.images import NameFinder, find_images


def test_a_file_has_one_name_and_what_is_missing_is_counted(caplog):
    finder = NameFinder(["blur/1.png", "blur/2.png"])
    assert finder.find_all(["blur/1.png", "noise/1.png"]) == ["blur/1.png", None]
    assert "1 of 2 images are not in the table; the first is 'noise/1.png'" in caplog.text
    assert finder.find("noise/2.png") is None
    assert finder.find_all(["set/blur/1.jpg", "BLUR/2.png", "./set/blur/1.jpg"]) == [
        "blur/1.png",
        "blur/2.png",
        "blur/1.png",
    ]
    assert NameFinder(["a.png"]).find_all(["a.jpg", "a.png"]) == [None, "a.png"]  # the better fit, whatever the order
    assert NameFinder(["a.png"]).find_all(["a.png", "a.jpg"]) == ["a.png", None]


@pytest.mark.parametrize("names", [["blur/1.png", "noise/1.png"], ["1.jpg", "1.bmp"], ["1.BMP", "1.jpg"]])
def test_two_names_that_fit_one_file_equally_well_are_an_error(names):
    with pytest.raises(ValueError, match=r"would both be 1.png"):
        NameFinder(["1.png"]).find_all(names)
    assert NameFinder(["1.png"]).find_all(names, shared=True) == ["1.png", "1.png"]


def test_only_image_suffixes_are_left_out(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 images are not in"):
        NameFinder(["scale1.png"]).find_all(["scale1.5", "scale1.7"])
    for name in ("scale1.5.png", "scale1.7.png"):
        (tmp_path / name).write_bytes(b"")
    places = find_images(["scale1.5", "scale1.7.jpg"], tmp_path)
    assert [place.name for place in places] == ["scale1.5.png", "scale1.7.png"]
