"""A table of scores as a folder of Parquet files: what is written is read, and what is wrong is named."""

from __future__ import annotations

import json
import math

import pytest
import torch

from qa_hooks.data import QualitySampler, QualityTable, quality_weights
from qa_hooks.folders import filter_scores, pick_folder, read_scores, score_folder
from qa_hooks.folders.scoring.shards import MANIFEST, part_path, read_counts, write_part
from qa_hooks.images import save_image
from toy_scorers import brightness

pytest.importorskip("pyarrow")
A, B = "0123456789abcdef", "fedcba9876543210"


def scorer_fact(name: str = "brightness", *, higher: bool = True, calibrated: bool = False) -> dict:
    return {"name": name, "class": "FunctionScorer", "fingerprint": "0", "higher_is_better": higher,
            "score_range": None, "calibrated": calibrated}  # fmt: skip


def write_manifest(folder, **changes) -> None:
    spec = {"format": "qa_hooks.scores", "version": 1, "folder": "/data", "tiles": None, "overlap": 0,
            "scorers": [scorer_fact()], "complete": True}  # fmt: skip
    spec["shards"] = [part_path(folder, A).name, part_path(folder, B).name]
    (folder / MANIFEST).write_text(json.dumps({**spec, **changes}))


@pytest.fixture
def table(tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    first = write_part(part_path(folder, A), ["b.png", "a.png"], {"brightness": [0.25, math.nan]}, ["", "torn"])
    assert (first.images, first.problems, first.failures) == (2, 1, {"a.png": "torn"})
    write_part(part_path(folder, B), ["d.png", "c.png"], {"brightness": [0.125, 0.1]}, ["", ""])
    write_manifest(folder)
    return folder


def test_what_is_written_is_read_in_the_order_of_the_manifest(table):
    read = read_scores(table)
    assert read.paths == ["b.png", "a.png", "d.png", "c.png"]
    expected = torch.tensor([0.25, math.nan, 0.125, 0.1])
    assert torch.equal(read.columns["brightness"].nan_to_num(9), expected.nan_to_num(9))
    assert read.failures == {"a.png": "torn"}
    assert read.summary() == "4 images; no score (nan): brightness 1; 1 with problems"
    assert read_counts(part_path(table, A)).failures == {"a.png": "torn"}


def test_other_programs_read_the_folder(table):
    import pyarrow.dataset

    parts = [str(path) for path in table.glob("*.parquet")]
    assert pyarrow.dataset.dataset(parts).to_table().column_names == ["path", "brightness", "problem"]


def test_filter_and_quality_table_read_a_folder_as_they_read_a_csv(table):
    assert filter_scores(table, keep=2).kept == ["b.png", "d.png"]
    quality = QualityTable.load(table)
    assert (quality.keys, quality.scorer_name, quality.higher_is_better) == (
        read_scores(table).paths,
        "brightness",
        True,
    )
    assert quality["c.png"].item() == pytest.approx(0.1)
    sampler = QualitySampler(quality, missing="never")
    assert set(sampler) <= {0, 2, 3}


def test_a_csv_and_a_folder_of_the_same_scores_are_the_same(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(6):
        save_image(torch.full((3, 8, 8), 40 * number, dtype=torch.uint8), tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "6.png").write_bytes(b"no image")
    csv = score_folder(tmp_path / "images", brightness(higher_is_better=False), tmp_path / "t.csv", progress=False)
    folder = tmp_path / "t"
    folder.mkdir()
    names = [f"{number}.png" for number in range(7)]
    values = [*csv.columns["brightness"].tolist(), math.nan]
    write_part(part_path(folder, A), names, {"brightness": values}, [*[""] * 6, "no image"])
    write_manifest(folder, shards=[part_path(folder, A).name], scorers=[scorer_fact(higher=False)])
    assert filter_scores(folder, keep=0.5).kept == filter_scores(tmp_path / "t.csv", keep=0.5).kept == names[:3]
    one, other = (QualityTable.load(path) for path in (folder, tmp_path / "t.csv"))
    assert one.keys == other.keys == names  # one for each image of the data set, so that positions agree
    assert torch.equal(quality_weights(one, missing="never"), quality_weights(other, missing="never"))
    picked = [pick_folder(tmp_path / "images", None, tmp_path / f"out{n}", scores=path, keep=2, progress=False)
              for n, path in enumerate((folder, tmp_path / "t.csv"))]  # fmt: skip
    scored = pick_folder(
        tmp_path / "images", brightness(higher_is_better=False), tmp_path / "o", keep=2, progress=False
    )
    assert picked[0].kept == picked[1].kept == scored.kept == ["0.png", "1.png"]
    manifests = [(tmp_path / out / "manifest.csv").read_text() for out in ("out0", "out1", "o")]
    assert manifests[0] == manifests[1] == manifests[2]


def test_picking_by_a_table_recalls_as_by_a_scorer(tmp_path):
    (tmp_path / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for number in range(12):
        picture = torch.randint(0, 20 * (number + 1), (3, 8, 8), dtype=torch.uint8, generator=generator)
        save_image(picture, tmp_path / "images" / f"{number:02d}.png")
    options = {"keep": 0.5, "recall": True, "progress": False}
    dark = brightness(higher_is_better=False)
    scored = pick_folder(tmp_path / "images", dark, tmp_path / "o", **options)
    again = pick_folder(tmp_path / "images", None, tmp_path / "p", scores=tmp_path / "o" / "scores.csv", **options)
    assert "recall" in scored.recall
    assert again.recall == scored.recall


def test_a_table_of_another_folder_is_refused(table, tmp_path):
    (tmp_path / "images").mkdir()
    save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "images" / "b.png")
    with pytest.raises(ValueError, match=r"3 of 4 images of the table are not in .*images, the first is a\.png"):
        pick_folder(tmp_path / "images", None, tmp_path / "out", scores=table)
    with pytest.raises(ValueError, match="by a scorer, scorer=, or by a column"):
        pick_folder(tmp_path / "images", brightness(), tmp_path / "out", scores=table)
    with pytest.raises(ValueError, match="are for scoring"):
        pick_folder(tmp_path / "images", None, tmp_path / "out", scores=table, grid="2x2")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / MANIFEST).unlink(), "without a manifest.json"),
        (lambda folder: (folder / MANIFEST).write_text("[1]"), "does not describe a table of scores"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "not a whole JSON file"),
        (lambda folder: write_manifest(folder, complete=False), "is not complete"),
        (lambda folder: write_manifest(folder, shards=[]), "names no parts"),
        (lambda folder: write_manifest(folder, shards=["../part-0123456789abcdef.parquet"]), "no part of a table"),
        (lambda folder: part_path(folder, B).unlink(), "is missing"),
        (lambda folder: part_path(folder, B).write_bytes(b"PAR1 nonsense"), "cannot be read"),
        (lambda folder: write_manifest(folder, scorers=[scorer_fact("niqe")]), "has no column niqe"),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(table, spoil, message):
    spoil(table)
    for read in (read_scores, lambda path: filter_scores(path, keep=1)):
        with pytest.raises(ValueError, match=message):
            read(table)


def test_a_table_of_several_scorers_asks_for_one(tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    columns = {"x": [1.0, 2.0], "x_calibrated": [0.1, 0.2], "y": [2.0, 1.0]}
    write_part(part_path(folder, A), ["a", "b"], columns, ["", ""])
    write_manifest(folder, shards=[part_path(folder, A).name],
                   scorers=[scorer_fact("x", calibrated=True), scorer_fact("y", higher=False)])  # fmt: skip
    with pytest.raises(ValueError, match="several columns of scores"):
        QualityTable.load(folder)
    assert QualityTable.load(folder, "y").higher_is_better is False
    assert QualityTable.load(folder, "x_calibrated").score_range == (0.0, 1.0)
    with pytest.raises(ValueError, match="no column 'z'"):
        QualityTable.load(folder, "z")


def test_a_path_that_comes_twice_is_no_quality_table(tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    write_part(part_path(folder, A), ["a", "a"], {"brightness": [1.0, 2.0]}, ["", ""])
    write_manifest(folder, shards=[part_path(folder, A).name])
    with pytest.raises(ValueError, match="1 of 2 paths of the table repeat others"):
        QualityTable.load(folder)
