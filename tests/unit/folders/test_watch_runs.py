"""Several runs that are watched together: one page, one best step, and each run as if it were watched alone."""

from __future__ import annotations

import json
import re

import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.folders import watch_folder, watch_folders
from qa_hooks.folders.watching.runs import run_places
from qa_hooks.images import save_image, to_uint8
from toy_scorers import brightness

pytest.importorskip("matplotlib")


def write(folder, level, *, n=3, side=16):
    """Images of one step: grey of a level with a little noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        noise = torch.rand(3, side, side, generator=torch.Generator().manual_seed(number))
        save_image(to_uint8(level + 0.1 * noise), folder / f"{number:03d}.png")


@pytest.fixture
def runs(tmp_path):
    """Three runs; the brightest step is step 200 of b."""
    levels = {"a": (0.1, 0.2), "b": (0.3, 0.7, 0.4), "c": (0.2, 0.5)}
    for run, steps in levels.items():
        for number, level in enumerate(steps, 1):
            write(tmp_path / "runs" / run / "samples" / f"step_{100 * number}", level)
    return [tmp_path / "runs" / run / "samples" for run in levels]


def options(tmp_path, **more):
    return {"scorers": brightness(), "once": True, "every": 0.01, "log_dir": tmp_path / "log", **more}


@pytest.mark.filterwarnings("error")
def test_each_is_watched_as_alone_and_there_is_one_best(runs, tmp_path):
    lines: list[str] = []
    found = watch_folders(runs, **options(tmp_path, say=lines.append))
    assert list(found.runs) == ["a", "b", "c"]
    for folder, name in zip(runs, found.runs, strict=True):
        alone = watch_folder(folder, **options(tmp_path, log_dir=tmp_path / f"alone {name}"))
        assert found.runs[name].steps == alone.steps
        assert found.runs[name].best == alone.best
    assert sum(line.startswith("a: step 100: brightness 0.1") for line in lines) == 1
    best = json.loads((tmp_path / "log" / "best.json").read_text())
    assert (best["run"], best["step"], best["key"]) == ("b", 200, "brightness")
    assert {key: best[key] for key in found.best} == found.best
    assert best["files"][0].endswith("/b/samples/step_200/000.png")
    page = (tmp_path / "log" / "report.html").read_text()
    assert "<h1>a, b, c</h1>" in page
    assert f"best: b, step 200, brightness {best['value']:.4g}" in page
    assert re.search(
        r"brightness/mean <small>\(higher is better\)</small></td><td class=\"number\">0\.2\d* \[0\.\d+, 0\.\d+\]", page
    )


@pytest.mark.filterwarnings("error")
def test_it_goes_on_with_new_steps_and_new_runs(runs, tmp_path):
    watch_folders(runs[:2], **options(tmp_path))
    page = tmp_path / "log" / "report.html"
    before, lines = page.read_text(), []
    watch_folders(runs[:2], **options(tmp_path, say=lines.append))
    assert lines == []
    assert page.read_text() == before
    write(runs[0] / "step_300", 0.85)
    found = watch_folders(runs, **options(tmp_path, say=lines.append))
    assert sorted(line.split(":")[0] for line in lines) == ["a", "c", "c"]
    assert (found.best["run"], found.best["step"]) == ("a", 300)
    assert "<h1>a, b, c</h1>" in page.read_text()


def test_distances_of_other_numbers_of_images_are_not_compared(tmp_path, caplog):
    for run, n in (("a", 20), ("b", 24)):
        write(tmp_path / "runs" / run / "step_1", 0.5 if run == "a" else 0.2, n=n)
    write(tmp_path / "real", 0.5, n=30)
    folders = [tmp_path / "runs" / run for run in "ab"]
    asked = options(tmp_path, scorers=(), real=tmp_path / "real", metrics=("fd",))
    assert watch_folders(folders, **asked).best["run"] == "b"
    assert "runs with steps of fewer than 24 images are not compared by fd" in caplog.text
    assert len(list((tmp_path / "log" / "features").iterdir())) == 1  # the real images are read once


def test_a_run_that_has_not_begun_is_told_and_waits(runs, tmp_path, caplog):
    found = watch_folders([*runs, tmp_path / "runs" / "d" / "samples"], **options(tmp_path))
    assert found.runs["d"].steps == {}
    assert re.search(r"d: .*samples", caplog.text)
    assert found.best["run"] == "b"


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([], "at least one run"),
        (["runs/a", "runs/a"], "are one folder"),
        (["runs/a", "runs/a/samples"], "one lies in the other"),
        (["runs/a/samples", "log/.."], "one lies in the other|lies in"),
    ],
)
def test_places_that_cannot_be_are_refused(runs, tmp_path, folders, message):
    with pytest.raises(ValueError, match=message):
        watch_folders([tmp_path / name for name in folders], **options(tmp_path))
    with pytest.raises(ValueError, match=r"lies in .*, which is watched"):
        watch_folders(runs[:2], **options(tmp_path, log_dir=runs[0] / "log"))
    with pytest.raises(TypeError, match="no option colour"):
        watch_folders(runs, **options(tmp_path, colour="red"))


def test_logs_of_one_and_of_several_do_not_mix(runs, tmp_path):
    watch_folder(runs[0], **options(tmp_path))
    with pytest.raises(ValueError, match="holds the watch of one folder"):
        watch_folders(runs, **options(tmp_path))
    watch_folders(runs, **options(tmp_path, log_dir=tmp_path / "several"))
    with pytest.raises(ValueError, match="holds the watch of several runs"):
        watch_folder(runs[0], **options(tmp_path, log_dir=tmp_path / "several"))


def test_names_tell_the_runs_apart(tmp_path):
    names = lambda *folders: list(run_places([tmp_path / name for name in folders], tmp_path / "log"))  # noqa: E731
    assert names("x/a/samples", "y/a/samples") == ["x", "y"]
    assert names("a", "b") == ["a", "b"]
    assert names("a/samples") == ["samples"]
    assert names("a/samples", "a/validation") == ["samples", "validation"]


def test_the_command_watches_many(tmp_path, capsys):
    for run, level in (("a", 0.1), ("b", 0.5)):
        write(tmp_path / run / "step_100", level, side=96)
    common = ["--scorer", "niqe_bsd100", "--once", "--every", "0.01", "--log-dir", str(tmp_path / "log")]
    code = main(["watch", str(tmp_path / "a"), str(tmp_path / "b"), *common, "--alarm", "niqe_bsd100>0"])
    out, err = capsys.readouterr()
    assert code == 3
    assert re.search(r"best: [ab], step 100 with niqe_bsd100 \d", out)
    assert {"a: ALARM at step 100", "b: ALARM at step 100"} <= set(re.findall(r"[ab]: ALARM at step \d+", err))
