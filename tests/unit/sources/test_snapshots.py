"""Which number of a name is the step, and which files are not of one step though they have one number."""

from __future__ import annotations

import warnings

import pytest
import torch

from qa_hooks.folders import watch_folder
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer
from qa_hooks.sources.snapshots import list_snapshots, step_of


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.zeros(1, 4, 4, dtype=torch.uint8), root / name)
    return root


def steps(root, pattern=None):
    paths, found = list_snapshots(root, pattern)
    return {path.relative_to(root).as_posix(): step for path, step in zip(paths, found, strict=True)}


def test_a_pattern_says_where_the_step_is():
    assert step_of("img_001_SRF_4_HR.png", r"img_(\d+)") == 1
    assert step_of("a/b-7/x12.png", r"b-(\d+)/") == 7
    assert step_of("img_001_s2000.png", r"(img|pic)_\d+_s(?P<step>\d+)") == 2000
    assert step_of("b7.png", r"a(\d+)|b(\d+)") == 7
    for pattern in (r"step(\d+)", r"(img)_", r"img(\d+)?"):
        with pytest.raises(ValueError, match="has no step where"):
            step_of("img_001_SRF_4_HR.png", pattern)


def test_a_pattern_that_is_none_is_told_before_a_watch_waits(tmp_path):
    scorer = FunctionScorer(lambda images: images.mean((1, 2, 3)), name="level", higher_is_better=True)
    for pattern, told in (("(", "no regular expression"), (r"img_\d+", "has no group"), ("", "has no group")):
        with pytest.raises(ValueError, match=told):
            step_of("img_001.png", pattern)
        with pytest.raises(ValueError, match=told):  # though nothing is there yet
            watch_folder(tmp_path / "later", scorers=scorer, step=pattern, log_dir=tmp_path / "log")


def test_what_does_not_match_the_pattern_is_left_out_in_silence(tmp_path):
    write(tmp_path, "img_001_x4.png", "img_002_x4.png", "notes_9.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps(tmp_path, r"img_(\d+)") == {"img_001_x4.png": 1, "img_002_x4.png": 2}
    with pytest.raises(ValueError, match="has no step where"):
        steps(tmp_path, r"iter(\d+)")


@pytest.mark.parametrize(
    "names",
    [
        ("img_001_SRF_4_HR.png", "img_002_SRF_4_HR.png"),
        ("0001x4.png", "0002x4.png", "0003x4.png"),
        ("butterfly_10_v2.png", "butterfly_20_v2.png"),
    ],
)
def test_a_number_that_all_names_have_may_be_no_step(tmp_path, names):
    with pytest.raises(ValueError, match=r"is \d+ the step\? All \d files have it.*step='img_"):
        steps(write(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        {"sample-1000.png": 1000, "sample-2000.png": 2000},
        {"step_100/0001.png": 100, "step_100/0002.png": 100},
        {"100/0001.png": 100, "100/0002.png": 100},
        {"fake_001_1000.png": 1000, "fake_002_1000.png": 1000, "fake_001_2000.png": 2000, "fake_002_2000.png": 2000},
        {"epoch005_fake_1.png": 5, "epoch005_fake_2.png": 5},
        {"img_001_SRF_4_HR.png": 4},
        {"baboon_5000.png": 5000, "comic_5000.png": 5000},
        {"cinema_10.png": 10, "lerping_20.png": 20},
    ],
)
def test_names_that_hold_the_step_are_read_in_silence(tmp_path, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert steps(write(tmp_path, *names)) == names


@pytest.mark.parametrize(
    "variant", ["{}-ema.png", "{}-mr.png", "ema/{}.png", "{}_interp.png", "EMA_{}.png", "{}.swa.png", "avg/{}.png"]
)
def test_variants_of_a_step_are_not_of_it(tmp_path, variant):
    plain = ["1000.png", "2000.png"]
    write(tmp_path, *plain, *(variant.format(step) for step in (1000, 2000)))
    with pytest.warns(UserWarning, match=r"2 images of .* left out, whose names say .*step='"):
        assert steps(tmp_path) == {"1000.png": 1000, "2000.png": 2000}


def test_variants_alone_are_taken_and_a_pattern_chooses(tmp_path):
    write(tmp_path, "1000-ema.png", "2000-ema.png")
    assert steps(tmp_path) == {"1000-ema.png": 1000, "2000-ema.png": 2000}
    write(tmp_path, "1000-ema-interp.png")
    with pytest.warns(UserWarning, match=r"1 image of .* left out, whose names say ema interp"):
        assert steps(tmp_path) == {"1000-ema.png": 1000, "2000-ema.png": 2000}
    write(tmp_path, "1000.png")
    assert steps(tmp_path, r"(\d+)-ema\.") == {"1000-ema.png": 1000, "2000-ema.png": 2000}


DOUBTFUL = {
    "20260102.png": "a date",
    "2026-01-02.png": "a date",
    "Screenshot_2026-01-02_at_03.04.05.png": "a date",
    "20260102_030405.png": "a date",
    "20260102030405.png": "a date",
    "1767000000.png": "a date",
    "20260102/0001.png": "a date",
    "a3f9c2d1.png": "a part of a hash",
    "550e8400-e29b-41d4-a716-446655440000.png": "a part of a hash",
    "cat_512x512.png": "a size",
    "cat_1024px.png": "a size",
    "cat_v2.png": "a version, a seed or a scale",
    "seed42.png": "a version, a seed or a scale",
    "cat_x4.png": "a version, a seed or a scale",
}
STEPS = (
    "00001000.png", "fakes000200.png", "baboon_5000.png", "sample-1000.png", "IMG_1234.png", "deadbeef1234.png",
    "sample_2026-01-02_500.png", "0801x4_500.png", "box_500.png", "x_500.png", "model_v2_500.png", "2024_500.png",
    "100/0001.png", "step_20260102.png", "iter_1767000000.png", "epoch_12_512x512.png", "1000-seed-5/step_100.png",
    "20260102_step_500.png", "NAME_000500_00_20260102030405_42.png", "step_500_prompt_0_1024x1024.png",
)  # fmt: skip


@pytest.mark.parametrize(("name", "what"), DOUBTFUL.items())
def test_numbers_that_look_like_no_step_are_told(tmp_path, name, what):
    told = rf"is read as step \d+, but that looks like {what}.*whose first group it is.*step="
    with pytest.warns(UserWarning, match=told):
        steps(write(tmp_path, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(tmp_path, r"(\d+)")  # somebody has said where it is


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.filterwarnings("error")
def test_numbers_that_are_steps_are_not_doubted(tmp_path, name):
    assert len(steps(write(tmp_path, name))) == 1


def test_a_watch_says_its_doubts_once(tmp_path, caplog):
    scorer = FunctionScorer(lambda images: images.mean((1, 2, 3)), name="level", higher_is_better=True)
    options = {"scorers": scorer, "once": True, "every": 0.01}
    write(tmp_path / "dates", "20260101.png", "20260102.png", "20260103.png")
    watched = watch_folder(tmp_path / "dates", log_dir=tmp_path / "a", **options)
    assert len(watched.steps) == 3
    assert caplog.text.count("20260101.png is read as step 20260101, but that looks like a date") == 1
    assert caplog.text.count("looks like") == 1
    write(tmp_path / "one", "cat_1000.png", "dog_1000.png")
    watch_folder(tmp_path / "one", log_dir=tmp_path / "b", **options)
    assert caplog.text.count("all files are of step 1000, such as cat_1000.png: if that is no step") == 1
    caplog.clear()
    write(tmp_path / "said", "step_1000/cat.png", "step_1000/dog.png")
    watch_folder(tmp_path / "said", log_dir=tmp_path / "c", **options)
    watch_folder(tmp_path / "one", log_dir=tmp_path / "d", step=r"_(\d+)", **options)
    assert "all files" not in caplog.text
