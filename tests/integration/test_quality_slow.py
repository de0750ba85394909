"""The dial after a real training: scores follow q, the held-out one too, and q = 0 costs nothing."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from scipy.stats import spearmanr

from benchmarks import dial_drops as world


@pytest.mark.slow
def test_scores_follow_the_dial():
    images = world.stripes(2000, torch.Generator().manual_seed(0))
    unet, distance = world.train_base(images, 900), world.distance_to(images)
    base = torch.tensor([distance(world.sample(unet, seed)) for seed in range(6)])
    found = []
    for seed in range(3):
        adapter = world.train_adapter(unet, images, 400, seed, drop=0.1)
        levels = adapter.levels(9)
        samples = [2 * world.sample_at(adapter, level, seed) - 1 for level in levels]
        for judge, least in ((world.contrast, 0.9), (world.edges, 0.7)):
            assert spearmanr(levels, [float(judge(part).mean()) for part in samples])[0] >= least
        found.append(distance(world.sample_at(adapter, 0.0, seed)))
        adapter.detach()
    middle = torch.tensor(found)  # the average quality is what the base makes, within its spread over seeds
    assert abs(float(middle.mean() - base.mean())) <= 2 * float(base.std())
    assert float(middle.max()) <= float(base.mean() + 3 * base.std())
