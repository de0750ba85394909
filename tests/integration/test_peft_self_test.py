"""Networks that read past a layer: what the self-test leaves out by name, and what is told without one."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("peft")

from qa_hooks.integrations.peft import inject_lora, save_lora
from toy_adapters import adapted, around, rand, randomise


class ReadsPast(nn.Module):
    """An attention that computes with `self.qkv.weight`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return x + self.proj(F.scaled_dot_product_attention(q, k, v))


class FoldsInEval(nn.Module):
    """Two convolutions that are one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x):
        if self.training:
            return self.two(self.one(x))
        return F.conv2d(x, (self.two.weight.flatten(1) @ self.one.weight.flatten(1))[:, :, None, None])


class ReadsBoth(nn.Module):
    """The layer is called, and its weight is read as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x) + F.linear(x, self.layer.weight)


def test_layers_that_a_network_reads_past_are_left_out():
    network = nn.Sequential(nn.Linear(8, 16), ReadsPast(), nn.Linear(16, 8))
    with pytest.warns(UserWarning, match=r"left out of 1\.qkv: the network reads its weight past the module"):
        inject_lora(network, rank=2)
    assert adapted(network) == {"0", "1.proj", "2"}
    network = around(FoldsInEval())
    with pytest.warns(UserWarning, match=r"left out of 2\.one, 2\.two: .* in eval mode"):
        inject_lora(network, rank=2)
    network = nn.Sequential(nn.Linear(4, 8), ReadsBoth(), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"left out of 1\.layer: .* once the adapter is merged"):
        inject_lora(network, rank=2)
    assert adapted(network) == {"0", "2"}


def test_torchs_fused_encoder_layer_is_left_out():
    """In eval mode without gradients torch hands linear1's weight to one kernel."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    network = nn.Sequential(nn.Linear(4, 8), layer)
    inject_lora(network, rank=2)
    assert adapted(network) == {"0"}
    with pytest.raises(ValueError, match="reads its weight past the module"):
        inject_lora(nn.Sequential(nn.Linear(4, 8), layer), targets=["linear1"])


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.embed, self.attention = nn.Conv2d(3, 16, 3), nn.Linear(4, 16), ReadsPast()

    def forward(self, x, condition):
        return self.attention(self.conv(x).flatten(2).mT + self.embed(condition)[:, None])


def test_an_example_is_given_where_none_can_be_drawn():
    x, condition = rand(2, 3, 5, 5), rand(2, 4)
    for example in ((x, condition), {"x": x, "condition": condition}):
        network = Conditional()
        with pytest.warns(UserWarning, match=r"left out of attention\.qkv"):
            inject_lora(network, rank=2, example=example)
        assert adapted(network) == {"conv", "embed", "attention.proj"}
    with pytest.raises(ValueError, match="Conditional does not take the example"):
        inject_lora(Conditional(), example=x)


def test_without_an_example_the_first_call_names_them():
    network, x, condition = Conditional(), rand(2, 3, 5, 5), rand(2, 4)
    inject_lora(network, rank=2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        network(x, condition)  # no gradient, nothing to say yet
    with pytest.warns(UserWarning, match=r"1 of 4 adapters had no part .*: attention\.qkv\. .*example="):
        output = network(x, condition)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(x, condition)
    assert not network._forward_hooks
    output.sum().backward()


def test_a_file_says_which_layers_learnt_nothing(tmp_path):
    network = Conditional()
    parameters = inject_lora(network, rank=2)
    randomise(parameters)
    with torch.no_grad():
        network.attention.qkv.lora_B["default"].weight.zero_()
    with pytest.warns(UserWarning, match=r"1 of 4 layers of the adapter are still 0.*attention\.qkv"):
        save_lora(network, tmp_path)


def test_the_self_test_leaves_no_trace():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 8, 3))
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    inject_lora(network, rank=2)
    after = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert [layer.training for layer in network] == [True, False, True, True]


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, x):
        x *= 255
        return self.two(self.one(x).tanh())


def test_a_network_that_writes_into_its_input():
    network, x = WritesIntoItsInput(), rand(1, 3, 8, 8)
    before = x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject_lora(network, rank=2, example=x)
    assert torch.equal(x, before)


class Experts(nn.Module):
    """All experts in train mode, the chosen one in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.experts = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x):
        y = self.first(x)
        if self.training:
            return sum(expert(y) for expert in self.experts)
        return self.experts[int(y.sum() > 0)](y)


def test_an_expert_that_was_not_chosen_is_kept():
    network = Experts()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inject_lora(network, rank=2)
    assert adapted(network) == {"first", "experts.0", "experts.1", "experts.2"}
