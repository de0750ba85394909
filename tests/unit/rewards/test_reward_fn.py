"""A scorer in the form that reinforcement-learning trainers call."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks.rewards.reward_fn import as_reward_fn
from qa_hooks.scorers import NIQE, PSNR, FunctionScorer
from toy_scorers import brightness

bright = brightness("bright")
dark = brightness("dark", higher_is_better=False)


def test_tensors_arrays_and_pil_images_score_alike(photographs):
    image = pytest.importorskip("PIL.Image")
    bytes_ = (photographs * 255).round().to(torch.uint8)
    array = bytes_.permute(0, 2, 3, 1).numpy()
    expected = (bytes_.double() / 255).mean((1, 2, 3)).float()
    reward = as_reward_fn(bright)
    for images in (
        bytes_, bytes_.float() / 255, array, array.astype(np.float32) / 255, list(array),
        [image.fromarray(one) for one in array], list(bytes_),
    ):  # fmt: skip
        scores, info = reward(images, ["a photograph"] * 4, [{}] * 4)
        assert torch.allclose(scores, expected, atol=1e-5)
        assert scores.dtype == torch.float32
        assert info == {}
    half, _ = reward(photographs.bfloat16(), None, None)
    assert torch.allclose(half, expected, atol=1e-3)


def test_higher_is_better_whatever_the_scorer_says(photographs):
    assert torch.equal(as_reward_fn(dark)(photographs)[0], -as_reward_fn(bright)(photographs)[0])
    sharp, _ = as_reward_fn(NIQE())(photographs)
    noisy, _ = as_reward_fn(NIQE())((photographs + 0.3 * torch.randn_like(photographs)).clamp(0, 1))
    assert (sharp > noisy).all()


def test_prompts_go_with_their_images():
    seen = []

    def score(images, prompt):
        seen.append(prompt)
        return images.mean((1, 2, 3)) + torch.tensor([float(len(text)) for text in prompt])

    scorer = FunctionScorer(score, name="agreement", higher_is_better=True, inputs=["prompt"], differentiable=False)
    prompts = ("a", "bb", "ccc", "dddd", "eeeee")
    scores, _ = as_reward_fn(scorer, batch_size=2)(torch.zeros(5, 3, 8, 8), prompts, ())
    assert scores.tolist() == [1, 2, 3, 4, 5]
    assert seen == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    for wrong in (None, "abcde", ["a"]):
        with pytest.raises(ValueError, match="needs 5 prompts"):
            as_reward_fn(scorer)(torch.zeros(5, 3, 8, 8), wrong)


def test_no_gradient_and_nothing_of_the_run_moves():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()

    def score(images):
        random.random()
        return net(images + torch.randn_like(images)).mean((1, 2, 3))

    reward = as_reward_fn(FunctionScorer(score, name="drawing", higher_is_better=True, differentiable=False))
    images, state, drawn = torch.rand(4, 3, 8, 8, requires_grad=True), torch.get_rng_state(), random.getstate()
    mean = net[1].running_mean.clone()
    scores, _ = reward(images)
    assert not scores.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert drawn == random.getstate()
    assert torch.equal(mean, net[1].running_mean)
    assert net.training
    assert torch.is_grad_enabled()


def test_in_a_thread_of_the_trainers_the_global_random_state_is_not_rewound():
    """DDPO scores in threads while the main thread draws: putting a state back would repeat the main thread's noise."""
    import threading

    inside, go = threading.Event(), threading.Event()

    def score(images):
        inside.set()
        assert go.wait()
        return images.mean((1, 2, 3))

    reward = as_reward_fn(FunctionScorer(score, name="slow", higher_is_better=True, differentiable=False))
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(reward, images)
        assert inside.wait()
        first = torch.rand(4)
        assert (images * 2).requires_grad
        go.set()
        scores, _ = future.result()
    assert not torch.equal(first, torch.rand(4))
    assert not scores.requires_grad


def test_batches_do_not_matter(photographs):
    many = photographs.repeat(3, 1, 1, 1)
    whole = as_reward_fn(bright)(many)[0]
    assert torch.allclose(as_reward_fn(bright, batch_size=5)(many)[0], whole, atol=1e-6)


def test_bad_input_is_refused_with_a_reason():
    with pytest.raises(TypeError, match="FunctionScorer"):
        as_reward_fn(lambda images: images)
    with pytest.raises(ValueError, match="compares with a reference"):
        as_reward_fn(PSNR())
    with pytest.raises(ValueError, match="batch_size"):
        as_reward_fn(bright, batch_size=0)
    with pytest.raises(ValueError, match="one size"):
        as_reward_fn(bright)([torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)])
    with pytest.raises(ValueError, match="empty"):
        as_reward_fn(bright)([])
    odd = FunctionScorer(lambda x: x.mean((1, 2, 3)).log(), name="log", higher_is_better=True)
    with pytest.raises(ValueError, match=r"the reward log of image 1 is -inf"):
        as_reward_fn(odd)(torch.stack([torch.ones(3, 8, 8), torch.zeros(3, 8, 8)]))
