"""Tables and states that the first version wrote still load, and what it left half-written is continued."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch

from qa_hooks.data import QualityTable
from qa_hooks.folders import read_scores, score_folder, watch_folder

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
spec = importlib.util.spec_from_file_location("make_tables", GOLDEN / "make_tables.py")
make_tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_tables)
Level, NAMES = make_tables.Level, list(make_tables.NAMES)
LEVELS = torch.arange(10.0, 60.0, 10.0) / 255


@pytest.fixture
def golden(tmp_path):
    """A copy whose folders are where they are said to be."""
    root = tmp_path / "tables"
    shutil.copytree(GOLDEN / "tables", root)
    for path in (*root.glob("*.json"), *root.glob("watch/*.json*")):
        path.write_text(path.read_text().replace("@ROOT@", str(root)))
    return root


def test_a_whole_table(golden):
    table = read_scores(golden / "scores.csv")
    assert table.paths == NAMES
    assert list(table.columns) == ["level", "level_calibrated"]
    torch.testing.assert_close(table.columns["level"], LEVELS)
    assert list(table.failures) == ["broken.png"]
    assert table.higher_is_better("level") is True
    scorer = Level().fit_calibration(torch.linspace(0, 0.3, 50))
    again = score_folder(golden / "images", scorer, golden / "scores.csv", progress=False)
    assert scorer.seen == 0
    assert torch.equal(again.columns["level_calibrated"], table.columns["level_calibrated"])


@pytest.mark.parametrize(("name", "tiles", "left"), [("half", None, 3), ("tiles", 8, 6), ("parts", None, 3)])
def test_a_half_written_table_is_continued(golden, name, tiles, left):
    """Rows that are whole count; one that is torn, and with tiles its image, is scored again."""
    scorer = Level()
    table = score_folder(golden / "images", scorer, golden / f"{name}.csv", tiles=tiles, progress=False)
    assert scorer.seen == left
    paths, scores = table.per_image("level")
    assert paths == NAMES
    torch.testing.assert_close(scores, LEVELS)
    assert sorted(golden.glob(f"{name}.csv*")) == [golden / f"{name}.csv", golden / f"{name}.csv.json"]


def test_quality_tables(golden):
    table = QualityTable.load(golden / "quality.csv")
    assert table.keys == sorted([*NAMES, "broken.png"])
    torch.testing.assert_close(torch.cat([table[name] for name in NAMES]), LEVELS)
    assert table["broken.png"].isnan().all()
    assert (table.scorer_name, table.higher_is_better, table.score_range) == ("level", True, (0.0, 1.0))
    for name, left in (("quality", 0), ("half_quality", 2)):
        scorer = Level()
        again = QualityTable.compute(golden / "images", scorer, golden / f"{name}.csv", progress=False)
        assert scorer.seen == left
        assert again.keys == table.keys
        torch.testing.assert_close(again.values, table.values, rtol=0, atol=0, equal_nan=True)


def test_the_state_of_a_watcher(golden):
    scorer = Level()
    options = {"scorers": scorer, "once": True, "every": 0.01, "log_dir": golden / "watch", "say": lambda line: None}
    result = watch_folder(golden / "samples", **options)
    assert scorer.seen == 0
    assert list(result.steps) == [100, 200]
    best = json.loads((golden / "watch" / "best.json").read_text())
    assert (best["step"], result.best["step"]) == (200, 200)
    assert best["files"] == [str(golden / "samples/step_200" / name) for name in NAMES[:3]]
