"""Which reference belongs to an image: the one of its name, or of the beginning of its name."""

import warnings

import pytest
import torch

from qa_hooks.folders import compare_folders, score_folder
from qa_hooks.folders.scoring.tiles import find_references
from qa_hooks.images import save_image
from qa_hooks.scorers import create_scorer


def folder(path, names, level=0):
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        image = torch.arange(3 * 16 * 16, dtype=torch.uint8).reshape(3, 16, 16) // 2 + level
        save_image(image, path / name)
    return path


def found(tmp_path, names, truths):
    find = find_references(folder(tmp_path / "true", truths), {"psnr": create_scorer("psnr")}, names)
    paths = [find(name) for name in names]
    return [path and path.relative_to(tmp_path / "true").as_posix() for path in paths]


def test_the_same_name_whatever_the_format(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = found(tmp_path, ["a.png", "b.png", "b_1.png", "c.png"], ["a.png", "b.bmp", "b_1.bmp", "c.bmp", "c.gif"])
    assert names == ["a.png", "b.bmp", "b_1.bmp", None]


@pytest.mark.filterwarnings("ignore:names that end in")
def test_the_longest_beginning(tmp_path):
    truths = ["baby.png", "img_1.png", "img_10.png", "Set5/baby.png"]
    names = ["baby_x2_SR.png", "img_1_x2_SR.png", "img_10_x2_SR.png", "Set5/baby_x2_SR.jpg", "birds.png"]
    assert found(tmp_path, names, truths) == ["baby.png", "img_1.png", "img_10.png", "Set5/baby.png", None]


@pytest.mark.parametrize("names", [["a.png", "b_SR.png"], ["b_SR.png", "c.png"], ["a_SR.png", "b_x4.png"]])
def test_not_where_names_end_differently_in_whatever_order(tmp_path, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = [name if name in ("a.png", "c.png") else None for name in names]
        assert found(tmp_path, names, ["a.png", "b.png", "c.png"]) == exact


def test_what_is_compared_is_told_once(tmp_path):
    with pytest.warns(UserWarning, match="names that end in '_SR' are compared with .* b_SR.png with b$") as told:
        found(tmp_path, ["a_SR.png", "b_SR.png"], ["a.png", "b.png"])
    assert len(told) == 1


@pytest.mark.filterwarnings("ignore:names that end in")
def test_score_and_compare_take_them(tmp_path):
    true = folder(tmp_path / "true", ["a.png", "b.png"])
    made = folder(tmp_path / "made", ["a_x2_SR.png", "b_x2_SR.png"], level=2)
    table = score_folder(made, [create_scorer("psnr")], tmp_path / "s.csv", reference=true, progress=False)
    assert table.failures == {}
    assert table.columns["psnr"].tolist() == pytest.approx([42.11, 42.11], abs=0.01)
    result = compare_folders(true, made, metrics=[], scorers=[create_scorer("psnr")], progress=False)
    assert "42.1" in str(result)
