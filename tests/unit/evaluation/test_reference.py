"""A file of real images' statistics is read whole, or refused by name."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from qa_hooks.evaluation.reference import Reference, make_reference
from qa_hooks.features import create_extractor


@pytest.fixture
def whole() -> Reference:
    return Reference.of(torch.randn(12, 4), extractor="e", data="d")


def test_what_was_saved_is_read(whole, tmp_path):
    whole.save(tmp_path / "a.safetensors")
    again = Reference.load(tmp_path / "a.safetensors")
    for name in ("mean", "covariance", "rows", "shapes"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    assert (again.count, again.data, again.extractor) == (12, "d", "e")


@pytest.mark.parametrize("name", ["mean", "covariance", "rows"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_are_refused(whole, tmp_path, name, number):
    broken = getattr(whole, name).clone()
    broken.flatten()[3] = number
    dataclasses.replace(whole, **{name: broken}).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=rf"a\.safetensors does not hold a reference: '{name}' holds numbers that are"):
        Reference.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mean", torch.zeros(5)),
        ("covariance", torch.zeros(4, 5)),
        ("rows", torch.zeros(4)),
        ("rows", torch.zeros(13, 4)),
        ("shapes", torch.zeros(1, 3, dtype=torch.int64)),
    ],
)
def test_parts_that_do_not_fit_are_refused(whole, tmp_path, name, value):
    dataclasses.replace(whole, **{name: value}).save(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a\.safetensors does not hold a reference: 12 images, and a mean, cov"):
        Reference.load(tmp_path / "a.safetensors")


def test_real_images_that_all_look_the_same_have_no_distance():
    images = torch.rand(12, 3, 8, 8)
    blind = create_extractor(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)).requires_grad_(False), name="blind", size=8)
    with torch.no_grad():
        blind.network[1].weight.zero_()
    with pytest.raises(ValueError, match=r"the features of all 12 real images are the same: .* does blind not look"):
        make_reference(blind, images, progress=False)
    with pytest.raises(ValueError, match="are they one image"):
        make_reference(create_extractor("random"), images[:1].expand(12, -1, -1, -1), progress=False)
