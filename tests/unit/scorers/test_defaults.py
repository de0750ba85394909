"""The user's default device and default type change no number. The device "meta" stands for an accelerator."""

from __future__ import annotations

import contextlib

import pytest
import torch

from qa_hooks.features import Moments, create_extractor
from qa_hooks.functional.niqe import FeatureConfig
from qa_hooks.losses import ScoreLoss
from qa_hooks.rewards import check_reward
from qa_hooks.scorers import (
    NIQE,
    BCScorer,
    FunctionScorer,
    GMMScorer,
    KNNScorer,
    MBCScorer,
    NaturalnessModel,
    RankScorer,
    load_scorer,
)

IMAGES = torch.rand(80, 3, 32, 32, generator=torch.Generator().manual_seed(0))
STEPS = torch.arange(40)
QUICK = {"steps": 2, "progress": False}


def saved(scorer, path):
    scorer.save(path)
    return load_scorer(path)(IMAGES[:4])


def loss(_):
    contrast = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True)
    pred = IMAGES[:4].clone().requires_grad_()
    fidelity = (pred - IMAGES[4:8]).square().mean()
    value = ScoreLoss(contrast, ceiling="real", balance=1.0, views=2)(pred, real=IMAGES[8:12], fidelity=fidelity)
    (gradient,) = torch.autograd.grad(value, pred)
    return torch.stack([value.detach(), gradient.norm()])


def moments(_):
    gathered = Moments(9)
    gathered.update(IMAGES.flatten(1)[:, :9])
    return gathered.covariance()


def rewarded(_):
    check_reward(FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True))
    return IMAGES[0]


def natural(_):
    grey = 255 * IMAGES.double().mean(1, keepdim=True).repeat(3, 1, 2, 2)
    return NaturalnessModel.fit(grey.split(10), FeatureConfig.niqe(32), sharpness=0, progress=False).mean


USES = {
    "random": lambda _: create_extractor("random")(IMAGES[:4]),
    "torchvision": lambda _: create_extractor("mobilenet_v3_small", weights=None, size=32)(IMAGES[:4]),
    "gmm": lambda path: saved(GMMScorer("random", 1, pca=4).fit(IMAGES, progress=False), path),
    "knn": lambda path: saved(KNNScorer("random").fit(IMAGES, progress=False), path),
    "rank": lambda path: saved(RankScorer().fit(IMAGES, crop=16, crops=2, warn_below=0, **QUICK), path),
    "mbc": lambda path: saved(MBCScorer(2).fit_snapshots((IMAGES[:40], STEPS), IMAGES, **QUICK), path),
    "bc": lambda path: saved(BCScorer().fit_snapshots((IMAGES[:40], STEPS), IMAGES, flip=True, **QUICK), path),
    "niqe": lambda _: NIQE()(IMAGES[:9].reshape(1, 3, 96, 96)),
    "natural": natural,
    "loss": loss,
    "moments": moments,
    "check": rewarded,
}


@contextlib.contextmanager
def default(name):
    try:
        if name == "device":
            torch.set_default_device("meta")
        else:
            torch.set_default_dtype(torch.float64)
        yield
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("setting", ["device", "dtype"])
@pytest.mark.parametrize("name", USES)
def test_it_changes_nothing(name, setting, tmp_path):
    expected = USES[name](tmp_path / "one.safetensors")
    with default(setting):
        got = USES[name](tmp_path / "two.safetensors")
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
