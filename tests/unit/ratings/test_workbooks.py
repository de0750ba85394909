"""Workbooks of Excel and arrays of MATLAB, made on the spot."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from scipy.io import savemat

from qa_hooks.ratings import read_ratings, workbooks
from qa_hooks.ratings.workbooks import matlab_column, workbook_rows

openpyxl = pytest.importorskip("openpyxl")


def book(path, *sheets):
    made = openpyxl.Workbook()
    made.remove(made.active)
    for number, rows in enumerate(sheets):
        sheet = made.create_sheet(f"s{number}")
        for row in rows:
            sheet.append(row)
    made.save(path)
    return path


def test_agiqa_1k_as_it_is_published(tmp_path):
    rows = [("Image", "Prompt", "MOS"), ("a_0.jpg", "bird, city", 2.7934105045636524), ("b_0.jpg", "cat", 4)]
    ratings = read_ratings(book(tmp_path / "AIGC_MOS_Zscore.xlsx", rows))
    assert ratings.format == "agiqa-1k"
    assert ratings.rating.tolist() == pytest.approx([2.7934105045636524, 4.0], rel=1e-14)
    assert ratings.prompt == ["bird, city", "cat"]


def test_empty_rows_columns_and_sheets_do_not_count(tmp_path, caplog):
    path = book(tmp_path / "a.xlsx", [], [("x", "y", None), (None, None, None), ("a.png", 1, None)], [("more",)])
    assert workbook_rows(path) == [["x", "y"], ["a.png", "1"]]
    assert "the sheet s1 is read, and not s2" in caplog.text


def test_what_is_no_workbook_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.xlsx"
    path.write_text("Image,MOS\na.png,3\n")
    with pytest.raises(ValueError, match="is no workbook of Excel"):
        read_ratings(path)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="is no workbook of Excel"):
        read_ratings(path)
    with pytest.raises(ValueError, match="is empty"):
        read_ratings(book(path, []))
    monkeypatch.setattr(workbooks, "LARGEST", 10)
    with pytest.raises(ValueError, match="unpacks to"):
        read_ratings(book(path, [("Image", "Score"), ("a.png", 1)]))


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3,)])
def test_a_column_of_matlab(shape, tmp_path):
    savemat(tmp_path / "a.mat", {"MOSz": np.array([1.5, 2, 3]).reshape(shape)})
    assert matlab_column(tmp_path / "a.mat") == [1.5, 2, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.ones((2, 2))}, r"must hold one column of numbers, it holds a \(2, 2\)"),
        ({"a": np.ones((2, 1)), "b": np.ones((2, 1))}, r"it holds a \(2, 1\), b \(2, 1\)"),
        ({"a": np.array(["x", "y"], dtype=object)}, "must hold one column"),
        ({"a": np.array([[1.0], [np.nan]])}, "1 values that are not finite"),
    ],
)
def test_other_arrays_are_refused(content, message, tmp_path):
    savemat(tmp_path / "a.mat", content)
    with pytest.raises(ValueError, match=message):
        matlab_column(tmp_path / "a.mat")


def test_no_mat_file_is_refused(tmp_path):
    (tmp_path / "a.mat").write_bytes(b"nonsense" * 40)
    with pytest.raises(ValueError, match=r"is no \.mat file"):
        matlab_column(tmp_path / "a.mat")
    with pytest.raises(ValueError, match="does not exist"):
        matlab_column(tmp_path / "b.mat")
