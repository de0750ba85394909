from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

from qa_hooks._base.frozen import KeepsFrozen
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import OwnRandom
from qa_hooks._base.reach import modules_of


def state() -> tuple:
    return (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.is_grad_enabled())


def untidy(net: nn.Module) -> None:
    random.random()
    np.random.rand()
    net.train()
    net(torch.randn(4, 3, 8, 8))
    torch.set_grad_enabled(True)
    for _ in torch.utils.data.DataLoader(range(10), shuffle=True):
        break


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))


def test_nothing_is_left_behind(net):
    net[1].eval()  # a mixed state must come back as it was
    flags, buffers, before = [m.training for m in net.modules()], [b.clone() for b in net.buffers()], state()
    with isolated(net):
        untidy(net)
    assert state() == before
    assert [m.training for m in net.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), buffers, strict=True))


def test_nothing_is_left_behind_after_an_error(net):
    flags, before = [m.training for m in net.modules()], state()

    def fail() -> None:
        with isolated(net):
            untidy(net)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert state() == before
    assert [m.training for m in net.modules()] == flags


def test_inside_there_is_no_gradient_no_autocast_and_eval_mode(net):
    with torch.autocast("cpu", dtype=torch.bfloat16), isolated(net):
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")
        assert not any(m.training for m in net.modules())
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_a_replaced_buffer_comes_back(net):
    mean = net[1].running_mean
    with isolated(net):
        net[1].running_mean = torch.full_like(mean, 7.0)
    assert net[1].running_mean is mean


class Trainer:
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def sample(self, n: int) -> torch.Tensor:
        return self.model(torch.zeros(n, 2))


class Owner:
    def __init__(self, model: nn.Module) -> None:
        self.ema = model


net_of_the_module = nn.Linear(2, 2)


def test_modules_are_found_where_python_shows_them():
    model = nn.Linear(2, 2)
    owner = Owner(model)
    assert modules_of(model) == [model]
    assert modules_of(model.forward) == [model]
    assert modules_of(lambda n: model(n)) == [model]
    assert modules_of(lambda n: owner.ema(n)) == [model]
    assert modules_of(Trainer(model).sample) == [model]
    assert modules_of(functools.partial(lambda m, n: m(n), model)) == [model]
    assert modules_of(lambda n: net_of_the_module(n)) == [net_of_the_module]
    assert modules_of(len) == []


def test_own_random_is_reproducible_and_leaves_the_global_state():
    before = torch.get_rng_state()
    one, two = OwnRandom(3), OwnRandom(3)
    draws = [torch.rand(4, generator=one.generator()) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    two.draws = 2  # the whole state
    assert torch.equal(torch.rand(4, generator=two.generator()), draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(torch.rand(4, generator=OwnRandom(4).generator()), draws[0])


def test_frozen_networks_follow_the_device_and_nothing_else():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    outer = KeepsFrozen()
    outer.keep(inner)
    parent = nn.Sequential(outer)
    parent.train().half()
    assert not list(parent.parameters())
    assert not parent.state_dict()
    assert not inner.training
    assert inner[0].weight.dtype == torch.float32
    assert not inner[0].weight.requires_grad
    parent.to("meta")
    assert inner[0].weight.device.type == "meta"


class TestHoweverTheNetworkIsReached:
    """A monitor must protect the user's network, whatever way leads to it."""

    def samplers(self, net):
        helper = lambda n: net(torch.randn(n, 3))  # noqa: E731
        nets, trainer = {"G": net}, Owner(Owner(net))

        @torch.no_grad()
        def decorated(n):
            return net(torch.randn(n, 3))

        return {
            "decorated": decorated,
            "helper": lambda n: helper(n),
            "container": lambda n: nets["G"](torch.randn(n, 3)),
            "attributes": lambda n: trainer.ema.ema(torch.randn(n, 3)),
            "default": lambda n, g=net: g(torch.randn(n, 3)),
        }

    @pytest.mark.parametrize("way", ["decorated", "helper", "container", "attributes", "default"])
    def test_it_is_left_as_it_was(self, way):
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        before = [b.clone() for b in net.buffers()]
        with isolated():
            noise = torch.get_rng_state()
            first = self.samplers(net)[way](8)
            torch.set_rng_state(noise)
            second = self.samplers(net)[way](8)
        assert torch.equal(first, second)  # eval mode: no dropout, no batch statistics
        assert net[1].training
        assert first.shape == (8, 4)
        assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))

    def test_the_users_thread_is_not_ours(self):
        import threading

        net, seen = nn.Dropout(0.5), []
        with isolated():
            thread = threading.Thread(target=lambda: seen.append((net(torch.ones(1000)) == 0).any().item()))
            thread.start()
            thread.join()
        assert seen == [True]  # another thread trains on while a monitor runs


def test_a_variable_that_is_assigned_later_is_no_error():
    function = lambda: later(1)  # noqa: E731
    assert modules_of(function) == []
    later = nn.Identity()
    assert modules_of(function) == [later]


class TestSamplersThatKnowWhatTheyDo:
    """Code that itself switches modes or swaps weights, and puts them back, works as it would without us."""

    @pytest.fixture
    def net(self):
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    @pytest.mark.parametrize("nested", [False, True])
    def test_modes(self, net, nested):
        with isolated(), isolated(*[net] * nested):
            before = net.training
            net.eval()
            net(torch.randn(8, 3))
            net.train(before)
        assert net.training
        assert net[1].training
        with isolated():
            net.eval()
            net(torch.randn(8, 3))
            net.train()
        assert net[1].training

    def test_weights(self, net):
        ema = {name: value + 99 for name, value in net.state_dict().items()}
        own = {name: value.clone() for name, value in net.state_dict().items()}
        with isolated():
            net.load_state_dict(ema)
            net(torch.randn(8, 3))
            net.load_state_dict(own)
        assert all(torch.equal(value, own[name]) for name, value in net.state_dict().items())

    def test_precision(self, net):
        with isolated():
            net.double()(torch.randn(8, 3).double())
            net.float()
        assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}
        net(torch.randn(8, 3)).sum().backward()


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="torch before 2.6: only when named")
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_networks(warm):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    compiled = torch.compile(net, backend="aot_eager")
    if warm:
        compiled(torch.randn(8, 3))
    before = [b.clone() for b in net.buffers()]
    with isolated():
        compiled(torch.randn(8, 3))
    with isolated(compiled):
        pass
    assert compiled.training
    assert net.training
    assert net[1].training
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))


def test_expanded_buffers_are_no_obstacle():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.5]).expand(3))

        def forward(self, x):
            return x - self.mean

    net = Shifted()
    with isolated(net):
        net(torch.zeros(2, 3))
    assert net.training


def test_a_failing_network_is_put_back():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(3, 3))
    with pytest.raises(RuntimeError), isolated():
        net(torch.randn(8, 4))
    assert net[0].training
    assert int(net[0].num_batches_tracked) == 0


@pytest.mark.parametrize("through", ["closure", "averaged model"])
def test_a_network_that_a_forward_hook_updates_is_put_back(through):
    net = nn.Linear(2, 2)
    average = torch.optim.swa_utils.AveragedModel(net) if through == "averaged model" else nn.Linear(2, 2)

    def update(*_):
        if through == "averaged model":
            average.update_parameters(net)
        else:
            average.weight.data.lerp_(net.weight.data, 0.5)

    net.register_forward_hook(update)
    before = {name: value.clone() for name, value in average.state_dict().items()}
    for _ in range(3):  # learnt at the first call, known at the others
        with isolated():
            net(torch.ones(1, 2))
        assert all(torch.equal(before[name], value) for name, value in average.state_dict().items())
    net(torch.ones(1, 2))
    assert not all(torch.equal(before[name], value) for name, value in average.state_dict().items())


def test_a_plain_tensor_that_a_call_changes_in_place_is_put_back():
    class Running(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.zeros(2)

        def forward(self, x):
            self.mean.lerp_(x.mean(0), 0.5)
            return x - self.mean

    net = Running().eval()
    for _ in range(3):
        with isolated():
            net(torch.ones(4, 2))
        assert net.mean.tolist() == [0, 0]
