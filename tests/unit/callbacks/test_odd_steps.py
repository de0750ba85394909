"""Optimizers, gradients and images of kinds that not every run has: the run goes on, and what is said is true."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import Hooks, NaNGuard, SampleGrid, TrainingStopped
from qa_hooks.writers import MemoryWriter


@pytest.mark.parametrize("action", ["warn", "skip", "stop"])
def test_sparse_gradients_are_looked_at(action):
    words = nn.Embedding(10, 4, sparse=True)
    optimizer = torch.optim.SparseAdam(words.parameters(), lr=0.1)
    hooks = Hooks([guard := NaNGuard(action, every=1)], writer=MemoryWriter()).attach(optimizer)
    words(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert (guard.found, hooks.step_count) == (0, 1)
    words.weight.grad._values()[0] = float("nan")
    if action == "stop":
        with pytest.raises(TrainingStopped, match="1 of 1 parameters"):
            optimizer.step()
        return
    with pytest.warns(UserWarning, match="1 of 1 parameters are not finite"):
        optimizer.step()
    assert bool(words.weight.isnan().any()) == (action == "warn")


def test_gradients_that_cannot_be_looked_at_do_not_end_the_run(monkeypatch):
    def fails(_gradients):
        raise NotImplementedError("no isfinite for this kind")

    monkeypatch.setattr("qa_hooks.callbacks.nan_guard._count_non_finite", fails)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    Hooks([NaNGuard("skip")], writer=MemoryWriter()).attach(optimizer)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.warns(UserWarning, match=r"cannot look at these gradients, .* no isfinite for this kind"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # said once


@pytest.mark.parametrize(
    "images",
    [torch.zeros(0, 3, 8, 8), torch.arange(4), torch.tensor(1.0), torch.rand(3, 8), torch.rand(2, 3, 4, 8, 8)],
    ids=lambda images: str(tuple(images.shape)),
)
def test_tensors_that_are_no_images_are_no_fault(images):
    hooks = Hooks([guard := NaNGuard(every=1)], writer=MemoryWriter())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hooks.step(given=images)
    assert guard.found == 0
    if images.is_floating_point() and images.numel():
        with pytest.warns(UserWarning, match="'given' is not finite"):
            hooks.step(given=images * float("nan"))


def test_an_optimizer_step_that_is_compiled():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    seen = []

    def sample(n, generator):
        seen.append(n)
        return torch.rand(n, 1, 8, 8, generator=generator)

    step = torch.compile(optimizer.step, backend="eager")
    hooks = Hooks([SampleGrid(sample, every=1, n=4), NaNGuard("skip")], writer=MemoryWriter()).attach(optimizer)
    for _ in range(3):
        weight.grad = torch.ones(3)
        step()
    assert hooks.step_count == 3
    assert len(seen) >= 3
    torch.testing.assert_close(weight.data, torch.full((3,), 0.7))


def test_what_is_captured_and_then_changed_in_place_is_told_once():
    net = nn.Sequential(nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4)))
    hooks = Hooks([], writer=MemoryWriter())
    hooks.capture("fake", net)
    with torch.no_grad():
        net(torch.randn(2, 4)).add_(1).div_(2)
    with pytest.warns(UserWarning, match=r"capture\('fake'\): the loop changes .* in place"):
        hooks.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            net(torch.randn(2, 4)).add_(1).div_(2)
        hooks.step()  # said once
        quiet = Hooks([], writer=MemoryWriter())
        quiet.capture("fake", net)
        net(torch.randn(2, 4))
        quiet.step()
        with torch.inference_mode():  # nobody counts the changes of these
            net(torch.randn(2, 4))
            quiet.step()


def test_a_network_that_has_never_been_called_keeps_its_first_draw():
    """Lazy layers draw their weights at the first call, which is not to be a monitor's."""

    def weights(check):
        torch.manual_seed(0)
        net = nn.Sequential(nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.LazyLinear(48), nn.Unflatten(1, (3, 4, 4)))
        hooks = Hooks([SampleGrid(lambda n, g: net(torch.randn(n, 8, generator=g)), n=4)], writer=MemoryWriter())
        if check:
            assert "'0.weight' of Sequential is not initialised yet" in hooks.check()
        net(torch.randn(4, 8))
        return list(net.parameters())

    for plain, checked in zip(weights(False), weights(True), strict=True):
        assert torch.equal(plain, checked)
