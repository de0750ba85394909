"""DiffusionDB's prompts, which nobody has rated."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from qa_hooks.ratings import read_prompts, read_ratings

ENTRY = {"p": "a cat", "se": 2**40, "c": 7.5, "st": 50, "sa": "k_lms"}


def test_a_part(tmp_path):
    path = tmp_path / "part-000001.json"
    path.write_text(json.dumps({"a.png": ENTRY, "b.png": {**ENTRY, "p": "a\ndog", "st": 20}}))
    Image.new("RGB", (4, 4)).save(tmp_path / "A.webp")
    found = read_prompts(path, images=tmp_path)
    assert (found.names, found.prompts) == (["a.png", "b.png"], ["a cat", "a\ndog"])
    assert (found.guidance.tolist(), found.steps.tolist()) == ([7.5, 7.5], [50, 20])
    assert found.seeds.tolist() == [2**40] * 2
    assert found.images == [tmp_path / "A.webp", None]
    assert "without an image: 1" in str(found)


def test_the_metadata(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    rows = {"image_name": ["a.png"], "prompt": ["x"], "seed": [3], "step": [50], "cfg": [7.0], "width": [512]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    found = read_prompts(tmp_path / "metadata.parquet")
    assert (found.names, found.guidance.tolist(), found.seeds.tolist()) == (["a.png"], [7.0], [3])
    del rows["cfg"]
    parquet.write_table(pyarrow.table(rows), tmp_path / "metadata.parquet")
    with pytest.raises(ValueError, match="has no cfg"):
        read_prompts(tmp_path / "metadata.parquet")
    (tmp_path / "metadata.parquet").write_text("nonsense")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_prompts(tmp_path / "metadata.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is no part of DiffusionDB"),
        ("{}", "holds no images"),
        ("{", "is no JSON"),
        ('{"a.png": 3}', "'a.png': its entry is no mapping"),
        ('{"a.png": {"p": "x"}}', "'a.png': it has no c, st, se"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)
    with pytest.raises(ValueError, match="has no ratings: read_preferences or read_prompts reads it"):
        read_ratings(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_prompts(tmp_path / "b.json")
