"""Instance selection: the dense part of a training set, and what that costs."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from qa_hooks.features import create_extractor
from qa_hooks.scorers import FunctionScorer
from qa_hooks.scorers.giqa.gmm import GMMScorer
from qa_hooks.scorers.giqa.knn import KNNScorer
from qa_hooks.weighting.instances import select_instances
from toy_scorers import brightness

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def extractor():
    return create_extractor("random")


def test_outliers_are_dropped_and_recall_is_told(digits, extractor):
    """Noisy digits among clean ones; the paper's scorer, one Gaussian, fitted on the whole set."""
    noisy = (digits[400:440] + torch.randn(40, 1, 16, 16)).clamp(-1, 1)
    images = torch.cat([digits[:400], noisy])
    dataset = TensorDataset(images, torch.arange(440))
    scorer = GMMScorer(extractor, components=1, pca=20, value_range=(-1, 1)).fit(dataset, **QUIET)
    subset = select_instances(dataset, scorer, keep=0.5, **QUIET)
    assert isinstance(subset, Subset)
    assert len(subset) == 220
    assert sum(index >= 400 for index in subset.indices) <= 6  # of 40; chance leaves 20
    assert int(subset[3][1]) == subset.indices[3]
    assert torch.allclose(subset.report.scores, scorer(images), rtol=1e-4)
    assert sorted(subset.report.scores.argsort(descending=True)[:220].tolist()) == subset.indices
    assert subset.report.after.recall < subset.report.before.recall  # dense images leave the rim uncovered


class Augmented(Dataset):
    """Every kind of random transform, and a mode that a loader's worker would look at."""

    def __init__(self) -> None:
        self.offsets = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        self.offsets.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return {"image": torch.full((3, 8, 8), sum(self.offsets[-1]) / 3), "label": index}


def test_random_transforms_are_seeded_and_the_callers_random_state_stays():
    scorer = brightness()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    datasets = [Augmented(), Augmented(), Augmented()]
    chosen = []
    for dataset, seed in zip(datasets, (1, 1, 2), strict=True):
        chosen.append(select_instances(dataset, scorer, seed=seed, **QUIET).indices)
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
        random.random(), np.random.rand(), torch.rand(1)  # what is chosen does not depend on where the user's state is
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    assert datasets[0].offsets == datasets[1].offsets != datasets[2].offsets
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(chosen[0]) == 6


def test_images_of_its_own_bank_are_told_apart_by_the_others(digits, extractor):
    scorer = KNNScorer(extractor, value_range=(-1, 1)).fit(digits[:100], calibration=None, **QUIET)
    report = select_instances(TensorDataset(digits[:100]), scorer, **QUIET).report
    torch.testing.assert_close(report.scores.sort().values, scorer.own_scores().sort().values, rtol=1e-3, atol=0)


def test_a_score_that_many_share_is_warned_of(digits):
    scorer = FunctionScorer(
        lambda x: x.mean((1, 2, 3)).clamp(max=0.9), name="full", higher_is_better=True, value_range=(-1, 1)
    )
    bright = torch.cat([digits[:20], torch.ones_like(digits[:80])])
    with pytest.warns(UserWarning, match="80 of 100 images have the same best score"):
        select_instances(TensorDataset(bright), scorer, extractor=create_extractor("random"), **QUIET)
