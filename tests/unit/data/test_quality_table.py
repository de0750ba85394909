"""The table of raw scores per candidate: layouts, contents, a killed run, and everything that may be wrong on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qa_hooks.data import QualityTable, list_candidates
from qa_hooks.data.candidates import CandidateSet, majority_labels, read_annotation
from qa_hooks.folders import read_scores, score_folder
from qa_hooks.images import load_image, save_image
from qa_hooks.scorers import NIQE, SSIM, FunctionScorer

ROOT = Path(__file__).resolve().parents[3]


class Level(FunctionScorer):
    """Mean grey level; counts the images it sees and refuses those of level `refused`."""

    def __init__(self, name: str = "level", refused: float = -1.0) -> None:
        super().__init__(self.function, name=name, higher_is_better=True, score_range=(0.0, 1.0))
        self.seen, self.refused = 0, refused

    def function(self, images):
        levels = images.mean((1, 2, 3))
        if (levels * 255).round().eq(self.refused).any():
            raise ValueError("refused")
        self.seen += len(images)
        return levels


def paint(path: Path, level: int, size: tuple[int, int] = (8, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.full((3, *size), level, dtype=torch.uint8), path)
    return path


def compute(source, path, scorer=None, **options) -> QualityTable:
    return QualityTable.compute(source, scorer or Level(), path, progress=False, **options)


@pytest.fixture
def plain(tmp_path):
    root = tmp_path / "plain"
    for index, name in enumerate(("a.png", "sub/b.png", "c d.png", "e,f.png")):
        paint(root / name, 20 * index + 10)
    return root


@pytest.fixture
def folders(tmp_path):
    """Levels 10 i + 1 + k: set i, candidate k."""
    root = tmp_path / "folders"
    for folder_index, folder in enumerate(("original", "enhanced_2", "enhanced_10")):
        for index, name in enumerate(("a.png", "sub/b.png", "c.png")):
            paint(root / folder / name, 10 * index + 1 + folder_index)
    return root


@pytest.fixture
def hggt(tmp_path):
    root = tmp_path / "Train"
    for index, stem in enumerate(("0001-5-7", "0002-1-2")):
        paint(root / "images/0-20193/original" / f"{stem}.png", 10 * index + 1)
        for number in range(1, 5):
            name = f"{number:02d}"
            paint(root / "images/0-20193" / name / f"{stem}_{name}.png", 10 * index + 1 + number)
    votes = {"A": "PPSN", "B": "PSNN", "C": "PNPN"}
    for annotator, letters in votes.items():
        write_annotation(root / "labels/0-20193" / annotator / "0001-5-7.json", letters)
    return root


def write_annotation(path: Path, letters: str) -> None:
    words = {"P": "Positive", "S": "Similar", "N": "Negative"}
    content = {"Picture_1": {"Name": "x.png", "File": "original", "Label": None}, "Time_cost": {"Total": 42}}
    for number, letter in enumerate(letters, 2):
        content[f"Picture_{number}"] = {
            "Name": "x.png",
            "File": f"{number - 1:02d}",
            "Label": words.get(letter, letter),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


class TestLayouts:
    def test_plain(self, plain):
        sets = list_candidates(plain, "plain")
        assert [s.key for s in sets] == ["a.png", "c d.png", "e,f.png", "sub/b.png"]
        assert all(s.paths == (plain / s.key,) for s in sets)

    def test_folders_in_natural_order(self, folders):
        sets = list_candidates(folders)
        assert [s.key for s in sets] == ["a.png", "c.png", "sub/b.png"]
        expected = [folders / name / "sub/b.png" for name in ("original", "enhanced_2", "enhanced_10")]
        assert list(sets[2].paths) == expected
        named = list_candidates(folders, names=["enhanced_2", "original"])
        assert named[0].paths == (folders / "enhanced_2/a.png", folders / "original/a.png")

    def test_folders_with_another_suffix(self, folders):
        (folders / "enhanced_2/a.png").rename(folders / "enhanced_2/a.jpg")
        assert list_candidates(folders)[0].paths[1] == folders / "enhanced_2/a.jpg"
        paint(folders / "enhanced_2/a.png", 5)
        with pytest.raises(ValueError, match=r"'a\.png' twice"):
            list_candidates(folders)

    def test_folders_that_do_not_fit(self, folders, tmp_path):
        paint(folders / "enhanced_2/new.png", 5)
        with pytest.raises(ValueError, match=r"new\.png has no original of the same name"):
            list_candidates(folders)
        with pytest.raises(ValueError, match="has no folder 'original'"):
            list_candidates(folders / "original")
        with pytest.raises(ValueError, match="different folders"):
            list_candidates(folders, names=["original", "original"])
        with pytest.raises(ValueError, match="is not a folder"):
            list_candidates(tmp_path / "nowhere")
        for layout, options in (("tree", {}), ("plain", {"names": ["a"]}), ("csv", {"labels": "x"})):
            with pytest.raises(ValueError, match="layout"):
                list_candidates(folders, layout, **options)

    def test_a_missing_candidate(self, folders):
        (folders / "enhanced_2/c.png").unlink()
        with pytest.raises(
            ValueError, match=r"1 of 3 sets .* lack a candidate: c\.png \(candidate 1\); .*missing='allow'"
        ):
            list_candidates(folders)
        sets = list_candidates(folders, missing="allow")
        assert sets[1].paths == (folders / "original/c.png", None, folders / "enhanced_10/c.png")

    def test_csv(self, folders):
        table = folders / "sets.csv"
        table.write_text(
            "note,candidate_1,original\nx,enhanced_2/a.png,original/a.png\ny,,original/c.png\n", encoding="utf-8-sig"
        )
        with pytest.raises(ValueError, match=r"original/c\.png \(candidate 1\)"):
            list_candidates(table, "csv")
        sets = list_candidates(table, "csv", missing="allow")
        assert [s.key for s in sets] == ["original/a.png", "original/c.png"]
        assert [s.paths[1] and s.paths[1].resolve() for s in sets] == [(folders / "enhanced_2/a.png").resolve(), None]

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("original\n../plain/a.png\n", "outside the folder"),
            ("original\n/etc/passwd\n", "outside the folder"),
            ("original,candidate_1\noriginal/a.png,sub/../../x.png\n", "line 2: .* outside the folder"),
            ("original\nnone.png\n", "does not exist"),
            ("original,candidate_1\n,original/a.png\n", "line 2: no original"),
            ("candidate_1\noriginal/a.png\n", "header must be"),
            ("original,candidate_2\noriginal/a.png,original/a.png\n", "header must be"),
            ("original\noriginal/a.png\noriginal/a.png\n", r"1 keys more than once: original/a\.png"),
            ("original\n", "no sets"),
        ],
    )
    def test_broken_csvs(self, folders, text, complaint):
        (folders / "sets.csv").write_text(text)
        with pytest.raises(ValueError, match=complaint):
            list_candidates(folders / "sets.csv", "csv")

    def test_hggt(self, hggt):
        """Labels by hand: PPP, PSN, SNP, NNN -> Positive 3, Similar 1, Similar 1, Negative 3."""
        judged, unjudged = list_candidates(hggt, "hggt")
        assert judged.key == "0-20193/0001-5-7.png"
        names = ["0001-5-7.png", *(f"0001-5-7_0{number}.png" for number in range(1, 5))]
        assert [path.name for path in judged.paths] == names
        assert (judged.labels, judged.votes) == ((0, 1, 2, 2, 3), (3, 3, 1, 1, 3))
        assert (unjudged.labels, unjudged.votes) == ((), ())
        direct = list_candidates(hggt / "images/0-20193", "hggt", labels=hggt / "labels/0-20193")
        assert [s.key for s in direct] == ["0001-5-7.png", "0002-1-2.png"]
        assert direct[0].labels == judged.labels

    def test_hggt_is_strict_about_labels(self, hggt):
        path = hggt / "labels/0-20193/B/0001-5-7.json"
        write_annotation(path, ["positive ", "S", "Good", "N"])
        with pytest.raises(
            ValueError, match=r"B.0001-5-7\.json is not .* 'Good' is none of Positive, Similar, Negative"
        ):
            list_candidates(hggt, "hggt")
        for text in ("[]", "{", json.dumps({"Picture_2": {"Label": "Positive"}}), json.dumps({"Picture_2": 3})):
            path.write_text(text)
            with pytest.raises(ValueError, match="is not an annotation of HGGT"):
                read_annotation(path)
        path.unlink()
        with pytest.raises(ValueError, match="is missing: an effective label needs all of A, B, C"):
            list_candidates(hggt, "hggt")

    def test_majority_of_all_27_judgements(self):
        """Counted by hand: two or three equal win, all different is Similar."""
        words = ("Positive", "Similar", "Negative")
        for a in range(3):
            for b in range(3):
                for c in range(3):
                    labels, votes = majority_labels([[words[a]], [words[b].upper()], [f" {words[c]} "]])
                    given = [a, b, c]
                    most = max(given, key=given.count)
                    assert labels == (0, most + 1 if given.count(most) > 1 else 2)
                    assert votes == (3, given.count(most))
        with pytest.raises(ValueError, match="three annotators"):
            majority_labels([["Positive"], ["Positive"]])


class TestScores:
    def test_scores_are_those_of_the_scorer(self, tmp_path, photographs):
        root = tmp_path / "photographs"
        root.mkdir()
        for index, image in enumerate(photographs):
            save_image((image * 255).round().byte(), root / f"{index}.png")
        scorer = NIQE()
        table = compute(root, tmp_path / "t.csv", scorer)
        expected = torch.stack([scorer(load_image(root / key)[None])[0] for key in table.keys])
        assert torch.allclose(table.values[:, 0], expected, rtol=1e-5)
        assert (table.scorer_name, table.higher_is_better, table.score_range) == (scorer.name, False, None)

    def test_every_candidate_of_every_set(self, folders, tmp_path):
        table = compute(folders, tmp_path / "t.csv", layout="folders")
        expected = torch.tensor([[1, 2, 3], [21, 22, 23], [11, 12, 13]]) / 255
        assert torch.allclose(table.values, expected, rtol=1e-5)
        assert torch.allclose(table["c.png"], expected[1], rtol=1e-5)
        assert list(table) == table.keys == ["a.png", "c.png", "sub/b.png"]
        assert "c.png" in table
        assert "d.png" not in table
        assert (table.candidates, len(table), table.score_range) == (3, 3, (0.0, 1.0))
        again = QualityTable.load(tmp_path / "t.csv")
        assert torch.equal(again.values, table.values)
        assert again.contents == table.contents
        with pytest.raises(KeyError, match=r"'d\.png' is not in the table; it has 3 samples such as a\.png"):
            table["d.png"]

    def test_hggt_and_csv_give_the_same_scores(self, hggt, tmp_path):
        table = compute(hggt, tmp_path / "t.csv", layout="hggt")
        expected = torch.tensor([[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]]) / 255
        assert torch.allclose(table.values, expected, rtol=1e-5)
        lines = ["original,candidate_1,candidate_2,candidate_3,candidate_4"]
        for candidates in list_candidates(hggt, "hggt"):
            lines.append(",".join(path.relative_to(hggt).as_posix() for path in candidates.paths))
        (hggt / "sets.csv").write_text("\n".join(lines))
        assert torch.equal(compute(hggt / "sets.csv", tmp_path / "u.csv", layout="csv").values, table.values)

    def test_missing_candidates_are_nan(self, folders, tmp_path):
        (folders / "enhanced_2/c.png").unlink()
        with pytest.raises(ValueError, match="lack a candidate"):
            compute(folders, tmp_path / "t.csv", layout="folders")
        table = compute(folders, tmp_path / "t.csv", layout="folders", missing="allow")
        assert table.values.isnan().tolist() == [[False] * 3, [False, True, False], [False] * 3]
        assert table.failures == {}

    def test_images_that_cannot_be_scored_are_nan_and_named(self, plain, tmp_path):
        (plain / "broken.png").write_bytes(b"not an image")
        table = compute(plain, tmp_path / "t.csv", Level(refused=30))
        assert table.keys[1] == "broken.png"
        assert table.values[:, 0].isnan().tolist() == [False, True, False, False, True]
        assert set(table.failures) == {"broken.png (candidate 0)", "sub/b.png (candidate 0)"}
        assert table.failures["sub/b.png (candidate 0)"] == "level: refused"
        scorer = Level()
        healed = compute(plain, tmp_path / "t.csv", scorer)  # failures are tried again, and they alone
        assert scorer.seen == 1
        assert healed.values[:, 0].isnan().sum() == 1

    def test_nothing_that_can_be_scored(self, plain, tmp_path):
        nan = FunctionScorer(lambda x: x.mean((1, 2, 3)) * math.nan, name="nan", higher_is_better=True)
        with pytest.raises(ValueError, match="none of 4 images could be scored"):
            compute(plain, tmp_path / "t.csv", nan)

    def test_tiles_are_samples(self, tmp_path):
        image = torch.arange(16 * 24).view(1, 16, 24).remainder(251).byte()
        for folder, flipped in (("original", image), ("better", image.flip(2))):
            (tmp_path / "d" / folder).mkdir(parents=True)
            save_image(flipped, tmp_path / "d" / folder / "a.png")
        table = compute(tmp_path / "d", tmp_path / "t.csv", layout="folders", tiles=16, overlap=8)
        assert table.keys == ["a.png@0,0", "a.png@8,0"]
        assert table.corners.tolist() == [[0, 0], [8, 0]]
        for row, (x, y) in enumerate(table.corners.tolist()):
            for column, whole in enumerate((image, image.flip(2))):
                expected = whole[:, y : y + 16, x : x + 16].double().mean() / 255
                assert table.values[row, column] == pytest.approx(float(expected), rel=1e-5)
        with pytest.raises(ValueError, match="tiles was 16, is now None"):
            compute(tmp_path / "d", tmp_path / "t.csv", layout="folders")

    def test_lists_of_files_and_of_sets(self, plain, tmp_path):
        files = [plain / "c d.png", plain / "a.png"]
        table = compute(files, tmp_path / "t.csv")
        assert table.keys == [path.as_posix() for path in files]
        sets = [CandidateSet("x", (files[0], files[1])), CandidateSet("y", (files[1],))]
        ragged = compute(sets, tmp_path / "u.csv").values
        assert ragged.isnan().tolist() == [[False, False], [False, True]]
        with pytest.raises(ValueError, match="1 keys more than once"):
            compute([files[0], files[0]], tmp_path / "v.csv")
        with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
            compute([tmp_path / "gone.png"], tmp_path / "v.csv")


class TestContinuing:
    def test_what_is_known_is_not_scored_again(self, folders, tmp_path):
        first = compute(folders, tmp_path / "t.csv", layout="folders")
        before = (tmp_path / "t.csv").read_bytes()
        again = Level()
        assert torch.equal(compute(folders, tmp_path / "t.csv", again, layout="folders").values, first.values)
        assert again.seen == 0
        assert (tmp_path / "t.csv").read_bytes() == before
        compute(folders, tmp_path / "t.csv", again, layout="folders", resume=False)
        assert again.seen == 9

    def test_content_counts_not_name_nor_time(self, plain, tmp_path):
        compute(plain, tmp_path / "t.csv")
        moved = tmp_path / "elsewhere"
        plain.rename(moved)
        (moved / "a.png").rename(moved / "z.png")
        shutil.copy(moved / "z.png", moved / "copy.png")
        os.utime(moved / "c d.png")
        scorer = Level()
        table = compute(moved, tmp_path / "t.csv", scorer)
        assert scorer.seen == 0
        assert table["z.png"] == table["copy.png"] == pytest.approx(10 / 255)

    def test_a_changed_image_is_noticed_even_if_it_looks_the_same_from_outside(self, plain, tmp_path):
        compute(plain, tmp_path / "t.csv")
        sets, status = list_candidates(plain, "plain"), (plain / "a.png").stat()
        paint(plain / "a.png", 99)
        os.utime(plain / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(ValueError, match=r"1 of 4 samples have changed: a\.png"):
            QualityTable.load(tmp_path / "t.csv").check(sets, content=True)
        scorer = Level()
        with pytest.warns(UserWarning, match=r"1 of 4 samples have changed since .*: a\.png"):
            table = compute(plain, tmp_path / "t.csv", scorer)
        assert scorer.seen == 1
        assert table["a.png"] == pytest.approx(99 / 255)
        table.check(sets, content=True)

    def test_a_changed_scorer_is_refused(self, plain, tmp_path):
        compute(plain, tmp_path / "t.csv", Level("level"))
        with pytest.raises(ValueError, match=r"scorers was \['level \[\w+\]'\], is now \['other"):
            compute(plain, tmp_path / "t.csv", Level("other"))
        calibrated = Level("level").fit_calibration(torch.rand(10))
        with pytest.raises(ValueError, match="scorers was"):
            compute(plain, tmp_path / "t.csv", calibrated)

    def test_a_table_of_another_data_set_is_refused(self, plain, folders, tmp_path):
        compute(plain, tmp_path / "t.csv")
        expected = r"is of another data set: it has 4 samples of 1 candidates from .*plain \(a\.png, .*3 samples of 3"
        paint(plain / "a.png", 123)  # else one content would be in both
        for name in ("a.png", "sub/b.png", "c.png"):
            paint(folders / "original" / name, 200)
        with pytest.raises(ValueError, match=expected):
            compute(folders, tmp_path / "t.csv", layout="folders")
        assert len(QualityTable.load(tmp_path / "t.csv")) == 4

    def test_a_table_of_something_else_is_refused(self, plain, tmp_path):
        score_folder(plain, Level(), tmp_path / "scores.csv", progress=False)
        with pytest.raises(ValueError, match="no quality table"):
            compute(plain, tmp_path / "scores.csv")
        (tmp_path / "own.csv").write_text("path,level\na.png,1\n")
        with pytest.raises(ValueError, match="no quality table"):
            QualityTable.load(tmp_path / "own.csv")
        loaded = QualityTable.load(
            tmp_path / "scores.csv"
        )  # which has a score for each path, and that is enough to read
        assert loaded.keys == read_scores(tmp_path / "scores.csv").paths
        assert loaded.fingerprint == compute(plain, tmp_path / "t.csv").fingerprint == Level().fingerprint != ""
        with pytest.raises(ValueError, match="not made from files"):
            loaded.check(list_candidates(plain, "plain"), content=True)
        (tmp_path / "mine.csv").write_text("important\n")
        with pytest.raises(ValueError, match="is no table of qa_hooks"):
            compute(plain, tmp_path / "mine.csv")
        assert (tmp_path / "mine.csv").read_text() == "important\n"
        with pytest.raises(ValueError, match="does not exist and is no quality table"):
            QualityTable.load(tmp_path / "nothing.csv")
        for source in (torch.rand(2, 3, 8, 8), None, [torch.rand(3, 8, 8)], ["a.png", None]):
            with pytest.raises(TypeError, match="source must be a folder, a CSV, or a list of files"):
                compute(source, tmp_path / "new.csv")

    def test_rows_that_repeat_others_are_refused(self, plain, tmp_path):
        """Of two scores of one image it is not known which holds."""
        compute(plain, tmp_path / "t.csv")
        text = (tmp_path / "t.csv").read_text()
        last = text.splitlines()[-1]
        (tmp_path / "t.csv").write_text(f"{text}{last.split(',')[0]},{','.join('9' for _ in last.split(',')[1:])}\n")
        with pytest.raises(ValueError, match=r"1 of 5 rows of .*t\.csv repeat others"):
            QualityTable.load(tmp_path / "t.csv")

    def test_check(self, plain, folders, tmp_path):
        table = compute(plain, tmp_path / "t.csv")
        table.check(list_candidates(plain, "plain")[1:])
        with pytest.raises(ValueError, match=r"lacks 1 of 3 samples: c\.png; it has 4 such as a\.png"):
            table.check(list_candidates(folders))
        with pytest.raises(ValueError, match=r"another number of candidates for a\.png"):
            table.check([CandidateSet("a.png", (plain / "a.png", None))])
        in_memory = QualityTable(["a.png"], torch.ones(1, 1), "level", True)
        in_memory.check([CandidateSet("a.png", (plain / "a.png",))])
        with pytest.raises(ValueError, match="does not know what they held"):
            in_memory.check([CandidateSet("a.png", (plain / "a.png",))], content=True)

    def test_a_killed_run_goes_on(self, tmp_path):
        """A real kill -9 in the middle of the 6th image; the second run scores what is left and nothing else."""
        root = tmp_path / "many"
        for index in range(12):
            paint(root / f"{index:02d}.png", 5 * index)
        code = f"""
import os, signal, torch
from qa_hooks.data import QualityTable
from qa_hooks.scorers import FunctionScorer
seen = 0
def level(images):
    global seen
    seen += 1
    if seen == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return images.mean((1, 2, 3))
scorer = FunctionScorer(level, name="level", higher_is_better=True, score_range=(0.0, 1.0))
QualityTable.compute({str(root)!r}, scorer, {str(tmp_path / "t.csv")!r}, batch_size=1, progress=False)
"""
        killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len((tmp_path / "t.csv.rows0").read_text().splitlines()) == 1 + 5
        with pytest.raises(ValueError, match="not complete"):
            QualityTable.load(tmp_path / "t.csv")
        with (tmp_path / "t.csv.rows0").open("a") as file:
            file.write('{"path": "0123456789abcd", "ro')  # what a kill in the middle of a line leaves
        whole = compute(root, tmp_path / "whole.csv", Counting("level"), batch_size=1)
        scorer = Counting("level")
        with pytest.warns(UserWarning, match="an earlier run of .* was killed while it worked on 7 images"):
            table = compute(root, tmp_path / "t.csv", scorer, batch_size=1)
        assert scorer.seen == 12 - 5
        assert torch.equal(table.values, whole.values)
        assert (tmp_path / "t.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        assert sorted(p.name for p in tmp_path.iterdir()) == [
            "many",
            "t.csv",
            "t.csv.json",
            "whole.csv",
            "whole.csv.json",
        ]


class Counting(FunctionScorer):
    """The scorer of the killed script, with a count; its class is in the fingerprint, which is told to be the same."""

    def __init__(self, name: str) -> None:
        super().__init__(self.function, name=name, higher_is_better=True, score_range=(0.0, 1.0))
        self.seen = 0

    def function(self, images):
        self.seen += len(images)
        return images.mean((1, 2, 3))

    @property
    def fingerprint(self) -> str:
        plain = FunctionScorer(self.function, name=self.name, higher_is_better=True, score_range=(0.0, 1.0))
        return plain.fingerprint


class TestBadInput:
    def test_candidates_of_different_sizes(self, folders, tmp_path):
        paint(folders / "enhanced_2/c.png", 22, size=(8, 12))
        with pytest.raises(ValueError, match=r"1 of 3 sets have candidates of different sizes: c\.png \(10x8, 12x8\)"):
            compute(folders, tmp_path / "t.csv", layout="folders")
        assert not (tmp_path / "t.csv").exists()

    def test_a_turned_photograph_has_the_size_it_is_seen_in(self, tmp_path):
        from PIL import Image

        for folder, orientation, size in (("original", 6, (12, 8)), ("enhanced", 1, (8, 12))):
            (tmp_path / "d" / folder).mkdir(parents=True)
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.new("RGB", size, (50, 50, 50)).save(tmp_path / "d" / folder / "a.png", exif=exif)
        table = compute(tmp_path / "d", tmp_path / "t.csv", layout="folders")
        assert torch.allclose(table.values, torch.full((1, 2), 50 / 255))

    def test_scorers_that_need_more_than_the_image(self, plain, tmp_path):
        with pytest.raises(ValueError, match="ssim needs a reference"):
            compute(plain, tmp_path / "t.csv", SSIM())
        with pytest.raises(ValueError, match="one scorer"):
            compute(plain, tmp_path / "t.csv", [Level("a"), Level("b")])

    def test_options(self, plain, tmp_path):
        for options in ({"tiles": 0}, {"overlap": 8, "tiles": 8}, {"batch_size": 0}, {"missing": "perhaps"}):
            with pytest.raises(ValueError, match=next(iter(options))):
                compute(plain, tmp_path / "t.csv", **options)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="no image files"):
            compute(tmp_path / "empty", tmp_path / "t.csv")
        with pytest.raises(ValueError, match="no sets"):
            compute([], tmp_path / "t.csv")

    def test_tables_in_memory(self):
        with pytest.raises(ValueError, match="keys must differ"):
            QualityTable(["a", "a"], torch.zeros(2, 1), "x", True)
        with pytest.raises(ValueError, match=r"values must be \(1, K\)"):
            QualityTable(["a"], torch.zeros(2, 1), "x", True)


def test_the_users_run_is_not_touched(plain, tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawing = FunctionScorer(lambda x: x.mean((1, 2, 3)) + torch.rand(1), name="noisy", higher_is_better=True)
    compute(plain, tmp_path / "t.csv", drawing)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_spellings_of_a_path_in_a_csv_are_one_sample(folders):
    name = sorted(p.name for p in (folders / "original").iterdir())[0]
    rows = f"original,candidate_1\noriginal/{name},\noriginal/../original/{name},\n"
    (folders / "sets.csv").write_text(rows)
    with pytest.raises(ValueError, match=f"more than once: original/{name}"):
        list_candidates(folders / "sets.csv", "csv", missing="allow")


def test_a_json_without_sets_is_named(plain, tmp_path):
    compute(plain, tmp_path / "t.csv")
    beside = tmp_path / "t.csv.json"
    beside.write_text(json.dumps({**json.loads(beside.read_text()), "sets": [1]}))
    with pytest.raises(ValueError, match="is no quality table"):
        QualityTable.load(tmp_path / "t.csv")
