"""Samples of an average, or of another step: as a network with those weights would draw, and nothing is left of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qa_hooks.callbacks import GenerativeMonitor, Hooks, with_weights
from qa_hooks.writers import MemoryWriter


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Unflatten(1, (1, 8, 8)), nn.Sigmoid())


def sampler(net):
    return lambda n, generator: net(torch.randn(n, 4, generator=generator))


def averaged(net):
    """Another network, as an average is: its weights and its statistics."""
    other = copy.deepcopy(net)
    with torch.no_grad():
        for tensor in (*other.parameters(), other[1].running_mean):
            tensor.mul_(0.5).add_(0.1)
    return other.eval()


def drawn(sample):
    return sample(3, torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["state", "some", "parameters", "function"])
def test_images_are_those_of_a_network_with_these_weights(net, form):
    other = averaged(net)
    weights = {
        "state": other.state_dict(),
        "some": {"0.weight": other[0].weight},
        "parameters": [p.detach().clone() for p in other.parameters()],
        "function": other.state_dict,
    }[form]
    expected = copy.deepcopy(net).eval()
    if form == "some":
        expected[0].weight.data = other[0].weight.data
    elif form == "parameters":
        for own, value in zip(expected.parameters(), other.parameters(), strict=True):
            own.data = value.data
    else:
        expected = other
    net.eval()
    before, places = copy.deepcopy(net.state_dict()), [p.data_ptr() for p in net.parameters()]
    assert torch.equal(drawn(with_weights(sampler(net), net, weights)), drawn(sampler(expected)))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert [p.data_ptr() for p in net.parameters()] == places


def test_an_average_that_moves_is_read_when_it_is_measured(net):
    average = [p.detach().clone() for p in net.parameters()]
    sample = with_weights(sampler(net.eval()), net, average)
    first = drawn(sample)
    for tensor in average:
        tensor.mul_(0.5)
    assert not torch.equal(drawn(sample), first)


def test_an_error_of_the_sampler_leaves_the_weights(net):
    def fails(n, generator):
        raise RuntimeError("out of memory")

    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"):
        drawn(with_weights(fails, net, averaged(net).state_dict()))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_average_itself_is_not_moved_by_a_network_that_trains(net):
    """Batch norm in train mode moves its statistics at each call: of a copy."""
    weights = averaged(net).state_dict()
    before = copy.deepcopy(weights)
    drawn(with_weights(sampler(net.train()), net, weights))
    assert all(torch.equal(before[name], value) for name, value in weights.items())


def test_both_are_measured_at_the_same_step_and_the_run_is_as_without(net):
    real = torch.rand(60, 1, 8, 8)
    average = averaged(net).state_dict()

    def train(watched):
        torch.manual_seed(1)
        own, writer = copy.deepcopy(net), MemoryWriter()
        optimizer = torch.optim.Adam(own.parameters())
        options = {"extractor": {"type": "random", "width": 4}, "n": 50, "every": 1, "metrics": ("fd",)}
        raw = GenerativeMonitor(sampler(own), real, name="raw", **options)
        ema = GenerativeMonitor(with_weights(sampler(own), own, average), real, name="ema", **options)
        hooks = Hooks([raw, ema] if watched else [], writer=writer).attach(optimizer)
        for _ in range(3):
            own(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
        hooks.close()
        return own.state_dict(), writer

    (plain, _), (watched, writer) = train(False), train(True)
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    curves = [writer.scalars[f"qa_eval/fd_random4-0_n=50,{name}/value"] for name in ("raw", "ema")]
    assert [step for step, _ in curves[1]] == [1, 2, 3]
    assert len({value for _, value in curves[1]}) == 1  # the average stands still, and the network moves
    assert len({value for _, value in curves[0]}) == 3


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"nonsense": torch.zeros(1)}, ValueError, "1 tensors, of which 1 are of no name.*'nonsense'.*like '0.weight'"),
        ({}, ValueError, "weights has 0 tensors"),
        ({"0.weight": torch.zeros(1)}, ValueError, r"weights of 0.weight must be a tensor \(64, 4\), got \(1,\)"),
        ({"0.weight": 3}, ValueError, "got int"),
        ([torch.zeros(1)], ValueError, "1 tensors, and the network 4 parameters"),
        ("ema", TypeError, "tensors by name"),
        (3, TypeError, "tensors by name"),
        (nn.Linear(2, 2), TypeError, "pass its state_dict"),
        (lambda network: {}, TypeError, "callable as weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused_at_once(net, weights, error, message):
    with pytest.raises(error, match=message):
        with_weights(sampler(net), net, weights)
    with pytest.raises(TypeError, match="sample must be callable"):
        with_weights(3, net, net.state_dict())
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module"):
        with_weights(sampler(net), {}, net.state_dict())


def test_sharded_networks_are_refused(net):
    class FSDPModule(nn.Linear):
        pass

    with pytest.raises(ValueError, match=r"the network is sharded \(FSDPModule\)"):
        with_weights(sampler(net), FSDPModule(2, 2), {"weight": torch.zeros(2, 2)})


def test_tied_weights_have_both_names():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Unflatten(1, (1, 2, 2)))
    net[1].weight = net[0].weight
    weights = {name: value + 1 for name, value in net.state_dict().items()}
    before = net[0].weight.detach().clone()
    drawn(with_weights(sampler(net), net, weights))
    assert torch.equal(net[0].weight, before)
    assert net[1].weight is net[0].weight
