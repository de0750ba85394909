"""What is kept is used and never trained, however it is held."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from qa_hooks._base.frozen import KeepsFrozen


class Holder(KeepsFrozen):
    def __init__(self, network):
        super().__init__()
        self.network = self.keep(network)
        self.plain = self.keep(len)
        self.own = nn.Linear(1, 1)


@pytest.fixture
def holder():
    return Holder(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))


def test_a_kept_network_is_an_attribute_and_in_nobodys_checkpoint(holder):
    parent = nn.ModuleList([holder]).train().double()
    assert isinstance(holder.network, nn.Sequential)
    assert holder.plain is len
    assert {name for name, _ in parent.named_parameters()} == {"0.own.weight", "0.own.bias"}
    assert set(parent.state_dict()) == {"0.own.weight", "0.own.bias"}
    assert not holder.network.training
    assert holder.network[0].weight.dtype == torch.float32
    assert not holder.network[0].weight.requires_grad
    parent.to("meta")
    assert holder.network[0].weight.device.type == "meta"


def test_a_copy_holds_a_copy(holder):
    other = copy.deepcopy(holder)
    assert other.network is not holder.network
    other.to("meta")
    assert other.network[0].weight.device.type == "meta"
    assert holder.network[0].weight.device.type == "cpu"
    assert not any("network" in name for name in other.state_dict())


def test_a_network_that_is_not_kept_is_registered_as_ever(holder):
    holder.other = nn.Linear(1, 1)
    assert "other.weight" in holder.state_dict()
    assert holder.other.weight.requires_grad
