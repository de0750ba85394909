"""The table of scores: what is in it, that a killed run is continued, and that broken images harm nobody."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import time

import numpy as np
import pytest
import torch

from qa_hooks.folders import filter_scores, pick_folder, read_scores, score_folder
from qa_hooks.folders.scoring.growing import GrowingTable, number
from qa_hooks.folders.scoring.score_table import ScoreTable
from qa_hooks.folders.scoring.tiles import tile_corners
from qa_hooks.functional.intervals import bootstrap_interval
from qa_hooks.images import load_image, save_image
from qa_hooks.scorers import NIQE, FunctionScorer

NAMES = ["a.png", "b b.png", "c,d.png", 'e"f.png', "g\nh.png", "i\rj.png", "sub/grün 世界.png", " z.png"]


class Counting(FunctionScorer):
    """Mean grey level; remembers how many images it has seen, and refuses or fails on request."""

    def __init__(self, name: str = "level", fail=lambda image: False, higher_is_better: bool = True) -> None:
        super().__init__(self.function, name=name, higher_is_better=higher_is_better)
        self.seen, self.fail = 0, fail

    def function(self, images):
        if any(self.fail(image) for image in images):
            raise ValueError("this image is refused")
        self.seen += len(images)
        return images.mean((1, 2, 3))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for index, name in enumerate(NAMES):
        size = (3, 10, 12) if index % 3 else (1, 9, 9)
        save_image(torch.full(size, 20 * index + 5, dtype=torch.uint8), root / name)
    return root


def levels() -> dict[str, float]:
    return {name: (20 * index + 5) / 255 for index, name in enumerate(NAMES)}


def scores_of(table, column: str = "level") -> dict[str, float]:
    return dict(zip(table.paths, table.columns[column].tolist(), strict=True))


def test_a_row_per_image_whatever_its_name(folder, tmp_path):
    output = tmp_path / "scores.csv"
    table = score_folder(folder, [Counting(), Counting("other", higher_is_better=False)], output)
    assert scores_of(table) == pytest.approx(levels(), rel=1e-6)
    assert table.paths == sorted(NAMES)
    with output.open(newline="", encoding="utf-8") as file:  # the csv module as a stranger uses it
        rows = list(csv.DictReader(file))
    assert {row["path"]: float(row["level"]) for row in rows} == pytest.approx(levels(), rel=1e-6)
    assert list(rows[0]) == ["path", "level", "other"]
    assert [table.higher_is_better(c) for c in ("level", "other")] == [True, False]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "scores.csv", "scores.csv.json"]
    again = read_scores(output)
    assert torch.equal(again.columns["level"], table.columns["level"])
    assert again.summary() == "8 images"


def test_numbers_survive_the_text():
    exponents = np.arange(-20, 20).repeat(50)
    values = (np.random.default_rng(0).normal(size=2000) * 10.0**exponents).astype(np.float32)
    assert all(np.float32(number(value)) == value for value in values)


def test_scores_are_those_of_the_scorer(tmp_path, photographs):
    for index, image in enumerate(photographs):
        save_image((image * 255).round().byte(), tmp_path / f"{index}.png")
    scorer = NIQE().fit_calibration(-torch.linspace(2, 8, 50))
    table = score_folder(tmp_path, scorer, tmp_path / "s.csv", batch_size=3)
    images = torch.stack([load_image(tmp_path / f"{index}.png") for index in range(4)])
    assert torch.allclose(table.columns["niqe_bsd100"], scorer(images), rtol=1e-5)
    assert torch.allclose(table.columns["niqe_bsd100_calibrated"], scorer.calibrated()(images), atol=1e-5)
    assert table.higher_is_better("niqe_bsd100") is False
    assert table.higher_is_better("niqe_bsd100_calibrated") is True


@pytest.mark.parametrize("tiles", [None, 8])
def test_a_run_killed_anywhere_is_continued(folder, tmp_path, tiles):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output, tiles=tiles)
    whole, spec = output.read_bytes(), json.loads((tmp_path / "scores.csv.json").read_text())
    pieces = len(read_scores(output))
    assert pieces == (8 if tiles is None else 32)
    spec["complete"] = False
    rescored = []
    for cut in [*range(0, len(whole), 7), len(whole)]:
        output.write_bytes(whole[:cut])
        (tmp_path / "scores.csv.json").write_text(json.dumps(spec))
        with pytest.raises(ValueError, match="is not complete"):
            read_scores(output)
        scorer = Counting()
        score_folder(folder, scorer, output, tiles=tiles)
        assert output.read_bytes() == whole, cut
        rescored.append(scorer.seen)
    slack = 0 if tiles is None else 4  # of tiles the last image's may be incomplete, and are dropped
    assert all(later <= earlier + slack for earlier, later in itertools.pairwise(rescored))
    assert rescored[0] == pieces
    assert rescored[-1] <= slack


def test_parts_of_more_processes_are_taken_over(folder, tmp_path):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output)
    whole = output.read_bytes()
    with output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    for part, chosen in (("scores.csv", rows[:3]), ("scores.csv.part1", rows[3:5]), ("scores.csv.part12", rows[5:6])):
        with (tmp_path / part).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(chosen)
    (tmp_path / "scores.csv.part2").write_text('"a torn li')
    scorer = Counting()
    score_folder(folder, scorer, output)
    assert scorer.seen == 8 - 5
    assert output.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "scores.csv", "scores.csv.json"]


def test_what_has_changed_is_scored_again(folder, tmp_path):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output)
    time.sleep(0.05)
    save_image(torch.full((3, 10, 12), 250, dtype=torch.uint8), folder / "a.png")
    (folder / "c,d.png").unlink()
    save_image(torch.zeros(3, 10, 12, dtype=torch.uint8), folder / "new.png")
    old = torch.full((3, 10, 12), 240, dtype=torch.uint8)
    save_image(old, tmp_path / "old.png")
    os.utime(tmp_path / "old.png", (1e9, 1e9))
    (tmp_path / "old.png").replace(folder / " z.png")  # an older file moved over the scored one
    scorer = Counting()
    table = score_folder(folder, scorer, output)
    assert scorer.seen == 3
    expected = {**levels(), "a.png": 250 / 255, "new.png": 0.0, " z.png": 240 / 255}
    del expected["c,d.png"]
    assert scores_of(table) == pytest.approx(expected, rel=1e-6)
    score_folder(folder, scorer, output)
    assert scorer.seen == 3


def break_images(folder) -> list[str]:
    whole = (folder / "a.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.webp").write_bytes(b"")
    return ["empty.webp", "text.jpg", "truncated.png"]


def test_broken_images_are_listed_and_tried_again(folder, tmp_path):
    broken = break_images(folder)
    table = score_folder(folder, Counting(), tmp_path / "scores.csv")
    assert scores_of(table) == pytest.approx(levels(), rel=1e-6)
    assert sorted(table.failures) == broken
    assert all("is not a readable image" in message for message in table.failures.values())
    assert table.summary() == "8 images; 3 with problems"
    save_image(torch.zeros(3, 8, 8, dtype=torch.uint8), folder / "truncated.png")
    scorer = Counting()
    table = score_folder(folder, scorer, tmp_path / "scores.csv")
    assert (scorer.seen, sorted(table.failures)) == (1, broken[:2])


def test_a_source_that_shrinks_and_a_full_disk_are_told_and_gone_on_with(folder, tmp_path, monkeypatch):
    """Files that go while others are scored are problems of their own; a disk that is full is named by its file."""
    gone = sorted(folder.rglob("*.png"))[-1]
    name = gone.relative_to(folder).as_posix()
    read = score_folder.__globals__["read_pieces"]

    def late(path_name, path, *rest):
        if path_name == name:
            gone.unlink()
        return read(path_name, path, *rest)

    monkeypatch.setitem(score_folder.__globals__, "read_pieces", late)
    table = score_folder(folder, Counting(), tmp_path / "t.csv")
    assert table.failures == {name: "[Errno 2] No such file or directory"}
    monkeypatch.undo()

    class Full(io.StringIO):
        def flush(self):
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(GrowingTable, "appender", lambda self, rank: Full())
        with pytest.raises(OSError, match=r"No space left on device: '.*s\.csv\.rows0'"):
            score_folder(folder, Counting(), tmp_path / "s.csv")
    assert sorted(p.name for p in tmp_path.glob("s.csv*")) == ["s.csv.rows0"]
    assert len(score_folder(folder, Counting(), tmp_path / "s.csv")) == len(NAMES) - 1


def test_one_scorer_may_refuse_what_another_takes(folder, tmp_path):
    grey = Counting("no grey", fail=lambda image: image.shape[0] == 1)
    none = Counting("nothing", fail=lambda image: float(image.mean()) < 0.1)
    table = score_folder(folder, [grey, Counting()], tmp_path / "1.csv")
    assert scores_of(table) == pytest.approx(levels(), rel=1e-6)
    missing = [path for path, value in scores_of(table, "no grey").items() if np.isnan(value)]
    assert sorted(missing) == sorted(NAMES[::3])
    assert table.failures[NAMES[0]] == "no grey: this image is refused"
    assert table.summary() == "8 images; no score (nan): no grey 3; 3 with problems"
    # In a batch with an innocent one only the guilty is refused.
    table = score_folder(folder, none, tmp_path / "2.csv")
    assert set(NAMES) - set(table.paths) == {NAMES[0], NAMES[1]} == set(table.failures)


def test_nothing_that_can_be_scored_is_an_error(folder, tmp_path):
    with pytest.raises(ValueError, match=r"none of 8 images could be scored; the first, .*: niqe_bsd100: .*96"):
        score_folder(folder, "niqe_bsd100", tmp_path / "scores.csv")
    with pytest.raises(ValueError, match="holds no image files"):
        score_folder(
            tmp_path / "images" / "sub" / "..", "psnr", tmp_path / "s.csv", reference=tmp_path_without(tmp_path)
        )


def tmp_path_without(tmp_path):
    (tmp_path / "nothing").mkdir()
    return tmp_path / "nothing"


def test_nan_is_written_and_counted(folder, tmp_path):
    function = lambda x: torch.where(x.mean((1, 2, 3)) < 0.2, torch.nan, 1.0)  # noqa: E731
    scorer = FunctionScorer(function, name="nan", higher_is_better=True)
    scorer.fit_calibration(torch.linspace(0, 2, 50))
    table = score_folder(folder, scorer, tmp_path / "scores.csv")
    assert len(table) == 8
    assert table.columns["nan"].isnan().sum() == 3
    assert torch.equal(table.columns["nan"].isnan(), table.columns["nan_calibrated"].isnan())
    assert table.summary() == "8 images; no score (nan): nan 3"
    assert len(filter_scores(table, keep=1.0, by="nan").kept) == 5


def test_another_table_is_not_continued(folder, tmp_path):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output)
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"scorers was \['level .*, is now \['other .*resume=False"):
        score_folder(folder, Counting("other"), output)
    with pytest.raises(ValueError, match="tiles was None, is now 4"):
        score_folder(folder, Counting(), output, tiles=4)
    with pytest.raises(ValueError, match="folder was"):
        score_folder(folder / "sub", Counting(), output)
    calibrated = Counting().fit_calibration(torch.linspace(0, 1, 20))
    with pytest.raises(ValueError, match="cannot be continued"):
        score_folder(folder, calibrated, output)
    assert output.read_bytes() == before
    assert score_folder(folder, Counting("other"), output, resume=False).columns.keys() == {"other"}
    (tmp_path / "mine.csv").write_text("my,own,table\n")
    with pytest.raises(ValueError, match=r"is no table of qa_hooks .*resume=False"):
        score_folder(folder, Counting(), tmp_path / "mine.csv")
    assert (tmp_path / "mine.csv").read_text() == "my,own,table\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scorers": []}, "scorers is empty"),
        ({"scorers": "nonsense"}, "unknown scorer 'nonsense'"),
        ({"scorers": ["niqe_bsd100", "niqe_bsd100"]}, "two scorers are called 'niqe_bsd100'"),
        ({"scorers": "psnr"}, "name their folder with reference="),
        ({"reference": "."}, "level takes none"),
        ({"tiles": 0}, "tiles must be a whole number"),
        ({"tiles": 8, "overlap": 8}, "overlap must lie in"),
        ({"overlap": 2}, "overlap must lie in"),
        ({"batch_size": 0}, "batch_size"),
        ({"folder": "missing"}, "is not a folder"),
    ],
)
def test_bad_arguments(folder, tmp_path, options, message):
    arguments = {"folder": folder, "scorers": Counting(), "output": tmp_path / "scores.csv", **options}
    with pytest.raises(ValueError, match=message):
        score_folder(**arguments)
    assert not (tmp_path / "scores.csv").exists()


def test_an_output_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        score_folder(folder, Counting(), tmp_path / "file" / "scores.csv")
    with pytest.raises(ValueError, match="is a folder"):
        score_folder(folder, Counting(), tmp_path)


@pytest.mark.parametrize(
    ("height", "width", "side", "overlap"), [(37, 50, 16, 0), (16, 16, 16, 0), (5, 40, 16, 4), (33, 17, 16, 15)]
)
def test_tiles_cover_the_image_and_are_full(height, width, side, overlap):
    covered = np.zeros((height, width), dtype=int)
    for x, y in tile_corners(height, width, side, overlap):
        tile = covered[y : y + side, x : x + side]
        assert tile.shape == (min(side, height), min(side, width))
        tile += 1
    assert covered.min() >= 1
    assert len(set(tile_corners(height, width, side, overlap))) == len(tile_corners(height, width, side, overlap))


def test_tiles_are_scored_where_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 37, 50), generator=generator, dtype=torch.uint8)
    (tmp_path / "images").mkdir()
    save_image(image, tmp_path / "images" / "a.png")
    save_image(image[:, :5, :7], tmp_path / "images" / "small.png")
    table = score_folder(tmp_path / "images", Counting(), tmp_path / "scores.csv", tiles=16, batch_size=5)
    assert table.summary() == "2 images; 13 tiles"
    for path, (x, y), score in zip(table.paths, table.tiles.tolist(), table.columns["level"].tolist(), strict=True):
        whole = image if path == "a.png" else image[:, :5, :7]
        assert score == pytest.approx(float(whole[:, y : y + 16, x : x + 16].double().mean() / 255), rel=1e-5)
    paths, means = table.per_image("level")
    assert paths == ["a.png", "small.png"]
    assert means[0] == pytest.approx(table.columns["level"][:12].mean().item(), rel=1e-6)


def test_references_by_name_whatever_the_suffix(tmp_path, photographs):
    made, true = tmp_path / "made", tmp_path / "true"
    for root in (made, true):
        (root / "sub").mkdir(parents=True)
    noisy = (photographs + 0.1).clamp(0, 1)
    for index, name in enumerate(("a", "sub/b", "c", "d")):
        save_image((noisy[index] * 255).round().byte(), made / f"{name}.png")
        reference = (photographs[index] * 255).round().byte()
        if name == "c":
            save_image(reference[:, :-1], true / "c.png")  # another size
        elif name == "a":
            save_image(reference[:1], true / "a.bmp")  # grey, and another suffix
        elif name != "d":
            save_image(reference, true / f"{name}.png")
    table = score_folder(made, ["psnr", Counting()], tmp_path / "scores.csv", reference=true)
    assert table.paths == ["a.png", "c.png", "d.png", "sub/b.png"]
    assert table.columns["psnr"].isnan().tolist() == [False, True, True, False]
    assert table.columns["level"].isfinite().all()  # which takes no reference
    image, reference = load_image(made / "sub/b.png").double(), load_image(true / "sub/b.png").double()
    psnr = 10 * np.log10(255**2 / float((image - reference).square().mean()))
    assert table.columns["psnr"][3].item() == pytest.approx(psnr, rel=1e-4)
    grey = 10 * np.log10(
        255**2 / float((load_image(made / "a.png").double() - load_image(true / "a.bmp").double()).square().mean())
    )
    assert table.columns["psnr"][0].item() == pytest.approx(grey, rel=1e-4)
    assert "no reference of the same name" in table.failures["d.png"]
    assert "its reference is 192x191, itself it is 192x192" in table.failures["c.png"]
    save_image((photographs[3] * 255).round().byte(), true / "d.png")  # and the same call scores it
    assert "d.png" not in score_folder(made, ["psnr", Counting()], tmp_path / "scores.csv", reference=true).failures


def test_two_files_of_one_kind_get_the_names_of_their_files(tmp_path, photographs):
    save_image((photographs[0] * 255).byte(), tmp_path / "a.png")
    for index, name in enumerate("xy"):
        NIQE().fit_calibration(torch.linspace(-8 - index, -2, 20)).save(tmp_path / f"{name}.safetensors")
    specs = [str(tmp_path / "x.safetensors"), tmp_path / "y.safetensors", "niqe_bsd100"]
    table = score_folder(tmp_path, specs, tmp_path / "s.csv")
    names = ["niqe_bsd100@x", "niqe_bsd100@x_calibrated", "niqe_bsd100@y", "niqe_bsd100@y_calibrated", "niqe_bsd100"]
    assert list(table.columns) == names
    assert table.columns[names[0]] == table.columns[names[4]]
    assert table.columns[names[1]] != table.columns[names[3]]


def test_the_callers_state_is_left_alone(folder, tmp_path):
    def draws(images):
        random.random(), np.random.rand()
        return torch.rand(len(images))

    net = torch.nn.BatchNorm2d(3)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    score_folder(folder, FunctionScorer(draws, name="noise", higher_is_better=True), tmp_path / "scores.csv")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert torch.is_grad_enabled()
    assert net.training


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "path,COLUMN"),
        ("name,score\na,1\n", "path,COLUMN"),
        ("path,score\na,1,2\n", "record 2 has not 2 fields"),
        ("path,score\na,one\n", "could not convert"),
        ('path,score\n"a,1\n', "unexpected end"),
        ("path,s,s\na,1,2\n", "path,COLUMN"),
    ],
)
def test_files_that_are_no_tables(tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(ValueError, match=rf"scores.csv is not a table of scores: .*{message}"):
        read_scores(tmp_path / "scores.csv")
    with pytest.raises(ValueError, match="does not exist"):
        read_scores(tmp_path / "other.csv")
    (tmp_path / "scores.csv.json").write_text("{")
    with pytest.raises(ValueError, match="is not a whole JSON file"):
        read_scores(tmp_path / "scores.csv")


def test_filtering(folder, tmp_path):
    lower = Counting("lower", higher_is_better=False)
    score_folder(folder, [Counting(), lower], tmp_path / "scores.csv")
    with pytest.raises(ValueError, match=r"several columns of scores, say which with by=.*level, lower"):
        filter_scores(tmp_path / "scores.csv", keep=0.5)
    with pytest.raises(ValueError, match="has no column 'x'; its columns are level, lower"):
        filter_scores(tmp_path / "scores.csv", keep=0.5, by="x")
    with pytest.raises(ValueError, match="says that lower values"):
        filter_scores(tmp_path / "scores.csv", keep=0.5, by="lower", higher_is_better=True)
    assert filter_scores(tmp_path / "scores.csv", keep=0.25, by="level").kept == NAMES[:5:-1]
    assert filter_scores(tmp_path / "scores.csv", keep=3, by="lower") == (NAMES[:3], 8)
    for keep in (0, 0.0, 1.5, -1, True, float("nan")):
        with pytest.raises(ValueError, match="keep must be"):
            filter_scores(tmp_path / "scores.csv", keep=keep, by="level")
    with pytest.raises(ValueError, match="holds a line end: write the list with null=True"):
        filter_scores(tmp_path / "scores.csv", tmp_path / "list.txt", keep=1.0, by="level")
    filter_scores(tmp_path / "scores.csv", tmp_path / "list.txt", keep=1.0, by="level", null=True)
    assert (tmp_path / "list.txt").read_bytes().decode().split("\0")[:-1] == NAMES[::-1]


def test_a_table_of_somebody_else_and_ties(tmp_path):
    (tmp_path / "t.csv").write_text("path,score\nb,1\na,2\nd,1\nc,1\ne,nan\n")
    with pytest.raises(ValueError, match="does not say whether higher"):
        filter_scores(tmp_path / "t.csv", keep=0.5)
    assert filter_scores(tmp_path / "t.csv", keep=3, higher_is_better=True).kept == ["a", "b", "d"]
    assert filter_scores(tmp_path / "t.csv", keep=0.5, higher_is_better=False).kept == ["b", "d"]
    assert filter_scores(tmp_path / "t.csv", keep=100, higher_is_better=False).kept == ["b", "d", "c", "a"]


@pytest.mark.parametrize("tiles", [None, 8])
def test_lines_that_grow_are_whole_or_not(folder, tmp_path, tiles):
    """A kill at any byte costs the images whose lines are not whole, and no others."""
    output, growing = tmp_path / "scores.csv", tmp_path / "scores.csv.rows0"

    class Killed(BaseException):
        pass

    seen = itertools.count()

    def die_at_the_end(image):
        if next(seen) >= 6 * (1 if tiles is None else 4):
            raise Killed

    with pytest.raises(Killed):
        score_folder(folder, Counting(fail=die_at_the_end), output, tiles=tiles, batch_size=1)
    lines, whole = growing.read_bytes(), []
    assert not output.exists()
    for cut in [*range(lines.index(b"\n") + 1, len(lines), 37), len(lines)]:
        growing.write_bytes(lines[:cut])
        with pytest.raises(ValueError, match="is not complete"):
            read_scores(output)
        scorer = Counting()
        table = score_folder(folder, scorer, output, tiles=tiles)
        kept = lines[:cut].count(b"\n") - 1
        assert scorer.seen == (8 - kept) * (1 if tiles is None else 4)
        whole.append((table.paths, table.columns["level"].tolist(), output.read_bytes()))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "scores.csv", "scores.csv.json"]
        output.unlink()
        output.with_name("scores.csv.json").unlink()
    assert all(result == whole[0] for result in whole)


def test_a_file_that_changed_is_scored_again_whatever_the_clocks_say(folder, tmp_path, monkeypatch):
    output, ahead = tmp_path / "scores.csv", time.time() + 1000
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: ahead)
        score_folder(folder, Counting(), output)
    before = (folder / "a.png").stat()
    save_image(torch.full((1, 9, 9), 250, dtype=torch.uint8), folder / "a.png")
    os.utime(folder / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # another file of the same date
    scorer = Counting()
    table = score_folder(folder, scorer, output)
    assert scorer.seen == 1
    assert scores_of(table)["a.png"] == pytest.approx(250 / 255)
    os.utime(folder / " z.png", (1e9, 1e9))
    scorer = Counting()
    score_folder(folder, scorer, output)
    assert scorer.seen == 1


def test_two_runs_on_one_table(folder, tmp_path):
    """The second is refused by name; what the first has done is whole."""
    output, refused = tmp_path / "scores.csv", []

    def other_run(image):
        if not refused:
            with pytest.raises(ValueError, match=r"another run is at work on .*scores\.csv"):
                score_folder(folder, Counting(), output)
            refused.append(True)

    table = score_folder(folder, Counting(fail=other_run), output)
    assert len(table) == 8
    assert refused == [True]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "scores.csv", "scores.csv.json"]


def test_a_run_that_scored_nothing_leaves_nothing_behind(folder, tmp_path):
    output = tmp_path / "scores.csv"
    with pytest.raises(ValueError, match="none of 8 images could be scored"):
        score_folder(folder, Counting(fail=lambda image: True), output)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
    assert len(score_folder(folder / "sub", Counting("other"), output)) == 1


def test_names_that_a_spreadsheet_would_run_come_back(tmp_path):
    names = ["=1+1.png", "+a.png", "-b.png", "@c.png", "'d.png", "'=e.png"]
    for index, name in enumerate(names):
        (tmp_path / "images").mkdir(exist_ok=True)
        save_image(torch.full((3, 4, 4), 20 * index, dtype=torch.uint8), tmp_path / "images" / name)
    table = score_folder(tmp_path / "images", Counting(), tmp_path / "scores.csv")
    assert sorted(table.paths) == sorted(names)
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert not any(row[0][0] in "=+-@" for row in csv.reader(file))
    scorer = Counting()
    assert scores_of(score_folder(tmp_path / "images", scorer, tmp_path / "scores.csv")) == scores_of(table)
    assert scorer.seen == 0
    picked = pick_folder(tmp_path / "images", Counting(), tmp_path / "out", keep=6)
    assert pick_folder(tmp_path / "images", Counting(), tmp_path / "out", keep=6).kept == picked.kept


def test_a_table_that_a_spreadsheet_has_saved(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffpath,score\na.png,1\n".encode())
    assert scores_of(read_scores(tmp_path / "t.csv"), "score") == {"a.png": 1.0}


def test_the_median_and_the_worst(folder, tmp_path):
    lower = Counting("lower", higher_is_better=False)
    table = score_folder(folder, [Counting(), lower], tmp_path / "scores.csv")
    first, second = table.digest(shown=1)
    mean = bootstrap_interval(table.per_image("level")[1].double())
    middle = f"mean {mean.value:.4g} [{mean.low:.4g}, {mean.high:.4g}], median {np.median(list(levels().values())):.4g}"
    assert first == f"level: {middle}, higher is better; worst a.png 0.01961"
    assert second.endswith("lower is better; worst  z.png 0.5686")
    spec = {"scorers": [{"name": "level", "higher_is_better": True}]}
    (line,) = ScoreTable(["a\nlevel: median 9.png"], {"level": torch.tensor([1.0])}, spec=spec).digest()
    assert line == r"level: mean 1, median 1, higher is better; worst a\nlevel: median 9.png 1"


@pytest.mark.parametrize("n", [2, 500, 20_000])
def test_the_mean_of_a_table_leaves_out_nan(n):
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(3, 1, n)).float()
    table = ScoreTable([f"{i}.png" for i in range(n + 1)], {"level": torch.cat([scores, torch.tensor([torch.nan])])})
    mean = table.mean("level")
    assert mean.value == pytest.approx(float(scores.double().mean()), rel=1e-6)
    assert mean.low < mean.value < mean.high
    if n > 2:
        assert (mean.high - mean.low) / 2 == pytest.approx(1.96 * float(scores.std()) / n**0.5, rel=0.15)


@pytest.mark.parametrize("change", ["twice", "empty", "word", "short"])
def test_rows_that_another_program_has_changed_are_scored_again(folder, tmp_path, change):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output)
    whole = output.read_bytes()
    name, value = "b b.png", number(levels()["b b.png"])
    row = f"{name},{value}\n".encode()
    assert whole.count(row) == 1
    changed = {"twice": row * 2, "empty": b"b b.png,\n", "word": b"b b.png,good\n", "short": b"b b.png\n"}[change]
    output.write_bytes(whole.replace(row, changed))
    again = Counting()
    score_folder(folder, again, output)
    assert again.seen == (change != "twice")
    assert output.read_bytes() == whole


@pytest.mark.parametrize("change", [(b",", b";"), (b"path,level", b"path,level,note"), (b"path,level", b"level,path")])
def test_a_table_with_other_columns_is_somebodys_work(folder, tmp_path, change):
    output = tmp_path / "scores.csv"
    score_folder(folder, Counting(), output)
    whole = output.read_bytes()
    output.write_bytes(whole.replace(*change))
    with pytest.raises(ValueError, match="was changed by another program: its first line is"):
        score_folder(folder, Counting(), output)
    assert output.read_bytes() == whole.replace(*change)
    score_folder(folder, Counting(), output, resume=False)
    assert output.read_bytes() == whole


def test_a_quality_table_is_filtered_by_the_names_of_its_files():
    """Its rows are contents: two files of one content are two files, and a sample of several files is none."""
    scores, tiles = {"bright": torch.tensor([0.2, 0.9])}, torch.tensor([[0, 0], [64, 0]])
    spec = {"sets": {"a.png": ["dark"], "b.png": ["light"], "copy.png": ["light"], "lost.png": ["gone"]},
            "failures": {"gone": "no picture"}}  # fmt: skip
    table = ScoreTable(["dark", "light"], scores, None, spec)
    assert filter_scores(table, keep=2, higher_is_better=True).kept == ["b.png", "copy.png"]
    assert filter_scores(table, keep=1.0, higher_is_better=True).kept == ["b.png", "copy.png", "a.png"]
    assert table.by_file().failures == {"lost.png": "no picture"}
    tiled = ScoreTable(["dark", "dark"], scores, tiles, {"sets": {"a.png": ["dark"]}}).by_file()
    assert (tiled.paths, tiled.tiles.tolist()) == (["a.png", "a.png"], tiles.tolist())
    with pytest.raises(ValueError, match=r"sets of candidates \(a.png has 2\)"):
        filter_scores(ScoreTable(["x"], {"s": torch.ones(1)}, None, {"sets": {"a.png": ["x", "y"]}}), keep=1)
