"""Two measures that differ do not share a name, so that they can stand beside each other."""

from __future__ import annotations

import pytest
import torch

from qa_hooks import NIQE, create_scorer
from qa_hooks.folders.scoring.score_folder import name_scorers
from qa_hooks.scorers.niqe.scorer import NaturalnessModel


@pytest.mark.parametrize("spec", ["psnr", "ssim", "ms_ssim", "niqe_bsd100"])
def test_the_plain_measure_keeps_the_plain_name(spec):
    assert create_scorer(spec).name == spec
    assert create_scorer(create_scorer(spec)).name == spec


@pytest.mark.parametrize("kind", ["psnr", "ssim", "ms_ssim"])
@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({"channel": "rgb", "crop_border": 0}, ""),
        ({"channel": "y"}, "_y"),
        ({"crop_border": 4}, "_crop4"),
        ({"channel": "y", "crop_border": 2}, "_y_crop2"),
    ],
)
def test_options_that_change_the_number_change_the_name(kind, options, ending, tmp_path):
    scorer = create_scorer({"type": kind, **options})
    assert scorer.name == kind + ending
    scorer.save(tmp_path / "scorer.safetensors")
    assert create_scorer(tmp_path / "scorer.safetensors").name == kind + ending
    copied = create_scorer(scorer.name, (-1, 1))  # from a table, into code or a command
    assert (copied.fingerprint, copied.value_range) == (scorer.fingerprint, (-1, 1))


@pytest.mark.parametrize("name", ["psnr_y_crop0", "psnr_crop", "psnr_crop02", "psnr_crop2_y", "psnr_", "y_crop2"])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="unknown scorer"):
        create_scorer(name)


def test_they_stand_in_one_table():
    border = {"type": "psnr", "channel": "y", "crop_border": 4}
    assert list(name_scorers(["psnr", border, {**border, "crop_border": 2}], None)) == [
        "psnr",
        "psnr_y_crop4",
        "psnr_y_crop2",
    ]
    with pytest.raises(ValueError, match="two scorers are called 'psnr_y_crop4'"):
        name_scorers([border, dict(border)], None)


def test_a_luma_that_is_chosen_is_in_the_name():
    model = NIQE().model
    free = NaturalnessModel(model.mean, model.covariance, model.config, 7, {"name": "coffee"})
    assert {NIQE(free, color=color).name for color in ("gray", "y_ycbcr", "y_yiq")} == {
        "niqe_coffee",
        "niqe_coffee_y_ycbcr",
        "niqe_coffee_y_yiq",
    }
    bound = NaturalnessModel(model.mean, model.covariance, model.config, 7, {"name": "tea", "color": "y_yiq"})
    assert NIQE(bound, color="y_yiq").name == "niqe_tea"  # there is no other


def test_options_of_another_library_are_in_the_name():
    specs = [{}, {"data_range": 2.0}, {"convert_to_greyscale": True}, {"convert_to_greyscale": False}]
    assert [create_scorer({"type": "piq:psnr", **options}).name for options in specs] == [
        "piq_psnr",
        "piq_psnr_data_range_2_0",
        "piq_psnr_convert_to_greyscale",
        "piq_psnr_no_convert_to_greyscale",
    ]


@pytest.mark.parametrize("spec", ["psnr", "ssim", "ms_ssim", "piq:psnr", "torchmetrics:ssim", "niqe_bsd100"])
@pytest.mark.parametrize("channels", [2, 4, 16])
def test_images_have_one_or_three_channels(spec, channels):
    scorer, images = create_scorer(spec), torch.rand(1, channels, 192, 192)
    inputs = {"reference": images} if "reference" in scorer.inputs else {}
    with pytest.raises(ValueError, match=f"1 or 3 channels, got {channels}"):
        scorer(images, **inputs)


@pytest.mark.parametrize("spec", ["psnr", "ssim", "ms_ssim", "piq:psnr", "torchmetrics:ssim"])
def test_the_reference_may_stand_second(spec):
    scorer, (images, reference) = create_scorer(spec), torch.rand(2, 2, 3, 192, 192)
    expected = scorer(images, reference=reference)
    assert torch.equal(scorer(images, reference), expected)
    assert torch.equal(scorer.goodness(images, reference), expected)
    scorer.fit_calibration(torch.linspace(0, 50, 20))
    assert torch.equal(scorer.calibrated()(images, reference), scorer.calibrated()(images, reference=reference))


def test_what_takes_no_reference_says_so():
    images = torch.rand(1, 3, 96, 96)
    with pytest.raises(ValueError, match="niqe_bsd100 takes no reference; its inputs are the images alone"):
        create_scorer("niqe_bsd100")(images, images)
    with pytest.raises(ValueError, match="psnr needs reference="):
        create_scorer("psnr")(images)
