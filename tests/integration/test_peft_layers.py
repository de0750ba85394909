"""Beside which layers LoRA stands: what it computes there, what is left out by name, and what the self-test finds."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

pytest.importorskip("peft")

from qa_hooks.integrations.peft import inject_lora, merge_lora, save_lora
from toy_adapters import adapted, around, rand, randomise

GEOMETRIES = {
    "stride": {"padding": 1, "stride": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": (0, 2), "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
    "dilation": {"padding": 2, "dilation": 2},
    "dilated, reflected": {"padding": 4, "dilation": (2, 3), "padding_mode": "reflect"},
    "same": {"padding": "same", "dilation": 2},
    "even kernel, same, circular": {"padding": "same", "padding_mode": "circular", "kernel_size": 4},
}


@pytest.mark.parametrize("options", GEOMETRIES.values(), ids=list(GEOMETRIES))
@pytest.mark.parametrize("targets", [None, ["2"]], ids=["default", "by name"])
def test_convolutions_of_every_geometry(options, targets):
    """The oracle is torch's own convolution with the weight W + (alpha / rank) B A."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, **{"kernel_size": 3, **options})
    network = around(layer)
    x, base = rand(2, 3, 12, 12), copy.deepcopy(network)
    parameters = inject_lora(network, rank=2, alpha=6, targets=targets)
    assert "2" in adapted(network)
    assert torch.equal(network(x), base(x))
    randomise(parameters)
    trained = network(x)
    state = network.state_dict()
    with torch.no_grad():
        for name in adapted(network):
            a, b = (state[f"{name}.lora_{part}.default.weight"] for part in "AB")
            weight = base.get_submodule(name).weight
            weight += 3 * (b.flatten(1) @ a.flatten(1)).view_as(weight)
    assert torch.allclose(trained, base(x), atol=1e-5)
    merge_lora(network)
    assert torch.allclose(trained, network(x), atol=1e-5)


NORMS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("normed", NORMS.values(), ids=list(NORMS))
def test_a_weight_that_is_made_anew_is_left_out_by_name(normed):
    network = around(normed(nn.Conv2d(8, 8, 3)))
    with pytest.warns(UserWarning, match=r"LoRA is left out of 2: its weight is made anew"):
        inject_lora(network, rank=2)
    assert adapted(network) == {"0"}
    with pytest.raises(ValueError, match=r"fits targets=\['2'\]; 2: its weight is made anew"):
        inject_lora(around(normed(nn.Conv2d(8, 8, 3))), targets=["2"])


class Standardised(nn.Conv2d):
    """Weight standardisation, as in many ResNets: another function of the weight."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class DropsInTraining(nn.Linear):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


class SameByAnotherWay(nn.Linear):
    def forward(self, x):
        return torch.einsum("...i,oi->...o", x, self.weight) + self.bias


class OtherArguments(nn.Conv2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x):
        return super().forward(x)


def test_classes_with_a_forward_of_their_own_are_tried():
    network = around(Standardised(8, 8, 3))
    with pytest.warns(UserWarning, match="left out of 2: its class Standardised computes something else"):
        inject_lora(network, rank=2)
    with pytest.raises(ValueError, match="OtherArguments computes something else"):
        inject_lora(around(OtherArguments(8)), targets=["2"])
    rows = nn.Sequential(nn.Linear(4, 8), DropsInTraining(8, 8), SameByAnotherWay(8, 8))
    with pytest.warns(UserWarning, match="left out of 1: its class DropsInTraining"):
        inject_lora(rows, rank=2)
    assert adapted(rows) == {"0", "2"}


def test_what_has_no_lora_of_this_kind_is_named():
    with pytest.raises(ValueError, match="2: it is a ConvTranspose2d, and LoRA stands beside Linear and Conv2d"):
        inject_lora(around(nn.ConvTranspose2d(8, 8, 2)), targets=["2"])
    with pytest.raises(ValueError, match="2: its groups are separate"):
        inject_lora(around(nn.Conv2d(8, 8, 3, groups=4)), targets=r"2")
    network = around(nn.Conv2d(8, 8, 3, groups=8))
    with warnings.catch_warnings():  # the default leaves it out, as documented
        warnings.simplefilter("error")
        inject_lora(network, rank=2)


def test_two_layers_with_one_weight_are_left_out():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    network = nn.Sequential(nn.Linear(4, 8), first, nn.Tanh(), second)
    with pytest.warns(UserWarning, match="left out of [13]: .* has the same weight") as told:
        inject_lora(network, rank=2)
    assert len(told) == 2
    assert adapted(network) == {"0"}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_merging_refuses_what_would_be_another_function():
    from peft import LoraConfig, inject_adapter_in_model

    for body, reason in (
        (nn.utils.weight_norm(nn.Conv2d(8, 8, 3)), "made anew"),
        (nn.Conv2d(8, 8, 3, dilation=2), "another dilation or padding"),
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), "another dilation or padding"),
        (nn.Conv2d(8, 8, 3, groups=2), "grouped"),
    ):
        network = around(body)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            inject_adapter_in_model(LoraConfig(r=2, target_modules=["0", "2"]), network)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        with pytest.raises(ValueError, match=reason):
            merge_lora(network)
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_gradients_that_are_missing_are_told_once():
    from qa_hooks.integrations.peft import reduce_gradients

    parameters = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4))]
    (parameters[0].sum() + parameters[2].sum()).backward()
    with pytest.warns(UserWarning, match=r"1 of 3 trainable parameters have no gradient .* number 1 of shape \(3,\)"):
        reduce_gradients(parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduce_gradients(parameters)


@pytest.mark.parametrize("library", ["torchao", "bitsandbytes"])
def test_quantised_bases_are_trained_and_not_merged(library, tmp_path):
    from qa_hooks.integrations.peft import load_lora, lora_parameters, without_lora

    module = pytest.importorskip(library)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    if library == "torchao":
        quantization = pytest.importorskip("torchao.quantization")
        quantization.quantize_(network, quantization.Int8WeightOnlyConfig())
    else:
        state = network.state_dict()
        network = nn.Sequential(module.nn.Linear4bit(64, 64), nn.ReLU(), module.nn.Linear4bit(64, 64))
        network.load_state_dict(state)
        network = network.to("cpu")
    x = rand(2, 64)
    base = network(x).detach()
    optimizer = torch.optim.SGD(inject_lora(network, rank=2), lr=0.5)
    assert torch.equal(network(x), base)
    for _ in range(2):
        optimizer.zero_grad()
        network(x).square().sum().backward()
        optimizer.step()
    trained = network(x).detach()
    assert not torch.equal(trained, base)
    with without_lora(network):
        assert torch.equal(network(x), base)
    save_lora(network, tmp_path)
    randomise(lora_parameters(network))
    load_lora(network, tmp_path)
    assert torch.equal(network(x), trained)
    with pytest.raises(ValueError, match="its weights are quantised"):
        merge_lora(network)
