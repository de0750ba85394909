"""A scorer that another process makes again is the same one, or is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from qa_hooks.features import create_extractor
from qa_hooks.scorers import FunctionScorer, GMMScorer, KNNScorer, Scorer, create_scorer
from qa_hooks.scorers.carrying import packed_scorer, unpacked_scorer

IMAGES = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EXTRACTOR = {"type": "random", "width": 4}


def calibrated() -> Scorer:
    scorer = GMMScorer(EXTRACTOR, 1, pca=2, value_range=(-1, 1)).fit(IMAGES * 2 - 1, progress=False)
    return scorer.fit_calibration(scorer.goodness(IMAGES * 2 - 1)).calibrated()


SCORERS = {
    "psnr": lambda: create_scorer({"type": "psnr", "channel": "y", "crop_border": 2}),
    "niqe": lambda: create_scorer("niqe_bsd100"),
    "gmm": lambda: GMMScorer(EXTRACTOR, 1, pca=2).fit(IMAGES, progress=False),
    "knn": lambda: KNNScorer(EXTRACTOR, k=3).fit(IMAGES, progress=False),
    "calibrated": calibrated,
}


@pytest.mark.parametrize("name", SCORERS)
def test_it_gives_the_same_scores(name):
    scorer = SCORERS[name]()
    facts, tensors = packed_scorer(scorer)
    again = unpacked_scorer(json.loads(json.dumps(facts)), tensors)
    images = torch.rand(3, 3, 96, 96) if name == "niqe" else IMAGES[:3]
    images = images * 2 - 1 if scorer.value_range == (-1, 1) else images
    inputs = {"reference": images.flip(0)} if scorer.inputs else {}
    assert torch.equal(again(images, **inputs), scorer(images, **inputs))
    assert (again.name, again.value_range, again.fingerprint) == (scorer.name, scorer.value_range, scorer.fingerprint)


def test_features_that_are_there_already_are_used():
    scorer = SCORERS["gmm"]()
    here, other = create_extractor(EXTRACTOR), create_extractor("random")
    packed = packed_scorer(scorer)
    assert unpacked_scorer(*packed, extractor=here).extractor is here
    assert unpacked_scorer(*packed, extractor=other).extractor.fingerprint == here.fingerprint


def test_libraries_are_asked_again():
    pytest.importorskip("piq")
    scorer = create_scorer("piq:gmsd")
    images = torch.rand(2, 3, 64, 64)
    again = unpacked_scorer(*packed_scorer(scorer))
    assert torch.equal(again(images, reference=images.flip(0)), scorer(images, reference=images.flip(0)))


class PSNR(Scorer):
    """A scorer of somebody's own that has a name of ours."""

    def score(self, images):
        return images.mean((1, 2, 3))


def test_what_only_the_users_code_can_make_is_refused():
    own = create_extractor(nn.Sequential(nn.Conv2d(3, 4, 3)), name="mine")
    refused = {
        "FunctionScorer is code of your own": FunctionScorer(torch.sum, name="sum", higher_is_better=True),
        "PSNR is code of your own": PSNR(),
        "features are of mine, a network of your own": GMMScorer(own, 1, pca=2).fit(IMAGES, progress=False),
    }
    for message, scorer in refused.items():
        with pytest.raises(ValueError, match=f"cannot be made again in another process.*{message}.*leave where= out"):
            packed_scorer(scorer)


def test_another_scorer_there_is_noticed():
    facts, tensors = packed_scorer(SCORERS["gmm"]())
    facts["fingerprint"] = "0" * 16
    with pytest.raises(ValueError, match="giqa_sgm is another scorer in the other process"):
        unpacked_scorer(facts, tensors)
