"""A scorer knows where it is. The device "meta" stands for an accelerator."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qa_hooks.scorers import NIQE, PSNR, FunctionScorer, KNNScorer, RankScorer, Scorer
from qa_hooks.scorers.score_source import score_source


class OwnNetwork(Scorer):
    def __init__(self):
        super().__init__()
        self.network = self.keep(nn.Conv2d(3, 1, 1))

    def score(self, images):
        return self.network(images).mean((1, 2, 3))


def function_of(network):
    return FunctionScorer(
        lambda x: network(x).mean((1, 2, 3)), name="mine", higher_is_better=True, differentiable=False
    )


MAKERS = {
    "buffers": NIQE,
    "a kept network": OwnNetwork,
    "features": lambda: KNNScorer({"type": "random", "width": 2}).fit_features(torch.rand(60, 28)),
    "a network to be trained": RankScorer,
    "a module as a function": lambda: FunctionScorer(
        nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten(), nn.Linear(4, 1)), name="net", higher_is_better=True
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_its_tensors_and_networks_say_so(name):
    scorer = MAKERS[name]()
    assert scorer.device == torch.device("cpu")
    scorer.to("meta")
    assert scorer.device == torch.device("meta")


@pytest.mark.parametrize("name", ["buffers", "a kept network", "a module as a function"])
def test_a_calibrated_scorer_is_where_the_one_inside_is(name):
    calibrated = MAKERS[name]().fit_calibration(torch.arange(50.0)).calibrated()
    assert calibrated.device == torch.device("cpu")
    assert calibrated.to("meta").device == torch.device("meta")


def test_without_tensors_it_takes_images_wherever_they_are():
    assert PSNR().device is None
    assert FunctionScorer(torch.mean, name="mean", higher_is_better=True).device is None


def test_a_function_is_where_the_network_is_that_it_calls():
    assert function_of(nn.Conv2d(3, 1, 1).requires_grad_(False)).device == torch.device("cpu")
    assert function_of(nn.Conv2d(3, 1, 1, device="meta").requires_grad_(False)).device == torch.device("meta")


@pytest.mark.parametrize("calibrated", [False, True])
def test_images_are_brought_to_the_scorer(calibrated):
    """A scorer without a buffer of its own was given images that stayed where they were read."""
    seen = []

    class Elsewhere(OwnNetwork):
        def forward(self, images, **inputs):
            seen.append(images.device.type)
            return torch.linspace(0, 1, len(images))

    scorer = Elsewhere()
    if calibrated:
        scorer = scorer.fit_calibration(torch.linspace(-1, 1, 50)).calibrated()
    score_source(scorer.to("meta"), torch.rand(2, 3, 8, 8), progress=False)
    assert seen == ["meta"]
