"""What a monitor's call moves in the user's networks is put back, and what cannot be is noticed."""

from __future__ import annotations

import functools
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks._base.isolation import isolated
from qa_hooks._base.reach import Traces, modules_of


class Counts(nn.Module):
    """Moves a buffer at each call, in eval mode too: in place, by rebinding, or through `.data`."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("count", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        if self.how == "in place":
            self.count += 1
        elif self.how == "rebound":
            self.count = self.count + 1
        elif self.how == "by data":
            self.count.data.add_(1)
        return x * self.weight + self.count


@pytest.mark.parametrize("how", ["in place", "rebound", "by data"])
@pytest.mark.parametrize("inside", [False, True])
def test_buffers_that_move_in_eval_mode_are_put_back(how, inside):
    net = Counts(how).eval()
    called = nn.Sequential(nn.Identity(), net) if inside else net
    called.train(inside)
    net.eval()
    net(torch.ones(3))
    for _ in range(3):  # the first call learns what moves, the others know it
        with isolated():
            first, second = called(torch.ones(3)), called(torch.ones(3))
        assert torch.equal(first, second)  # each call is put back by itself
        assert float(net.count) == 1
    net(torch.ones(3))
    assert float(net.count) == 2


@pytest.mark.parametrize("place", ["own", "parent", "pre-hook"])
def test_weights_that_hooks_change_are_put_back(place):
    inner = nn.Linear(2, 2)
    net = nn.Sequential(inner)

    def shrink(*_):
        inner.weight.data.mul_(0.5)

    if place == "pre-hook":
        inner.register_forward_pre_hook(shrink)
    else:
        (inner if place == "own" else net).register_forward_hook(shrink)
    before = inner.weight.detach().clone()
    for _ in range(3):
        with isolated():
            net(torch.ones(1, 2))
        assert torch.equal(inner.weight, before)


class Normalises(nn.Module):
    """Forced weight normalisation of its own forward, as some diffusion networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, x):
        with torch.no_grad():
            self.weight.copy_(self.weight / self.weight.norm() / 2)
        return x * self.weight


def test_weights_that_a_training_part_changes_are_put_back():
    net = Normalises().train()
    for _ in range(2):
        with isolated():
            net(torch.ones(2))
        assert net.weight.tolist() == [3.0, 4.0]


def test_weights_that_a_part_in_eval_mode_changes_are_said_and_put_back_from_then_on():
    net = Normalises().eval()
    with pytest.warns(UserWarning, match="moved 'weight' of Normalises"), isolated():
        net(torch.ones(2))
    moved = net.weight.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with isolated():
            net(torch.ones(2))
    assert net.weight.tolist() == moved


def test_the_graph_of_the_users_loop_stays_valid():
    net = Counts("in place").eval()
    loss = net(torch.ones(3)).square().sum()
    with isolated():
        net(torch.ones(3))
    loss.backward()
    assert net.weight.grad.tolist() == [4.0, 4.0, 4.0]  # 2 (w + count) of ones


class TestModes:
    def net(self) -> nn.Module:
        class Notes(nn.BatchNorm1d):
            def forward(self, x):
                self.seen = self.training
                return super().forward(x)

        return Notes(2)

    @pytest.mark.parametrize("training", [False, True])
    def test_a_mode_that_the_code_inside_sets_is_respected(self, training):
        net = self.net().train(training)
        state = {name: value.clone() for name, value in net.state_dict().items()}
        with isolated(net):
            net.train()
            net(torch.rand(8, 2))
            assert net.seen
        assert net.training == training
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())

    def test_a_mode_that_the_loop_left_is_not(self):
        net = self.net().train()
        for named in ((), (net,)):
            with isolated(*named):
                net(torch.rand(8, 2))
            assert not net.seen
            assert net.training

    def test_rooms_in_rooms(self):
        net = self.net().train()
        with isolated(net):
            with isolated(net):
                net.train()
                net(torch.rand(8, 2))
                assert net.seen
            assert not net.training
            net(torch.rand(8, 2))
            assert not net.seen
        assert net.training


class Sampler:
    def __init__(self) -> None:
        self.net, self.calls = nn.Linear(1, 1), 0
        self.own = torch.Generator().manual_seed(0)

    def sample(self, n, generator):
        self.calls += 1
        return torch.rand(n, generator=self.own)


def test_generators_and_counters_of_the_users_are_noticed():
    sampler = Sampler()
    for function in (
        sampler.sample,
        lambda n, g: sampler.sample(n, g),
        functools.partial(sampler.sample, generator=None),
    ):
        traces = Traces(function)
        assert traces.moved() == []
        function(2) if isinstance(function, functools.partial) else function(2, None)
        assert traces.moved() == ["calls of Sampler", "own of Sampler"]


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(0), lambda rng: torch.rand(1, generator=rng)),
        (lambda: np.random.default_rng(0), lambda rng: rng.random()),
        (lambda: np.random.RandomState(0), lambda rng: rng.rand()),
        (lambda: random.Random(0), lambda rng: rng.random()),
    ],
)
def test_every_kind_of_generator(make, draw):
    rng = make()

    def sample(n, generator):
        draw(rng)

    traces = Traces(sample)
    sample(1, None)
    assert traces.moved() == ["rng"]


def test_counters_of_networks_are_noticed():
    class Net(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return x

    net = nn.Sequential(Net())
    net[0].calls = 0
    traces = Traces(lambda n, g: net(torch.ones(n)))
    net(torch.ones(1))
    assert traces.moved() == ["calls of Net"]
    assert modules_of(lambda n, g: net(torch.ones(n))) == [net]
