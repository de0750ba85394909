"""Samples that are watched are compared with the ground truths of their names."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from qa_hooks import PSNR
from qa_hooks.cli import main
from qa_hooks.folders import watch_folder, watch_folders
from qa_hooks.folders.watching.ground_truths import names_without_step
from qa_hooks.images import load_image, save_image
from toy_scorers import brightness

SHAPES = {"baby": (3, 20, 24), "bird_4": (3, 24, 20)}


@pytest.fixture
def truths(tmp_path):
    """Two ground truths of two sizes, one of them grey."""
    folder = tmp_path / "truths"
    folder.mkdir()
    for seed, (name, shape) in enumerate(SHAPES.items()):
        picture = torch.randint(0, 200, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        save_image(picture[: 1 + 2 * (name == "baby")], folder / f"{name}.png")
    return folder


def restored(truths, path, error):
    """A restored image: the ground truth, brighter by `error` levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = next(name for name in SHAPES if name in path.as_posix())
    save_image(load_image(truths / f"{name}.png") + error, path)


def options(tmp_path, truths, **more):
    log = {"every": 0.01, "once": True, "log_dir": tmp_path / "log", "say": lambda line: None}
    return {"scorers": "psnr", "reference": truths, **log, **more}


@pytest.mark.parametrize(
    "name",
    [
        "step_{step}/{image}.png",
        "{image}/{image}_{step}.png",
        "{image}/iter_{step}.png",
        "Set5/{image}-iter_{step}.png",
        "step_{step}/{image}_x2_SR.png",
        "{image}/{image}_x2_{step}.png",
        "{image}_SR_iter_{step}.png",
        "{image}_x2_SR_{step}.png",
    ],
)
def test_each_step_is_compared_with_the_truths_of_its_names(tmp_path, truths, name):
    for step, error in ((4, 20), (1000, 2)):  # 4 also stands in a name
        for image in SHAPES:
            restored(truths, tmp_path / "run" / name.format(step=step, image=image), error)
    found = watch_folder(tmp_path / "run", **options(tmp_path, truths))
    for step, error in ((4, 20), (1000, 2)):
        images = torch.zeros(1, 1, 8, 8)
        expected = float(PSNR()(images, reference=images + error / 255))
        assert found.steps[step]["psnr"] == pytest.approx(expected, abs=1e-3)
        assert found.steps[step]["n"] == 2
    assert found.best["step"] == 1000
    assert found.best["key"] == "psnr"


@pytest.mark.parametrize(
    ("name", "step", "first"),
    [
        ("step_100/0100.png", 100, "0100.png"),
        ("img_5_step_5.png", 5, "img_5.png"),
        ("sample-1000-0003.png", 1000, "sample-0003.png"),
        ("0801/0801_5000.png", 5000, "0801/0801.png"),
        ("a_3_b_13_c.png", 13, "a_3_b_c.png"),
        ("iter=00002000_x4.tif", 2000, "x4.tif"),
        ("00001000.png", 1000, "00001000.png"),
    ],
)
def test_the_name_without_the_step(name, step, first):
    assert names_without_step(name, step)[0] == first


def test_an_ending_is_decided_for_each_step_and_told_once(tmp_path, truths, caplog):
    endings = {1: ("_x2_SR", "_x2_SR"), 2: ("_x2_SR", "_x2_SR"), 3: ("_x2_SR", "_x4"), 4: ("", "_SR")}
    for step, ends in endings.items():
        for image, end in zip(SHAPES, ends, strict=True):
            restored(truths, tmp_path / "run" / f"step_{step}" / f"{image}{end}.png", 3)
    with caplog.at_level(logging.WARNING, logger="qa_hooks"):
        found = watch_folder(tmp_path / "run", **options(tmp_path, truths))
    assert {step: values["n"] - values["psnr_nonfinite"] for step, values in found.steps.items() if step < 3} == {
        1: 2,
        2: 2,
    }
    assert 3 not in found.steps  # its names end differently: none of them is guessed
    assert math.isfinite(found.steps[4]["psnr"])  # of baby.png
    assert caplog.text.count("names that end in '_x2_SR' are compared with the references without it") == 1
    assert "its reference" not in caplog.text
    assert "it has no reference called bird_4_SR.png" in caplog.text


def test_images_without_a_truth_keep_the_scores_that_need_none(tmp_path, truths, caplog):
    run = tmp_path / "run"
    for step in (1, 2):
        restored(truths, run / f"step_{step}" / "baby.png", 3)
        save_image(torch.zeros(3, 20, 24, dtype=torch.uint8), run / f"step_{step}" / "other.png")
        save_image(torch.zeros(3, 10, 12, dtype=torch.uint8), run / f"step_{step}" / "bird_4.png")  # of low resolution
    with caplog.at_level(logging.WARNING, "qa_hooks.watch"):
        found = watch_folder(run, **options(tmp_path, truths, scorers=["psnr", brightness()]))
    assert found.steps[2]["n"] == 3  # nothing is left out: all can be read
    assert found.steps[2]["psnr"] == pytest.approx(38.6, abs=0.1)
    assert found.steps[2]["psnr_nonfinite"] == 0
    assert caplog.text.count("its reference is 20x24, itself it is 12x10") == 1


def test_settings_belong_to_the_truths(tmp_path, truths):
    restored(truths, tmp_path / "run" / "step_1" / "baby.png", 3)
    watch_folder(tmp_path / "run", **options(tmp_path, truths))
    save_image(torch.zeros(3, 20, 24, dtype=torch.uint8), truths / "baby.png")
    with pytest.raises(ValueError, match=r"other settings \(reference\)"):
        watch_folder(tmp_path / "run", **options(tmp_path, truths))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": None}, "psnr compares with references"),
        ({"scorers": brightness()}, "brightness takes none"),
        ({"scorers": ()}, "there is no scorer"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, truths, changes, said):
    with pytest.raises(ValueError, match=said):
        watch_folder(tmp_path / "run", **options(tmp_path, truths, **changes))


def test_none_of_the_names_is_there(tmp_path, truths, caplog):
    (tmp_path / "run").mkdir()
    save_image(torch.zeros(3, 20, 24, dtype=torch.uint8), tmp_path / "run" / "step_1.png")
    with pytest.raises(ValueError, match=r"no step in .* could be scored"):
        watch_folder(tmp_path / "run", **options(tmp_path, truths))
    assert "psnr: it has no reference called step_1.png" in caplog.text


def test_several_runs_and_the_command(tmp_path, truths, capsys):
    runs = [tmp_path / run / "samples" for run in "ab"]
    for run, error in zip(runs, (9, 1), strict=True):
        restored(truths, run / "baby_10.png", error)
        restored(truths, run / "bird_4_10.png", error)
    found = watch_folders(runs, **options(tmp_path, truths))
    assert found.best["run"] == "b"
    command = ["watch", *map(str, runs), "--scorer", "psnr", "--once", "--log-dir", str(tmp_path / "again")]
    assert main([*command, "--reference", str(truths)]) == 0
    assert "best: b, step 10 with psnr 48.1" in capsys.readouterr().out
    assert main(command) != 0
    assert "name their folder with --reference" in capsys.readouterr().err


def test_a_grid_is_told_of_once(tmp_path, caplog):
    for step in (1, 2, 3):
        (tmp_path / "run" / f"step_{step}").mkdir(parents=True)
        picture = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
        save_image(picture, tmp_path / "run" / f"step_{step}" / f"grid_{step}.png")
    log = {"every": 0.01, "once": True, "log_dir": tmp_path / "log", "say": lambda line: None}
    watch_folder(tmp_path / "run", scorers=brightness(), **log)
    assert sum("grid" in record.message and "cuts" in record.message for record in caplog.records) == 1
