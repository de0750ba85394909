"""Samples in numbered blocks: the same noise each time, whatever the sampler draws from and whoever asks."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks._base.random import mixed_key
from qa_hooks.sources.samples import (
    SampleSet,
    check_sample,
    in_range,
    numbered_blocks,
    sample_block,
    sample_blocks,
    sample_runs,
)


def drawn(n, generator):
    return torch.rand(n, 1, 4, 4, generator=generator)


def test_blocks_cover_all_images_once_for_any_number_of_processes():
    whole = torch.cat([images for _, images in sample_blocks(SampleSet(drawn, 11, 4, 3))])
    assert whole.shape == (11, 1, 4, 4)
    for world in (2, 3):
        parts: dict[int, torch.Tensor] = {}
        for rank in range(world):
            parts |= dict(sample_blocks(SampleSet(drawn, 11, 4, 3, rank, world)))
        assert torch.equal(torch.cat([parts[start] for start in sorted(parts)]), whole)
    assert list(numbered_blocks(3, 4)) == [(0, 0, 3)]


def test_a_block_is_drawn_from_its_own_key():
    key = mixed_key(7, 2)
    expected = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(key))
    assert torch.equal(sample_block(drawn, 5, 7, 2), expected)


@pytest.mark.parametrize(
    "sample",
    [
        lambda n, generator: torch.rand(n, 1, 4, 4),
        lambda n, generator: torch.from_numpy(np.random.rand(n, 1, 4, 4)),
        lambda n, generator: torch.tensor([[[[random.random()]]] for _ in range(n)]),
    ],
    ids=["torch", "numpy", "random"],
)
def test_a_sampler_that_ignores_its_generator_gives_the_same_images_and_moves_nothing(sample):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = sample_block(sample, 3, 0, 0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()
    assert random.getstate() == states[2]
    torch.rand(1), np.random.rand(), random.random()  # the loop goes on in between
    assert torch.equal(sample_block(sample, 3, 0, 0), first)
    assert not torch.equal(sample_block(sample, 3, 0, 1), first)
    assert not torch.equal(sample_block(sample, 3, 1, 0), first)


def test_each_block_starts_in_eval_mode():
    net, modes = nn.Dropout(), []

    def sample(n, generator):
        modes.append(net.training)
        images = net(drawn(n, generator))
        net.train()
        return images

    net.train()
    for _ in sample_blocks(SampleSet(sample, 4, 2, 0)):
        pass
    assert modes == [False, False]
    assert net.training


@pytest.mark.parametrize(
    "sample", [lambda n: None, lambda: None, lambda n, generator, extra: None, nn.Linear(2, 2), 3, "f"]
)
def test_a_wrong_signature_is_refused_before_anything_runs(sample):
    with pytest.raises(TypeError, match=r"sample must be callable as sample\(n, generator\)"):
        check_sample(sample)


def test_signatures_that_do():
    class Callable:
        def __call__(self, n, generator=None):
            return drawn(n, generator)

    for sample in (drawn, Callable(), lambda *args: None, lambda n, generator, guidance=2.0: None, torch.add):
        check_sample(sample)


def test_a_wrong_result_is_refused():
    with pytest.raises(ValueError, match=r"sample\(2, generator\) must give \(2, 1 or 3, H, W\), got \(3, 1, 4, 4\)"):
        sample_block(lambda n, generator: drawn(3, generator), 2, 0, 0)


def test_images_for_a_scorer():
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    assert in_range(pixels, (0.0, 1.0)) is pixels
    values = in_range(torch.tensor([-3.0, 0.5, 3.0], dtype=torch.float64), (-1.0, 1.0))
    assert values.dtype == torch.float32
    assert values.tolist() == [-1.0, 0.5, 1.0]


def test_a_default_device_changes_nothing():
    expected = sample_block(lambda n, g: torch.rand(n, 1, 2, 2, generator=g, device="cpu"), 2, 0, 0)
    torch.set_default_device("meta")
    try:
        got = sample_block(lambda n, g: torch.rand(n, 1, 2, 2, generator=g, device="cpu"), 2, 0, 0)
    finally:
        torch.set_default_device(None)
    assert torch.equal(got, expected)


class Diffusion:
    """As denoising-diffusion-pytorch's: the second argument is a flag."""

    def sample(self, batch_size=16, return_all_timesteps=False):
        return torch.zeros(batch_size, *([5] if return_all_timesteps else []), 3, 8, 8)


def test_a_generator_that_went_to_another_parameter_is_told():
    with pytest.raises(ValueError, match=r"got \(4, 5, 3, 8, 8\); the generator went to its parameter 'return_all"):
        sample_runs(Diffusion().sample, 4, 0, 0)
    (images,) = sample_runs(lambda n, generator: Diffusion().sample(n), 4, 0, 0)
    assert images.shape == (4, 3, 8, 8)

    def stepwise(n, steps):
        return torch.stack([torch.zeros(n) for _ in range(steps)])

    with pytest.raises(ValueError, match=r"TypeError: .*the generator went to its parameter 'steps': write"):
        sample_runs(stepwise, 4, 0, 0)


@pytest.mark.parametrize("name", ["generator", "rng", "g", "seed", "gen", "random_state", "_", "r", "torch_generator"])
def test_a_parameter_that_may_take_a_generator_is_not_blamed(name):
    scope: dict = {}
    exec(f"def sample(n, {name}): return torch.zeros(n, 2, 8, 8)", {"torch": torch}, scope)
    with pytest.raises(ValueError, match="must give") as told:
        sample_runs(scope["sample"], 4, 0, 0)
    assert "went to" not in str(told.value)
    for other in (lambda n, *rest: torch.zeros(n, 2, 8, 8), functools.partial(lambda *a: torch.zeros(4, 2, 8, 8))):
        with pytest.raises(ValueError, match="must give") as told:
            sample_runs(other, 4, 0, 0)
        assert "went to" not in str(told.value)


@pytest.mark.parametrize("n", [8, 6])
def test_copies_are_told_once(n):
    """Fixed noise for n of more than one call; a dead network's samples are no copies of that kind."""
    fixed = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    sample = lambda count, rng: fixed[:count]  # noqa: E731
    with pytest.warns(UserWarning, match=f"of n={n} all after the first 4 are copies"):
        blocks = list(sample_blocks(SampleSet(sample, n=n, per_call=4, seed=0)))
    assert sum(len(images) for _, images in blocks) == n  # a generator that collapses is measured, and a guard rings
    for quiet in (SampleSet(sample, n, 4, 1), SampleSet(lambda count, rng: torch.zeros(count, 1, 8, 8), n, 4, 0)):
        assert len(list(sample_blocks(quiet))) == 2
