"""Pairwise accuracy against a loop and SciPy's Wilson interval; reading judged pairs from a CSV."""

from __future__ import annotations

import pytest
import torch

from qa_hooks.functional.agreement import pairwise_accuracy
from qa_hooks.functional.intervals import wilson_interval
from qa_hooks.ratings.pairs import read_pairs


def test_pairwise_accuracy_is_the_loop():
    a, b = torch.randint(0, 4, (2, 200)).float()
    labels = torch.randint(0, 2, (200,)) * 2 - 1
    expected = 0.0
    for x, y, label in zip(a.tolist(), b.tolist(), labels.tolist(), strict=True):
        expected += 0.5 if x == y else float((x > y) == (label > 0))
    result = pairwise_accuracy(a, b, labels)
    assert result.accuracy == pytest.approx(expected / 200, abs=1e-12)
    assert (float(result), result.n) == (result.accuracy, 200)
    swapped = pairwise_accuracy(b, a, -labels)
    assert swapped == result


def test_infinite_scores_are_compared():
    inf = torch.inf
    assert pairwise_accuracy([inf, -inf, inf], [0.0, 1.0, inf], [1, -1, 1]).accuracy == pytest.approx(2.5 / 3)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (1, 2), (745, 974), (500, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_is_scipys(right, n, confidence):
    stats = pytest.importorskip("scipy.stats")
    interval = stats.binomtest(right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(right / n, n, confidence=confidence)[1:] == pytest.approx(
        (interval.low, interval.high), abs=1e-9
    )
    ones = [1.0] * right + [0.0] * (n - right)
    result = pairwise_accuracy(ones, [0.5] * n, [1] * n, confidence=confidence)
    assert result[1:3] == pytest.approx((interval.low, interval.high), abs=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], [1]), "one shape"),
        (([], [], []), "n > 0"),
        (([1.0, torch.nan], [0.0, 0.0], [1, 1]), "scores_a holds 1 NaN"),
        (([1.0, 2.0], [0.0, 0.0], [1, torch.nan]), "labels holds 1 NaN"),
        (([1.0, 2.0], [0.0, 0.0], [1, 0]), r"1 of 2 labels are 0; .* 2 \* labels - 1"),
    ],
)
def test_bad_pairs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pairwise_accuracy(*arguments)
    with pytest.raises(ValueError, match="confidence"):
        pairwise_accuracy([1.0], [0.0], [1], confidence=95)


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
