"""Files of adapters: every option of peft is brought back exactly or refused, and other programs' files are read."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("peft")
pytest.importorskip("diffusers", minversion="0.34")

from diffusers import StableDiffusionPipeline, UNet2DConditionModel, WanTransformer3DModel
from diffusers.training_utils import _collate_lora_metadata
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from qa_hooks.integrations.peft import inject_lora, load_lora, lora_parameters, save_adapter_only, save_lora
from toy_adapters import rand, randomise, sd_unet


def unet() -> UNet2DConditionModel:
    return sd_unet().eval().requires_grad_(False)


@torch.no_grad()
def out(network):
    return network(rand(2, 4, 8, 8), 5, rand(2, 3, 16)).sample


TARGETS = ["to_q", "to_k", "conv1", "to_out.0"]
OPTIONS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True, "target_modules": ["conv1", "to_out.0"]},
    "modules_to_save": {"modules_to_save": ["conv_out"]},
    "rank_pattern": {"rank_pattern": {"to_q": 2, "conv1": 3}, "alpha_pattern": {"to_q": 5}},
    "dora, rslora": {"use_dora": True, "use_rslora": True, "rank_pattern": {"to_k": 1}},
    "dropout, gaussian": {"lora_dropout": 0.5, "init_lora_weights": "gaussian"},
}


def made_by_peft(options) -> UNet2DConditionModel:
    network = unet()
    network.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **options}))
    randomise(lora_parameters(network))
    return network.eval()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_comes_back(options, tmp_path):
    network = made_by_peft(options)
    path = save_lora(network, tmp_path)
    fresh = unet()
    parameters = load_lora(fresh, tmp_path)
    fresh.eval()
    assert torch.equal(out(fresh), out(network))
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == {
        n for n, p in network.named_parameters() if p.requires_grad
    }
    assert not torch.allclose(out(fresh), out(unet()), atol=1e-3)
    randomise(parameters, seed=7)
    assert [id(p) for p in load_lora(fresh, path)] == [id(p) for p in parameters]  # resumed in place
    assert torch.equal(out(fresh), out(network))
    reader = unet()
    reader.load_lora_adapter(tmp_path, weight_name=path.name, prefix="unet")  # plain Diffusers
    assert torch.equal(out(reader), out(network))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_every_option_is_resumed(options, tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    network = made_by_peft(options)
    handle = save_adapter_only(accelerator, accelerator.prepare(network))
    accelerator.save_state(str(tmp_path / "state"))
    expected = out(network)
    randomise(lora_parameters(network), seed=7)
    assert not torch.equal(out(network), expected)
    accelerator.load_state(str(tmp_path / "state"))
    assert torch.equal(out(network), expected)
    handle.remove()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"bias": "all"}, "bias='all'"),
        ({"init_lora_weights": "olora", "target_modules": ["to_q"]}, "init_lora_weights='olora'"),
    ],
)
def test_what_a_file_cannot_bring_back_is_refused_by_name(options, named, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = made_by_peft(options)
    with pytest.raises(ValueError, match=named):
        save_lora(network, tmp_path)
    assert not list(tmp_path.iterdir())
    facts = {"r": 4, "lora_alpha": 6, **options}
    tensors = {"to_q.lora_A.weight": torch.zeros(4, 8), "to_q.lora_B.weight": torch.zeros(8, 4)}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(facts)})
    if "init_lora_weights" not in options:
        with pytest.raises(ValueError, match=named):
            load_lora(unet(), tmp_path / "a.safetensors")


def test_options_that_peft_may_come_to_have_are_refused(tmp_path):
    tensors = {"to_q.lora_A.weight": torch.zeros(4, 8), "to_q.lora_B.weight": torch.zeros(8, 4)}
    facts = {"r": 4, "lora_alpha": 6, "use_magic": True, "use_qalora": False}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(facts)})
    with pytest.raises(ValueError, match="has use_magic=True, which a file of an adapter does not bring back"):
        load_lora(unet(), tmp_path / "a.safetensors")


def test_a_file_that_does_not_fit_is_taken_out_again(tmp_path):
    save_lora(made_by_peft(OPTIONS["dora"]), tmp_path)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if "magnitude" in key))
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 6, "unet.use_dora": True})}
    save_file(tensors, path, header)
    network = unet()
    network.conv_in.requires_grad_(True)
    keys = set(network.state_dict())
    with pytest.raises(ValueError, match="lora_magnitude_vector is missing"):
        load_lora(network, tmp_path)
    assert set(network.state_dict()) == keys
    assert not hasattr(network, "peft_config")
    assert [n for n, p in network.named_parameters() if p.requires_grad] == ["conv_in.weight", "conv_in.bias"]


@pytest.mark.parametrize("header", [True, False])
def test_what_diffusers_scripts_write(header, tmp_path):
    network = unet()
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_v", "to_out.0"]))
    randomise(lora_parameters(network))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
    facts = _collate_lora_metadata({"unet": network}) if header else {}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, **facts)
    fresh = unet()
    if header:
        load_lora(fresh, tmp_path)
    else:
        with pytest.warns(UserWarning, match="does not say its alpha"):
            load_lora(fresh, tmp_path)
    assert torch.equal(out(fresh), out(network))


def test_what_kohya_writes(tmp_path):
    network = unet()
    network.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_v", "conv1"]))
    randomise(lora_parameters(network))
    layers = get_peft_model_state_dict(network)
    kohya = {}
    for key, tensor in layers.items():
        name, _, part = key.rpartition(".lora_")
        stem = f"lora_unet_{name.replace('.', '_')}"
        kohya[f"{stem}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor.contiguous()
        kohya[f"{stem}.alpha"] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "name-000010.safetensors", {"ss_network_dim": "4"})
    fresh = unet()
    load_lora(fresh, tmp_path / "name-000010.safetensors")
    assert torch.allclose(out(fresh), out(network), atol=1e-6)
    with pytest.raises(ValueError, match=r"another trainer's names .* Sequential; if pipe\.load_lora_weights"):
        load_lora(nn.Sequential(nn.Linear(4, 8)), tmp_path / "name-000010.safetensors")


def test_what_peft_writes(tmp_path):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
    state = {name: value.clone() for name, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(r=3, lora_alpha=5, target_modules=["0", "2"], use_rslora=True))
    randomise(lora_parameters(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(tmp_path)
    fresh = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8))
    fresh.load_state_dict(state)
    load_lora(fresh, tmp_path)
    assert torch.equal(fresh(rand(2, 4)), model(rand(2, 4)))


def test_one_file_for_several_networks(tmp_path):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModel(CLIPTextConfig(vocab_size=20, **sizes))
    state = {name: value.clone() for name, value in text.state_dict().items()}
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"]), text)
    network = unet()
    network.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q"]))
    randomise([*lora_parameters(network), *lora_parameters(text)])
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(network),
        text_encoder_lora_layers=get_peft_model_state_dict(text),
        **_collate_lora_metadata({"unet": network, "text_encoder": text}),
    )
    fresh = unet()
    load_lora(fresh, tmp_path)
    assert torch.equal(out(fresh), out(network))
    again = CLIPTextModel(CLIPTextConfig(vocab_size=20, **sizes))
    again.load_state_dict(state)
    load_lora(again, tmp_path, part="text_encoder")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(again(ids).last_hidden_state, text(ids).last_hidden_state)
    with pytest.raises(ValueError, match="holds nothing for part='transformer'"):
        load_lora(unet(), tmp_path, part="transformer")


def expert() -> WanTransformer3DModel:
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        qk_norm="rms_norm_across_heads",
    ).eval()


def test_two_experts_have_files_of_their_own(tmp_path):
    high, low = expert(), expert()
    for seed, network in enumerate((high, low)):
        inject_lora(network, rank=2, targets=["to_q", "to_v"], seed=seed)
        randomise(lora_parameters(network))
    with pytest.warns(UserWarning, match="first expert of a pipeline with two"):
        save_lora(high, tmp_path / "both")
    with pytest.raises(ValueError, match='part="transformer_2"'):
        save_lora(low, tmp_path / "both")
    first = save_lora(high, tmp_path, part="transformer")
    second = save_lora(low, tmp_path, part="transformer_2")
    assert {key.split(".")[0] for key in load_file(first)} == {"transformer"}
    assert {key.split(".")[0] for key in load_file(second)} == {"transformer_2"}
    for network, part in ((high, "transformer"), (low, "transformer_2")):
        fresh = expert()
        load_lora(fresh, tmp_path, part=part)
        pairs = zip(lora_parameters(fresh), lora_parameters(network), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)
    reader = expert()
    reader.load_lora_adapter(tmp_path, weight_name=second.name, prefix="transformer_2")
    assert all(torch.equal(p, q) for p, q in zip(lora_parameters(reader), lora_parameters(low), strict=True))


def test_two_networks_need_two_folders_of_a_checkpoint(tmp_path):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    networks = [nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)) for _ in range(2)]
    for seed, network in enumerate(networks):
        inject_lora(network, rank=2, seed=seed)
        randomise(lora_parameters(network))
    save_adapter_only(accelerator, accelerator.prepare(networks[0]))
    with pytest.raises(ValueError, match="give this one a folder of its own"):
        save_adapter_only(accelerator, networks[1])
    save_adapter_only(accelerator, accelerator.prepare(networks[1]), folder="transformer_2")
    before = [[p.clone() for p in lora_parameters(network)] for network in networks]
    accelerator.save_state(str(tmp_path / "state"))
    for network in networks:
        randomise(lora_parameters(network))
    accelerator.load_state(str(tmp_path / "state"))
    for network, old in zip(networks, before, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(lora_parameters(network), old, strict=True))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.proj = nn.Embedding(10, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.proj(self.words(x))


def test_lora_of_an_embedding_comes_back(tmp_path):
    network, x = Words(), torch.arange(10)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=["words", "proj"]), network, "default")
    randomise(lora_parameters(network))
    save_lora(network, tmp_path)
    fresh = Words()
    assert len(load_lora(fresh, tmp_path)) == 4
    assert torch.equal(fresh(x), network(x))
    assert not torch.allclose(fresh(x), Words()(x), atol=1e-2)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."])
@pytest.mark.parametrize("named", ["", ".default", ".reward"])
def test_files_of_states_of_wrapped_networks(prefix, named, tmp_path):
    """As many scripts write them: the entries of `state_dict()` that belong to the adapter."""
    network, x = Words(), torch.arange(10)
    inject_lora(network, rank=2, alpha=2)
    randomise(lora_parameters(network))
    state = {prefix + k.replace(".default", named): p for k, p in network.state_dict().items() if "lora_" in k}
    save_file(state, tmp_path / "x.safetensors")
    fresh = Words()
    with pytest.warns(UserWarning, match="does not say its alpha"):
        load_lora(fresh, tmp_path / "x.safetensors")
    assert torch.equal(fresh(x), network(x))


def test_names_of_other_trainers_and_a_network_that_has_them(tmp_path):
    network = nn.ModuleDict({"diffusion_model": nn.Linear(8, 8), "module": nn.Linear(8, 8)})
    inject_lora(network, rank=2)
    randomise(lora_parameters(network))
    path = save_lora(network, tmp_path)
    fresh = nn.ModuleDict({"diffusion_model": nn.Linear(8, 8), "module": nn.Linear(8, 8)})
    for ours, theirs in zip(load_lora(fresh, path), lora_parameters(network), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"another trainer's names .* cannot convert for a Words"):
        load_lora(Words(), path)
