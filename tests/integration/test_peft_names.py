"""Adapters have names: ours is trained on top of a frozen one, and every function touches ours alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from peft import LoraConfig, inject_adapter_in_model

from qa_hooks.integrations.peft import (
    inject_lora,
    load_lora,
    lora_parameters,
    merge_lora,
    save_lora,
    scale_lora,
    without_lora,
)
from toy_adapters import rand, randomise


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1))


def styled() -> nn.Sequential:
    """A network with a frozen style at half strength beside two of its layers."""
    network = plain()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=4, target_modules=["0", "2"]), network, "style")
    randomise((p for name, p in network.named_parameters() if ".style." in name), seed=1)
    for layer in (network[0], network[2]):
        layer.scaling["style"] *= 0.5
    return network.requires_grad_(False)


@torch.no_grad()
def test_ours_goes_on_top_of_a_frozen_one():
    network, x = styled(), rand(2, 3, 8, 8)
    base = network(x)
    parameters = inject_lora(network, rank=3, adapter="reward")
    assert torch.equal(network(x), base)  # the style is still there, at its strength
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert len(parameters) == len(names) == 6
    assert all(".reward." in name for name in names)
    assert [id(p) for p in lora_parameters(network)] == [id(p) for p in parameters]
    randomise(parameters)
    full = network(x)
    assert not torch.allclose(full, base, atol=1e-3)
    with without_lora(network):
        assert torch.equal(network(x), base)
        with without_lora(network):
            assert torch.equal(network(x), base)
    assert torch.equal(network(x), full)
    assert {name for name, p in network.named_parameters() if p.requires_grad} == names
    with without_lora(network, adapter="style"):
        assert not torch.allclose(network(x), full, atol=1e-3)
    assert torch.equal(network(x), full)


@torch.no_grad()
def test_scaling_and_merging_leave_the_other_alone():
    network, x = styled(), rand(2, 3, 8, 8)
    base = network(x)
    randomise(inject_lora(network, rank=3, adapter="reward"))
    full = network(x)
    scale_lora(network, 0)
    assert torch.equal(network(x), base)
    scale_lora(network, 1)
    assert torch.equal(network(x), full)
    merge_lora(network)
    assert torch.allclose(network(x), full, atol=1e-5)
    assert list(network.peft_config) == ["style"]
    assert isinstance(network[3], nn.Conv2d)
    with without_lora(network):
        assert not torch.allclose(network(x), full, atol=1e-3)
    merge_lora(network)
    assert torch.allclose(network(x), full, atol=1e-4)
    assert set(network.state_dict()) == set(plain().state_dict())


@torch.no_grad()
def test_a_file_holds_ours_alone_and_goes_on_top_again(tmp_path):
    network, x = styled(), rand(2, 3, 8, 8)
    randomise(inject_lora(network, rank=3, alpha=5, adapter="reward"))
    save_lora(network, tmp_path)
    again = styled()
    parameters = load_lora(again, tmp_path, adapter="mine")
    assert torch.equal(again(x), network(x))
    assert len(parameters) == 6
    assert all(torch.equal(p, q) for p, q in zip(parameters, lora_parameters(network), strict=True))
    randomise(parameters, seed=2)
    assert [id(p) for p in load_lora(again, tmp_path)] == [id(p) for p in parameters]  # the trained one, in place
    assert torch.equal(again(x), network(x))
    with pytest.raises(ValueError, match="has an adapter 'style', which is frozen"):
        load_lora(styled(), tmp_path)


def test_which_adapter_is_meant():
    network = styled()
    with pytest.raises(ValueError, match="has LoRA already, an adapter called 'style'"):
        inject_lora(network, adapter="style")
    inject_lora(network, rank=2)
    inject_lora(network, rank=2, adapter="second")
    assert all(".second." in name for name, p in network.named_parameters() if p.requires_grad)
    lora_parameters(network)
    network.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"several adapters, \['style', 'default', 'second'\], of which none are trained"
    ):
        lora_parameters(network)
    assert len(lora_parameters(network, adapter="default")) == 6
    with pytest.raises(ValueError, match="no adapter 'reward'"):
        scale_lora(network, 1, adapter="reward")
    with pytest.raises(ValueError, match="several adapters"), without_lora(network):
        pass


def test_an_adapter_of_another_kind_is_refused():
    from peft import LoHaConfig

    network = plain()
    inject_adapter_in_model(LoHaConfig(r=2, target_modules=["2"]), network, "style")
    with pytest.raises(ValueError, match="an adapter that is not LoRA"):
        inject_lora(network, adapter="reward")


def test_the_base_is_refused_where_it_is_gone():
    biased = plain()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], bias="lora_only"), biased)
    with pytest.raises(ValueError, match="bias='lora_only', which trains biases of the base"), without_lora(biased):
        pass
    rows = nn.Sequential(nn.Linear(8, 8))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa"), rows)
    with pytest.raises(ValueError, match="'pissa', which has written into the weights"), without_lora(rows):
        pass
    with pytest.raises(ValueError, match="'pissa'"):
        save_lora(rows, "nowhere")
    merged = plain()
    inject_lora(merged, rank=2)
    for layer in (merged[0], merged[2]):
        layer.merge()
    with pytest.raises(ValueError, match="merged into the base weights"), without_lora(merged):
        pass


@torch.no_grad()
def test_modules_saved_whole_are_part_of_an_adapter():
    network, x = plain(), rand(2, 3, 8, 8)
    base = network(x)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], modules_to_save=["3"]), network)
    parameters = lora_parameters(network)
    assert len(parameters) == 4
    randomise(parameters)
    full = network(x)
    with without_lora(network):
        assert torch.equal(network(x), base)
    assert torch.equal(network(x), full)
    assert all(p.requires_grad for p in parameters)
    with pytest.raises(ValueError, match="modules_to_save or use_dora"):
        scale_lora(network, 0.5)
    merge_lora(network)
    assert torch.allclose(network(x), full, atol=1e-5)
    assert set(network.state_dict()) == set(plain().state_dict())


@torch.no_grad()
def test_wrappers_are_taken_off():
    from ema_pytorch import EMA
    from lightning.fabric import Fabric
    from peft import get_peft_model
    from torch.optim.swa_utils import AveragedModel

    network = plain()
    inject_lora(network, rank=2)
    shapes = [p.shape for p in lora_parameters(network)]
    fabric = Fabric(accelerator="cpu", devices=1)
    ema = EMA(copy.deepcopy(network), include_online_model=False)
    for wrapper in (
        AveragedModel(network),
        nn.DataParallel(network),
        torch.compile(network),
        fabric.setup(network),
        ema,
    ):
        assert [p.shape for p in lora_parameters(wrapper)] == shapes
        assert not any("module" in name or "model" in name for name in _file_keys(wrapper))
    wrapped = get_peft_model(plain(), LoraConfig(r=2, target_modules=["0", "2"]))
    assert _file_keys(wrapped) == {f"{n}.lora_{part}.weight" for n in (0, 2) for part in "AB"}


def _file_keys(model) -> set[str]:
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        return set(load_file(save_lora(model, folder)))


def test_adapters_that_are_switched_off_take_none_on_top(tmp_path):
    network = styled()
    save_lora(network, tmp_path, adapter="style")
    for layer in (network[0], network[2]):
        layer.enable_adapters(False)
    for put in (inject_lora, lambda model, adapter: load_lora(model, tmp_path, adapter=adapter)):
        with pytest.raises(ValueError, match="adapters are switched off, and one on top of them would be, too"):
            put(network, adapter="reward")


def test_rows_of_an_embedding_beside_lora_are_refused(tmp_path):
    network = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8))
    inject_adapter_in_model(
        LoraConfig(r=2, target_modules=["1"], trainable_token_indices={"0": [1, 2]}), network, "default"
    )
    for use in (merge_lora, lambda model: save_lora(model, tmp_path), lambda model: without_lora(model).__enter__()):
        with pytest.raises(ValueError, match="trainable_token_indices"):
            use(network)


def test_an_adapter_in_a_part_is_refused_where_its_options_are_needed(tmp_path):
    """As of a trainer's module that holds the network: its names are others than those of the network."""
    inner = plain()
    inject_lora(inner, rank=2)
    outer = nn.ModuleDict({"net": inner, "vae": nn.Linear(2, 2)})
    for use in (merge_lora, lambda model: save_lora(model, tmp_path)):
        with pytest.raises(ValueError, match="the adapter was put into 'net', a part of this ModuleDict"):
            use(outer)
    assert len(lora_parameters(outer)) == len(lora_parameters(inner)) > 0
    bad = nn.Sequential(nn.Linear(8, 8))
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa"), bad)
    with pytest.raises(ValueError, match="'pissa'"), without_lora(nn.ModuleDict({"net": bad, "vae": nn.Linear(2, 2)})):
        pass


def test_pefts_own_wrapper_is_not_left_without_its_adapter():
    from peft import get_peft_model

    wrapped = get_peft_model(plain(), LoraConfig(r=2, target_modules=["0", "2"]))
    randomise(lora_parameters(wrapped))
    full = wrapped(rand(2, 3, 8, 8))
    with pytest.raises(ValueError, match="get_base_model"):
        merge_lora(wrapped)
    assert torch.equal(wrapped(rand(2, 3, 8, 8)), full)
    network = wrapped.get_base_model()
    merge_lora(network)
    assert torch.allclose(network(rand(2, 3, 8, 8)), full, atol=1e-5)
