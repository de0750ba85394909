"""The images of a critic's step, of trainers that keep none; and penalties that a loop makes anew in each step."""

from __future__ import annotations

import copy
import gc
import pickle
import warnings

import pytest
import torch
from torch import nn

from qa_hooks.penalties import DriftPenalty, SeenBatch, SSIMPenalty, attach_penalty

UNIT = (0.0, 1.0)


def networks():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    generator = nn.Sequential(nn.Linear(4, 64), nn.Sigmoid(), nn.Unflatten(1, (1, 8, 8)))
    return critic, generator


def train(critic, generator, optimizer, *, first="real", steps=3, add=None):
    """A WGAN-GP loop that keeps its images to itself; `add(real, fake)` is a penalty in its loss."""
    torch.manual_seed(1)
    weights = []
    for _ in range(steps):
        real = torch.rand(4, 1, 8, 8)
        fake = generator(torch.randn(4, 4)).detach()
        order = (real, fake) if first == "real" else (fake, real)
        scores = {id(x): critic(x).mean() for x in order}
        mixed = (0.3 * real + 0.7 * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
        loss = scores[id(fake)] - scores[id(real)] + (slope.flatten(1).norm(dim=1) - 1).square().mean()
        if add is not None:
            loss = loss + add(critic, real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        generator(torch.randn(9, 4))  # the generator's own step, or somebody's samples
        weights.append(critic[1].weight.detach().clone())
    return weights


@pytest.mark.parametrize("first", ["real", "fake"])
@pytest.mark.parametrize("make", [DriftPenalty, SSIMPenalty])
def test_attached_is_the_same_as_in_the_loss(make, first):
    critic, generator = networks()
    penalty = make(value_range=UNIT, weight=0.3)
    expected = train(critic, generator, torch.optim.SGD(critic.parameters(), lr=0.1), first=first, add=penalty)
    critic, generator = networks()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    penalty = make(value_range=UNIT, weight=0.3)
    with attach_penalty(optimizer, critic, penalty, batch=SeenBatch(optimizer, critic, generator)):
        got = train(critic, generator, optimizer, first=first)
    for one, other in zip(expected, got, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not critic._forward_pre_hooks
    assert not generator._forward_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_a_penalty_of_weight_0_changes_nothing():
    critic, generator = networks()
    expected = train(critic, generator, torch.optim.SGD(critic.parameters(), lr=0.1))
    critic, generator = networks()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    penalty = SSIMPenalty(value_range=UNIT, weight=0.0)
    with attach_penalty(optimizer, critic, penalty, batch=SeenBatch(optimizer, critic, generator)):
        got = train(critic, generator, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_images_that_cannot_be_told_apart_are_refused():
    critic, generator = networks()
    batch = SeenBatch(torch.optim.SGD(critic.parameters(), lr=0.1), critic, generator)
    critic(torch.rand(4, 1, 8, 8))
    critic(generator(torch.randn(4, 4)) * 0.9)  # augmented: no longer the generator's own memory
    with pytest.raises(RuntimeError, match=r"shown 2 batches .* the generator made 0: .* batch=lambda: \(real, fake\)"):
        batch()


def test_it_keeps_little_and_copies_are_free_of_it():
    critic, generator = networks()
    batch = SeenBatch(torch.optim.SGD(critic.parameters(), lr=0.1), critic, generator)
    for _ in range(100):
        critic(generator(torch.randn(2, 4)))
    assert len(batch._made) <= 16
    assert len(batch._shown) <= 16
    assert not any(images.requires_grad for images in batch._made)
    batch.forget()
    for other in (copy.deepcopy(critic), pickle.loads(pickle.dumps(critic))):
        other(torch.rand(2, 1, 8, 8))
    assert batch._shown == [] or len(batch._shown) == 0


def test_bad_arguments():
    critic, generator = networks()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="critic must be the module"):
        SeenBatch(optimizer, lambda x: x, generator)
    with pytest.raises(TypeError, match="SeenBatch needs a torch optimizer"):
        SeenBatch(critic, critic, generator)
    with pytest.raises(TypeError, match="batch must be callable as batch"):
        attach_penalty(optimizer, critic, SSIMPenalty(value_range=UNIT), batch=lambda real, fake: None)


class TestMadeAnew:
    """The seeds are the tests' own: what is noticed is noticed by class and seed."""

    real, fake = torch.rand(2, 4, 1, 8, 8)

    def told(self, run):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
        return [str(w.message) for w in seen if "made anew" in str(w.message)]

    def test_a_loop_that_makes_it_in_each_step_is_told_once(self):
        critic, _ = networks()

        def run():
            for _ in range(9):
                penalty = SSIMPenalty(value_range=UNIT, seed=901)
                penalty(critic, self.real, self.fake)

        (message,) = self.told(run)
        assert "SSIMPenalty has been made anew for each of 4 calls" in message

    def test_one_object_is_not(self):
        critic, _ = networks()
        penalty = SSIMPenalty(value_range=UNIT, seed=902)
        assert self.told(lambda: [penalty(critic, self.real, self.fake) for _ in range(9)]) == []

    def test_nor_are_many_that_live_on_or_a_few_runs(self):
        critic, _ = networks()
        many = [SSIMPenalty(value_range=UNIT, seed=903) for _ in range(9)]
        assert self.told(lambda: [penalty(critic, self.real, self.fake) for penalty in many]) == []

        def runs():
            for _ in range(9):
                penalty = SSIMPenalty(value_range=UNIT, seed=904)
                for _ in range(3):
                    penalty(critic, self.real, self.fake)
                del penalty
                gc.collect()

        assert self.told(runs) == []


@pytest.mark.parametrize("which", ["real", "fake"])
def test_images_that_are_changed_in_place_afterwards_are_refused(which):
    critic, generator = networks()
    batch = SeenBatch(torch.optim.SGD(critic.parameters(), lr=0.1), critic, generator)
    real, fake = torch.rand(4, 1, 8, 8), generator(torch.randn(4, 4)).detach()
    fake.mul_(0.5)  # before the critic sees it: that is what it is shown
    critic(real), critic(fake)
    assert torch.equal(batch()[1], fake)
    (real if which == "real" else fake).mul_(0.5)
    with pytest.raises(RuntimeError, match=f"the {which} images were changed in place after the critic had seen them"):
        batch()
    with torch.inference_mode():
        critic(torch.rand(4, 1, 8, 8))  # is noted without an error
