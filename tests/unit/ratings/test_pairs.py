"""Reading judged pairs from a CSV."""

from __future__ import annotations

import pytest

from qa_hooks.ratings.pairs import read_pairs


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("set/a.png", "set/sub/b, c.png", "outside.png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path / "set"


def write(folder, *lines: str, newline: str = "\n", encoding: str = "utf-8"):
    path = folder / "pairs.csv"
    path.write_text(newline.join(lines), encoding=encoding, newline="")
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_pairs_are_read(folder, newline, encoding):
    lines = ["observer,image_a,label,image_b", '7,a.png,1,"sub/b, c.png"', '8,"sub\\b, c.png",-1.0,sub/../a.png', ""]
    pairs = read_pairs(write(folder, *lines, newline=newline, encoding=encoding))
    assert pairs.images_a == [folder / "a.png", folder / "sub" / "b, c.png"]
    assert pairs.images_b == [folder / "sub" / "b, c.png", folder / "a.png"]
    assert pairs.labels.tolist() == [1, -1]


def test_broken_lines_are_named(folder):
    outside = folder.parent / "outside.png"
    lines = [
        "image_a,image_b,label",
        "a.png,a.png,1",
        "a.png,,1",
        "a.png,a.png,better",
        "a.png,a.png,0",
        "a.png,gone.png,1",
        "../outside.png,a.png,1",
        f"a.png,{outside},1",
    ]
    with pytest.raises(ValueError, match="has 6 broken lines") as error:
        read_pairs(write(folder, *lines))
    said = str(error.value)
    for part in ("line 3: no image_b", "line 4: label 'better' is no number", "line 5: label 0: ", "and 1 more"):
        assert part in said
    assert "line 6: 'gone.png' does not exist" in said
    assert "line 7: '../outside.png' is outside" in said
    with pytest.raises(ValueError, match=r"line 2: .*outside the folder"):
        read_pairs(write(folder, lines[0], lines[-1]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["image_a,image_b", "a.png,a.png"], "its header lacks label"),
        ([""], "its header lacks image_a, image_b, label"),
        (["image_a,image_b,label"], "holds no pairs"),
        (["image_a,image_b,label", '"a.png,a.png,1'], "is not a table of pairs"),
        (["image_a,image_b,label", "a.png"], "line 2: no image_b"),
    ],
)
def test_what_is_no_table_of_pairs(folder, lines, message):
    with pytest.raises(ValueError, match=message):
        read_pairs(write(folder, *lines))


def test_files_that_are_no_text(folder):
    (folder / "pairs.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xff")
    with pytest.raises(ValueError, match="is not a table of pairs"):
        read_pairs(folder / "pairs.csv")
    with pytest.raises(ValueError, match="does not exist"):
        read_pairs(folder / "gone.csv")
