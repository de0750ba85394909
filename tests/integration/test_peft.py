"""LoRA through peft: what the base keeps, what a file brings back, and that plain Diffusers reads it."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("peft")

from qa_hooks._base.files import read_safetensors, write_safetensors
from qa_hooks.integrations.peft import (
    inject_lora,
    load_lora,
    lora_parameters,
    merge_lora,
    save_lora,
    scale_lora,
    without_lora,
)
from toy_adapters import rand, sd_unet


class SmallSR(nn.Module):
    """A network of another kind in each part: convolutions, a grouped one, attention in one piece, a shared layer."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.conv_again = self.body[0]
        self.depth = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.gate = nn.Linear(width, width)
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        y = self.depth(self.conv_again(self.body(self.conv(x))))
        rows = y.flatten(2).transpose(1, 2)
        rows = self.attention(rows, rows, rows)[0]
        return x + self.out(y * torch.sigmoid(self.gate(rows.mean(1)))[:, :, None, None])


def unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    )


def dit():
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=1, sample_size=8, num_embeds_ada_norm=10
    )


def sd3():
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    )


def flux():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=[4, 4, 8],
    )


def small_sr():
    torch.manual_seed(0)
    return SmallSR().requires_grad_(False)  # torch's attention takes another kernel when something needs gradients


IDS = torch.cartesian_prod(torch.zeros(1), torch.arange(2.0), torch.arange(2.0))
CALLS = {
    "plain": (small_sr, lambda m: m(rand(2, 3, 8, 8))),
    "UNet2DModel": (unet, lambda m: m(rand(2, 1, 8, 8), 5).sample),
    "UNet2DConditionModel": (sd_unet, lambda m: m(rand(2, 4, 8, 8), 5, rand(2, 3, 16)).sample),
    "DiT": (dit, lambda m: m(rand(2, 4, 8, 8), torch.tensor([5, 5]), torch.tensor([1, 2])).sample),
    "SD3": (sd3, lambda m: m(rand(2, 4, 8, 8), rand(2, 3, 16), rand(2, 16), torch.tensor([5.0, 5.0])).sample),
    "Flux": (
        flux,
        lambda m: (
            m(rand(2, 4, 4), rand(2, 3, 16), rand(2, 16), torch.tensor([5.0, 5.0]), IDS, torch.zeros(3, 3)).sample
        ),
    ),
}


def trained(parameters) -> None:
    """Adapters as after some training: no part is 0."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))


@pytest.fixture(params=CALLS)
def case(request):
    make, call = CALLS[request.param]
    with torch.no_grad():
        yield make, call


def test_step_0_is_the_base_to_the_bit_and_the_base_stays(case):
    make, call = case
    base = make().eval()
    model = copy.deepcopy(base)
    before = torch.get_rng_state()
    parameters = inject_lora(model, rank=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(call(model), call(base))
    assert not any(module.training for module in model.modules())
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in parameters}

    with torch.enable_grad():
        optimizer = torch.optim.AdamW(parameters, lr=0.05)
        for _ in range(3):
            call(model).square().mean().backward()
            optimizer.step()
    assert not torch.equal(call(model), call(base))
    with without_lora(model) as inside:
        assert torch.equal(call(inside), call(base))
    own = {name.replace(".base_layer", ""): p for name, p in model.state_dict().items() if "lora_" not in name}
    assert all(torch.equal(own[name], value) for name, value in base.state_dict().items())


def test_saved_and_loaded_and_merged(case, tmp_path):
    make, call = case
    model = make().eval()
    trained(inject_lora(model, rank=3, alpha=7))
    expected = call(model)
    save_lora(model, tmp_path)

    fresh = make().eval()
    keys = set(fresh.state_dict())
    parameters = load_lora(fresh, tmp_path)
    assert torch.equal(call(fresh), expected)
    assert all(p.requires_grad for p in parameters)
    merge_lora(fresh)
    assert set(fresh.state_dict()) == keys
    assert torch.allclose(call(fresh), expected, atol=1e-5)
    assert not torch.allclose(call(make().eval()), expected, atol=1e-3)
    with pytest.raises(ValueError, match="there is no LoRA in this"):
        lora_parameters(fresh)
    inject_lora(fresh, rank=2)  # and it is a model like any other again


def test_the_update_is_alpha_over_rank_times_b_a():
    linear, conv = nn.Linear(6, 5), nn.Conv2d(2, 5, 3)
    model = nn.ModuleDict({"linear": linear, "conv": conv})
    weights = linear.weight.clone(), conv.weight.clone()
    trained(inject_lora(model, rank=2, alpha=3))
    state = {name.replace(".default", ""): value for name, value in model.state_dict().items()}
    scale_lora(model, 0.5)
    merge_lora(model)
    for name, old in zip(("linear", "conv"), weights, strict=True):
        a, b = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
        update = 0.5 * 3 / 2 * b.flatten(1) @ a.flatten(1)
        assert torch.allclose(model[name].weight, old + update.view_as(old), atol=1e-6)


@torch.no_grad()
def test_scaling_is_relative_to_training_and_idempotent():
    model = small_sr().eval()
    x = rand(2, 3, 8, 8)
    base = model(x)
    trained(inject_lora(model, rank=3, alpha=7))
    full = model(x)
    for _ in range(2):
        scale_lora(model, 0.3)
    part = model(x)
    assert not torch.equal(part, full)
    scale_lora(model, 0)
    assert torch.equal(model(x), base)
    scale_lora(model, 1)
    assert torch.equal(model(x), full)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        scale_lora(model, float("nan"))


def test_without_lora_nests_and_survives_errors():
    model = small_sr().eval()
    base = model(rand(2, 3, 8, 8))
    parameters = inject_lora(model, rank=3)
    trained(parameters)
    parameters[0].requires_grad_(False)  # by the user, who wants it back so
    full = model(rand(2, 3, 8, 8))
    seen = []

    def fails():
        with without_lora(model):
            with without_lora(model):
                seen.append(model(rand(2, 3, 8, 8)))
            seen.append(model(rand(2, 3, 8, 8)))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert all(torch.equal(each, base) for each in seen)
    assert torch.equal(model(rand(2, 3, 8, 8)), full)
    assert [p.requires_grad for p in parameters] == [False, *[True] * (len(parameters) - 1)]
    loss = model(rand(2, 3, 8, 8)).sum()
    with torch.no_grad(), without_lora(model):  # between forward and backward, as a penalty to the base does
        model(rand(2, 3, 8, 8))
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in parameters[1:])


def test_what_is_adapted():
    names = lambda m: {n.split(".lora_A")[0] for n, _ in m.named_parameters() if ".lora_A" in n}  # noqa: E731
    default = small_sr()
    inject_lora(default, rank=2)
    assert names(default) == {"conv", "body.0", "gate"}  # not the grouped one, not attention's insides, not the output
    assert default.conv_again is default.body[0]
    listed = small_sr()
    inject_lora(listed, rank=2, targets=["conv", "out"])  # whole names or endings: not body.0, not conv_again
    assert names(listed) == {"conv", "out"}
    expression = sd_unet()
    inject_lora(expression, rank=2, targets=r".*attn2\.to_[qv]|.*resnets.*conv\d")
    assert {name.split(".")[-1] for name in names(expression)} == {"to_q", "to_v", "conv1", "conv2"}


def test_the_seed_decides_a():
    first, same, other = small_sr(), small_sr(), small_sr()
    drawn = [inject_lora(m, rank=2, seed=s)[0].detach() for m, s in ((first, 0), (same, 0), (other, 1))]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    bound = 27**-0.5  # Kaiming's bound of a fan-in of 3 * 3 * 3
    assert 0.8 * bound < drawn[0].abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_are_float32_beside_half_bases(dtype):
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 8)).to(dtype)
    model, x = copy.deepcopy(base), rand(2, 3, 5, 5).to(dtype)
    parameters = inject_lora(model, rank=2)
    assert {p.dtype for p in parameters} == {torch.float32}
    assert torch.equal(model(x), base(x))
    model(x).float().square().mean().backward()
    assert all(p.grad.dtype == torch.float32 for p in parameters)


def test_plain_diffusers_gives_the_same_images(tmp_path):
    """Convolution and attention targets, alpha other than rank: what Diffusers' own saving loses."""
    pytest.importorskip("diffusers", minversion="0.34")
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}

    def pipeline(denoiser):
        pipe = StableDiffusionPipeline(vae=vae, unet=denoiser, scheduler=scheduler, **parts)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def images(pipe):
        embeds = {"prompt_embeds": rand(1, 3, 16), "negative_prompt_embeds": torch.zeros(1, 3, 16)}
        return pipe(**embeds, latents=rand(1, 4, 8, 8), num_inference_steps=3, output_type="pt").images

    base = sd_unet()
    model = copy.deepcopy(base)
    trained(inject_lora(model, rank=4, alpha=8, targets=["to_q", "to_v", "conv1", "conv_in", "proj_in"]))
    save_lora(model, tmp_path)
    reader = pipeline(copy.deepcopy(base))
    reader.load_lora_weights(tmp_path)
    expected = images(pipeline(model))
    assert torch.equal(images(reader), expected)
    assert (images(pipeline(base)) - expected).abs().max() > 0.01

    alone = copy.deepcopy(base)
    alone.load_lora_adapter(tmp_path, weight_name="pytorch_lora_weights.safetensors", prefix="unet")
    assert torch.equal(images(pipeline(alone)), expected)


def test_what_diffusers_saved_is_read(tmp_path):
    pytest.importorskip("diffusers", minversion="0.34")
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    model = sd_unet()
    model.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_k"]))
    trained(lora_parameters(model))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(model),
        unet_lora_adapter_metadata=model.peft_config["default"].to_dict(),
    )
    fresh = sd_unet()
    load_lora(fresh, tmp_path)
    call = CALLS["UNet2DConditionModel"][1]
    assert torch.equal(call(fresh), call(model))


def test_loading_into_the_same_lora_keeps_the_parameters(tmp_path):
    model = small_sr()
    trained(inject_lora(model, rank=2))
    save_lora(model, tmp_path)
    other = small_sr()
    parameters = inject_lora(other, rank=2)
    assert [id(p) for p in load_lora(other, tmp_path)] == [id(p) for p in parameters]
    assert torch.equal(parameters[1], lora_parameters(model)[1])


def test_wrapped_and_compiled_models(tmp_path):
    from accelerate import Accelerator

    model = small_sr().eval()
    x = rand(2, 3, 8, 8)
    base = model(x)
    trained(inject_lora(model, rank=2))
    full = model(x)
    compiled = torch.compile(model, backend="eager")
    prepared = Accelerator(cpu=True).prepare(compiled)
    assert torch.allclose(prepared(x), full, atol=1e-6)
    with without_lora(prepared):
        assert torch.allclose(prepared(x), base, atol=1e-6)
    save_lora(prepared, tmp_path)
    load_lora(prepared, tmp_path)
    scale_lora(prepared, 0)
    assert torch.allclose(prepared(x), base, atol=1e-6)
    fresh = torch.compile(small_sr().eval(), backend="eager")
    inject_lora(fresh, rank=2)
    assert torch.allclose(fresh(x), base, atol=1e-6)


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    model = small_sr()
    inject_lora(model, rank=2)
    path = save_lora(model, tmp_path)

    wide = SmallSR(width=16)
    keys = set(wide.state_dict())
    with pytest.raises(ValueError, match=r"conv.lora_B is \(8, 2, 1, 1\), and this model needs \(16, 2, 1, 1\)|body"):
        load_lora(wide, tmp_path)
    assert set(wide.state_dict()) == keys
    assert all(p.requires_grad for p in wide.parameters())
    with pytest.raises(ValueError, match="and this model has no such layer: it is of another model"):
        load_lora(nn.Sequential(nn.Linear(4, 8)), tmp_path)

    ranked = small_sr()
    parameters = inject_lora(ranked, rank=3)
    before = [p.clone() for p in parameters]
    with pytest.raises(ValueError, match="the model has LoRA already, of other layers, rank or alpha"):
        load_lora(ranked, tmp_path)
    assert all(torch.equal(p, b) for p, b in zip(parameters, before, strict=True))

    tensors, header = read_safetensors(path, "")
    with pytest.raises(ValueError, match="does not exist"):
        load_lora(small_sr(), tmp_path / "nowhere")
    write_safetensors(path, tensors, {"format": "pt"})
    with pytest.warns(UserWarning, match="does not say its alpha, which is taken to be its rank"):
        load_lora(small_sr(), tmp_path)
    ruled = json.dumps({"r": 2, "lora_alpha": 16, "use_dora": True})
    write_safetensors(path, tensors, {"lora_adapter_metadata": ruled})
    with pytest.raises(ValueError, match="lora_magnitude_vector is missing"):
        load_lora(small_sr(), tmp_path)
    tensors.pop("gate.lora_B.weight")
    write_safetensors(path, tensors, header)
    with pytest.raises(ValueError, match=r"gate\.lora_B is missing"):
        load_lora(small_sr(), tmp_path)


def test_without_peft_loading_says_what_to_install(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Linear(4, 8))
    inject_lora(net, rank=2)
    save_lora(net, tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'qa-hooks\[lora\]'"):
        load_lora(nn.Sequential(nn.Linear(4, 8)), tmp_path)


def test_a_pattern_that_is_no_regular_expression():
    with pytest.raises(ValueError, match="not a regular expression"):
        inject_lora(nn.Sequential(nn.Linear(4, 8)), targets="(")


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"of a pipeline: pipe\.unet"):
        inject_lora(object())
    with pytest.raises(ValueError, match=r"no Linear or ungrouped Conv2d is called 'to_q'; this model has conv, "):
        inject_lora(small_sr(), targets=["to_q"])
    with pytest.raises(ValueError, match=r"fits targets='nothing.\*'"):
        inject_lora(small_sr(), targets="nothing.*")
    with pytest.raises(ValueError, match="rank must be a whole number"):
        inject_lora(small_sr(), rank=0)
    with pytest.raises(ValueError, match="alpha"):
        inject_lora(small_sr(), alpha=0)
    model = small_sr()
    inject_lora(model)
    with pytest.raises(ValueError, match="has LoRA already"):
        inject_lora(model)
    with pytest.raises(ValueError, match="before DDP"):
        inject_lora(nn.DataParallel(small_sr()))
