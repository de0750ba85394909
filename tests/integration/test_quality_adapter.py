"""The quality adapter on tiny random pipelines: what it leaves alone, what it trains, what it refuses."""

from __future__ import annotations

import copy
import json
import math
import warnings

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from diffusers import DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)
from torch import nn
from torch.nn import functional as F

from qa_hooks.data import QualityTable
from qa_hooks.features import create_extractor
from qa_hooks.integrations.diffusers import QualityAdapter, QualityScores, grad_last_steps
from qa_hooks.integrations.diffusers.denoising import denoising_loss
from qa_hooks.integrations.diffusers.quality.attention import QualityProcessor
from qa_hooks.integrations.diffusers.quality.projector import encode
from qa_hooks.integrations.peft import inject_lora
from qa_hooks.scorers import FunctionScorer

KEYS = [f"{index}.png" for index in range(20)]
DRAWN = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
FAMILIES = {
    "stable_diffusion": "attention",
    "stable_diffusion_xl": "attention",
    "stable_diffusion_3": "embedding",
    "flux": "embedding",
}


def table(values: torch.Tensor = DRAWN, name: str = "bright", higher: bool = True, mark: str = "") -> QualityTable:
    return QualityTable(KEYS[: len(values)], values, name, higher, fingerprint=mark)


def brightness(name: str = "bright") -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name=name, higher_is_better=True)


def plain_unet() -> UNet2DModel:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **kinds).eval()


def class_unet() -> UNet2DModel:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "num_class_embeds": 3}
    return UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, **kinds).eval()


def dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 1, "num_layers": 2, "sample_size": 8}
    return DiTTransformer2DModel(**options, patch_size=2, num_embeds_ada_norm=5, norm_num_groups=1).eval()


def wake(adapter: QualityAdapter, seed: int = 0) -> QualityAdapter:
    """Weights as after some training: gates open, zero projections filled."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.branches.parameters():
            if parameter.ndim == 0:
                parameter.fill_(0.7)
            elif not parameter.any():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param, *getattr(tiny, request.param)()


@pytest.fixture
def sd():
    return tiny.stable_diffusion()


# What is left alone


def test_scale_0_and_an_untrained_gate_are_the_base_bit_for_bit(family):
    name, pipe, call = family
    base, state = tiny.sample(pipe, call), torch.get_rng_state()
    keys = list(tiny.denoiser_of(pipe).state_dict())
    adapter = QualityAdapter(tiny.denoiser_of(pipe), table())
    assert adapter.places.form == FAMILIES[name]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tiny.denoiser_of(pipe).state_dict()) == keys  # a saved pipeline is the one of before
    with adapter.quality(1.0):
        assert torch.equal(tiny.sample(pipe, call), base)
    wake(adapter)
    with adapter.quality(1.0):
        turned = tiny.sample(pipe, call)
        with adapter.quality(1.0, scale=0):
            assert torch.equal(tiny.sample(pipe, call), base)
        assert torch.equal(tiny.sample(pipe, call), turned)  # the outer block is in force again
    assert (turned - base).abs().max() > 1e-3
    assert torch.equal(tiny.sample(pipe, call), base)
    adapter.detach()
    if FAMILIES[name] == "attention":
        assert not any(isinstance(part, QualityProcessor) for part in pipe.unet.attn_processors.values())
    QualityAdapter(tiny.denoiser_of(pipe), table())


@pytest.mark.parametrize("kind", [AttnProcessor, AttnProcessor2_0, lambda: SlicedAttnProcessor(2)])
def test_every_attention_implementation_gives_the_same_branch(sd, kind):
    pipe, call = sd
    adapter = wake(QualityAdapter(pipe.unet, table()))
    with adapter.quality(1.0):
        expected = tiny.sample(pipe, call)
    adapter.detach()
    pipe.unet.set_attn_processor(kind())
    base = tiny.sample(pipe, call)
    again = wake(QualityAdapter(pipe.unet, table()))
    with again.quality(1.0, scale=0):
        assert torch.equal(tiny.sample(pipe, call), base)
    with again.quality(1.0):
        torch.testing.assert_close(tiny.sample(pipe, call), expected, rtol=1e-4, atol=1e-5)
    # An implementation that is chosen later has the branch beside it, too.
    pipe.unet.set_attn_processor(AttnProcessor())
    with again.quality(1.0):
        torch.testing.assert_close(tiny.sample(pipe, call), expected, rtol=1e-4, atol=1e-5)


def test_the_branch_is_the_formula(sd):
    """out = W_o (Attn(Q, K_text, V_text) + scale g Attn(Q, K_q, V_q)), written out with loops over rows and heads."""
    unet = sd[0].unet
    adapter = wake(QualityAdapter(unet, table()))
    name = adapter.places.names[0]
    attention, branch = unet.get_submodule(name), adapter.branches[0]
    generator = torch.Generator().manual_seed(1)
    inner = attention.to_q.in_features
    x, text, tokens = (torch.randn(2, n, d, generator=generator) for n, d in ((5, inner), (4, 16), (2, 16)))
    out = attention(x, encoder_hidden_states=text, ip_hidden_states=(tokens, 0.5))

    def attend(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        found, q = torch.zeros(2, 5, inner), attention.to_q(x)
        for row in range(2):
            for h in range(attention.heads):
                part = slice(h * inner // attention.heads, (h + 1) * inner // attention.heads)
                logits = q[row, :, part] @ keys[row, :, part].T / math.sqrt(inner // attention.heads)
                found[row, :, part] = logits.softmax(-1) @ values[row, :, part]
        return found

    mixed = attend(attention.to_k(text), attention.to_v(text))
    mixed = mixed + 0.5 * 0.7 * attend(tokens @ branch.to_k.weight.T, tokens @ branch.to_v.weight.T)
    torch.testing.assert_close(out, attention.to_out[0](mixed), rtol=1e-4, atol=1e-6)


def test_new_projections_begin_as_copies_and_the_published_start_moves_the_image(sd):
    pipe, call = sd
    base = tiny.sample(pipe, call)
    adapter = QualityAdapter(pipe.unet, table(), init="published")
    for name, branch in zip(adapter.places.names, adapter.branches, strict=True):
        assert branch.gate is None
        assert torch.equal(branch.to_k.weight, pipe.unet.get_submodule(name).to_k.weight)
        assert torch.equal(branch.to_v.weight, pipe.unet.get_submodule(name).to_v.weight)
    with adapter.quality(1.0):
        assert not torch.equal(tiny.sample(pipe, call), base)


def test_the_mask_of_the_text_is_the_texts_alone(sd):
    """Masked words do not count, with the branch as without; the quality tokens are never masked."""
    unet = sd[0].unet
    adapter = wake(QualityAdapter(unet, table()))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16)
    mask = torch.tensor([[1, 1, 0, 0]] * 2)
    other = torch.where(mask[..., None] > 0, text, torch.randn(2, 4, 16))
    with torch.no_grad(), adapter.quality(1.0, guidance=False):
        outputs = [unet(x, 5, words, encoder_attention_mask=mask).sample for words in (text, other)]
        short = unet(x, 5, text[:, :2]).sample
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[0], short, rtol=1e-3, atol=1e-4)


# Guidance


def test_unconditional_rows_get_the_null_or_the_negative(sd):
    pipe, call = sd
    adapter = wake(QualityAdapter(pipe.unet, table()))
    seen = []
    handle = adapter.projector.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()))
    with adapter.quality(1.5):
        tiny.sample(pipe, call, steps=1)
        tiny.sample(pipe, call, steps=1, guidance_scale=1.0)
        tiny.sample(pipe, {n: v[:1] if hasattr(v, "shape") else v for n, v in call.items()}, steps=1)
    with adapter.quality(1.5, negative=0.5):
        tiny.sample(pipe, call, steps=1)
    with adapter.quality(torch.tensor([1.0, -1.0])):  # one for each image
        tiny.sample(pipe, call, steps=1)
    handle.remove()
    rows = [torch.nan_to_num(q, nan=99.0).flatten().tolist() for q in seen]
    assert rows == [[99, 99, 1.5, 1.5], [1.5, 1.5], [99, 1.5], [-0.75, -0.75, 1.5, 1.5], [99, 99, 1, -1]]


def test_null_and_average_are_two_things(sd):
    adapter = QualityAdapter(sd[0].unet, table(), encoding=10)
    null, average = adapter.encode(torch.tensor([[torch.nan], [0.0]]))
    assert (null - average).abs().max() > 0.1
    (null * torch.randn_like(null)).sum().backward()  # and the null is learned
    assert adapter.projector.project[-1].weight.grad[:, -1].abs().sum() > 0
    assert torch.allclose(encode(torch.zeros(1, 1), 2).flatten(), torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))


def test_an_own_loop_has_to_say_what_its_halves_are(sd):
    unet = sd[0].unet
    adapter = wake(QualityAdapter(unet, table()))
    x = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    text = torch.randn(2, 4, 16)
    with adapter.quality(1.0), pytest.raises(ValueError, match="guidance=True"):
        unet(x, 5, text)
    with torch.no_grad(), adapter.quality(1.0, guidance=False):
        alike = unet(x, 5, text[:1].repeat(2, 1, 1)).sample
    with torch.no_grad(), adapter.quality(1.0, guidance=True):
        halves = unet(x, 5, text[:1].repeat(2, 1, 1)).sample
    assert torch.equal(alike[0], alike[1])
    assert not torch.equal(halves[0], halves[1])
    with adapter.quality(1.0, guidance=True), pytest.raises(ValueError, match="even number"):
        unet(x[:1], 5, text[:1])


def test_dit_finds_its_null_class():
    network = dit()
    adapter = wake(QualityAdapter(network, table()))
    assert (adapter.places.form, len(adapter.branches)) == ("embedding", 2)
    seen = []
    adapter.projector.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()))
    x = torch.randn(1, 1, 8, 8).repeat(2, 1, 1, 1)
    with torch.no_grad(), adapter.quality(1.0):
        network(x, torch.tensor([5, 5]), class_labels=torch.tensor([1, 5]))
    assert torch.nan_to_num(seen[0], nan=99.0).flatten().tolist() == [1, 99]


# Training


def test_training_moves_the_adapter_alone_and_by_the_path_of_sampling(sd):
    unet = sd[0].unet.requires_grad_(False)
    before = copy.deepcopy(unet.state_dict())
    adapter = QualityAdapter(unet, table(), drop=(0, 0, 0))
    old = [p.detach().clone() for p in adapter.parameters()]
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.05)
    q = adapter.of_images(table())
    clean, text = torch.randn(20, 4, 8, 8), {"encoder_hidden_states": torch.randn(20, 4, 16)}
    for _ in range(3):
        adapter.condition(q)
        loss = denoising_loss(
            unet, DDPMScheduler(), clean, condition=text, generator=torch.Generator().manual_seed(0)
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(old, adapter.parameters(), strict=True))
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    x = torch.randn(2, 4, 8, 8)
    words = text["encoder_hidden_states"][:2]
    with torch.no_grad():
        adapter.condition(torch.tensor([0.3, -0.2]))
        trained = unet(x, 7, words).sample
        with adapter.quality(torch.tensor([0.3, -0.2]), guidance=False):
            assert torch.equal(unet(x, 7, words).sample, trained)
        assert not torch.equal(unet(x, 7, words).sample, trained)  # what was given for one call is used up


@pytest.mark.parametrize("make", [plain_unet, class_unet, dit])
def test_networks_without_cross_attention_learn_through_the_embedding(make):
    network = make().requires_grad_(False)
    options = {} if make is plain_unet else {"class_labels": torch.tensor([1, 2])}
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 30])
    base = network(x, t, **options).sample
    adapter = QualityAdapter(network, table())
    adapter.eval().condition(torch.tensor([0.5, -0.5]))
    output = network(x, t, **options).sample
    assert torch.equal(output, base)
    output.square().sum().backward()
    assert all(branch.project.weight.grad.abs().sum() > 0 for branch in adapter.branches)
    wake(adapter)
    adapter.condition(torch.tensor([0.5, -0.5]))
    assert not torch.equal(network(x, t, **options).sample, base)


def test_the_gradient_equals_finite_differences_under_gradient_checkpointing(sd):
    """Two calls before one backward pass: each block is computed again with the quality of its own call."""
    unet = sd[0].unet.requires_grad_(False).double()
    adapter = wake(QualityAdapter(unet, table())).double().eval()
    x, text = torch.randn(2, 4, 8, 8).double(), torch.randn(2, 4, 16).double()

    def loss() -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for q in (0.5, -0.7):
            adapter.condition(torch.tensor([q, q / 2]))
            total = total + unet(x, 5, text).sample.square().mean() * (1 + q)
        return total

    unet.enable_gradient_checkpointing()
    unet.train()
    weight = adapter.projector.project[0].weight
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn_like(weight)
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight += sign * 1e-5 * direction
            values.append(loss())
            weight -= sign * 1e-5 * direction
    expected = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), expected, rtol=1e-4, atol=1e-10)


def test_a_reward_through_a_pipeline_is_recomputed_with_its_quality(sd):
    pipe, call = sd
    pipe.unet.requires_grad_(False)
    adapter = wake(QualityAdapter(pipe.unet, table()))
    gradients = []
    for checkpoint in (True, False):
        with adapter.quality(1.0), grad_last_steps(pipe, k=1, checkpoint=checkpoint):
            images = pipe(**call, **tiny.options_of_sample()).images
        loss = tiny.reward(images)  # outside of the block, where the dial is off
        gradients.append(torch.autograd.grad(loss, list(adapter.parameters()), allow_unused=True))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-8)
    assert sum(float(a.abs().sum()) for a in gradients[0]) > 0


def test_dropping_has_its_own_schedule_and_random_state(sd):
    adapter = QualityAdapter(sd[0].unet, table(), drop=(0.1, 0.2, 0.3))
    state = torch.get_rng_state()
    text = adapter.condition(torch.zeros(20000))
    gone = adapter.dial.next.q[:, 0].isnan()
    shares = [float(rows.float().mean()) for rows in (gone & ~text, text & ~gone, text & gone)]
    assert shares == pytest.approx([0.1, 0.2, 0.3], abs=0.015)
    assert torch.equal(torch.get_rng_state(), state)
    assert not adapter.eval().condition(torch.zeros(100)).any()
    assert not adapter.dial.next.q.isnan().any()


def test_several_scores_and_missing_ones(sd):
    values = torch.stack([DRAWN[:, 0], DRAWN.flip(0)[:, 0]], 1)
    values[3, 1] = torch.nan
    tables = [table(values[:, :1], "niqe", False), table(values[:, 1:], "sharpness")]
    with pytest.warns(UserWarning, match="1 of 20 images lack a score"):
        adapter = QualityAdapter(sd[0].unet, tables)
    q = adapter.of_images(tables, ["3.png", "4.png", "3.png"])
    assert q.shape == (3, 2)
    assert q[:, 1].isnan().tolist() == [True, False, True]
    goodness = -values[:, 0].double()
    assert float(q[0, 0]) == pytest.approx(float((goodness[3] - goodness.mean()) / goodness.std()), abs=1e-5)
    with adapter.quality({"niqe": -1, "sharpness": +1.2}):
        assert adapter.dial.now.q.tolist() == [[-1.0, pytest.approx(1.2)]]
    with adapter.quality({"sharpness": 1}):
        assert adapter.dial.now.q.isnan().tolist() == [[True, False]]
    adapter.condition(q)
    adapter.encode(q).sum().backward()
    with pytest.raises(ValueError, match=r"knows the scores \['niqe', 'sharpness'\], got \['contrast'\]"):
        adapter.quality({"contrast": 1.0}).__enter__()


def test_bf16_weights_and_autocast(sd):
    unet = sd[0].unet.requires_grad_(False).to(torch.bfloat16)
    adapter = wake(QualityAdapter(unet, table()))
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    x, text = torch.randn(2, 4, 8, 8).bfloat16(), torch.randn(2, 4, 16).bfloat16()
    adapter.condition(torch.tensor([1.0, -1.0]))
    output = unet(x, 5, text).sample
    output.float().square().mean().backward()
    assert output.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapter.parameters())
    plain = wake(QualityAdapter(tiny.stable_diffusion()[0].unet, table()))
    plain.condition(torch.tensor([1.0, -1.0]))
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(plain.denoiser(x.float(), 5, text.float()).sample.isfinite().all())


def test_lora_beside_it(sd):
    pytest.importorskip("peft")
    pipe, call = sd
    parameters = inject_lora(pipe.unet, rank=2, targets=["to_q", "to_k", "to_v", "to_out.0"])
    adapter = wake(QualityAdapter(pipe.unet, table()))
    layer = pipe.unet.get_submodule(adapter.places.names[0])
    assert torch.equal(adapter.branches[0].to_k.weight, layer.to_k.base_layer.weight)
    assert {id(p) for p in parameters}.isdisjoint(id(p) for p in adapter.parameters())
    optimizer = torch.optim.AdamW([*parameters, *adapter.parameters()], lr=0.1)
    adapter.eval()
    for _ in range(2):
        adapter.condition(torch.tensor([1.0, -1.0]))
        pipe.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 4, 16)).sample.square().mean().backward()
        assert all(p.grad is not None for p in [*parameters, *adapter.parameters()])
        optimizer.step()
    with adapter.quality(1.0):
        both = tiny.sample(pipe, call)
    assert not torch.equal(tiny.sample(pipe, call), both)


# Files


@pytest.mark.parametrize("options", [{}, {"encoding": 3, "hidden": True, "tokens": 4}, {"init": "published"},
                                     {"form": "embedding"}])  # fmt: skip
def test_save_load_and_the_same_images(sd, tmp_path, options):
    pipe, call = sd
    adapter = wake(QualityAdapter(pipe.unet, table(mark="abc"), **options))
    adapter.save(tmp_path / "dial.safetensors")
    with adapter.quality(1.0, negative=0.5):
        expected = tiny.sample(pipe, call)
    other, _ = tiny.stable_diffusion()
    loaded = QualityAdapter.load(tmp_path / "dial.safetensors", other.unet, scores=table(mark="abc"))
    assert not loaded.training
    with loaded.quality(1.0, negative=0.5):
        assert torch.equal(tiny.sample(other, call), expected)
    assert loaded.scores.facts() == adapter.scores.facts()
    assert loaded.scores.fingerprints == ("abc",)
    assert torch.equal(loaded.scores.mean, DRAWN.double().mean(0).float())
    assert torch.allclose(loaded.scores.deviation, DRAWN.std(0))


def test_files_of_other_scorers_networks_and_formats_are_refused(sd, tmp_path):
    path = tmp_path / "dial.safetensors"
    adapter = QualityAdapter(sd[0].unet, table(mark="abc"))
    adapter.save(path)
    other, _ = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="another bright"):
        QualityAdapter.load(path, other.unet, scores=table(mark="xyz"))
    with pytest.raises(ValueError, match=r"trained on \['bright'\]"):
        QualityAdapter.load(path, other.unet, scores=table(name="niqe"))
    with pytest.raises(ValueError, match="no cross-attention"):
        QualityAdapter.load(path, plain_unet())
    small = tiny.unet(transformer_layers_per_block=2)
    with pytest.raises(ValueError, match="trained on another network"):
        QualityAdapter.load(path, small)
    QualityAdapter(small, table())  # nothing has stayed on it
    with pytest.raises(ValueError, match="does not exist"):
        QualityAdapter.load(tmp_path / "no.safetensors", other.unet)
    table_file = tmp_path / "hooks.safetensors"
    from qa_hooks.integrations.hook_state import save_state

    save_state({"a": torch.ones(1)}, table_file)
    with pytest.raises(ValueError, match=r"its format is 'qa_hooks\.state'"):
        QualityAdapter.load(table_file, other.unet)
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(str(path), "pt") as file:
        tensors, header = {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata())  # noqa: SIM118
    for change in ({"tokens": 10**9}, {"tokens": "x"}, {"form": "sideways"}, {"drop": [3, 3, 3]}, {"drop": 1}):
        facts = json.loads(header["facts"])
        facts["options"] |= change
        save_file(tensors, path, {**header, "facts": json.dumps(facts)})
        with pytest.raises(ValueError, match=r"quality adapter|form must|drop must"):
            QualityAdapter.load(path, other.unet)
    save_file({**tensors, "projector.norm.bias": torch.full((16,), torch.nan)}, path, header)
    with pytest.raises(ValueError, match="not finite"):
        QualityAdapter.load(path, other.unet)


def test_resuming_goes_on_with_the_same_draws_and_refuses_other_scorers(sd):
    adapter = wake(QualityAdapter(sd[0].unet, table(mark="a"), drop=(0.5, 0, 0)))
    adapter.condition(torch.zeros(50))
    state = adapter.state_dict()
    adapter.condition(torch.zeros(50))
    expected = adapter.dial.next.q
    again = QualityAdapter(tiny.stable_diffusion()[0].unet, table(mark="a"), drop=(0.5, 0, 0))
    again.load_state_dict(state)
    again.condition(torch.zeros(50))
    assert torch.equal(again.dial.next.q.isnan(), expected.isnan())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), adapter.parameters(), strict=True))
    for wrong, message in (
        (table(mark="b"), "another bright"),
        (table(name="niqe"), "the run to be resumed had"),
        (table(2 * DRAWN, mark="a"), "other means or deviations"),
    ):
        fresh = QualityAdapter(tiny.stable_diffusion()[0].unet, wrong)
        with pytest.raises(ValueError, match=message):
            fresh.load_state_dict(state)


# The reference variant


def test_reference_images_in_place_of_scores(sd, tmp_path):
    pipe, call = sd
    images = torch.rand(30, 3, 16, 16)
    extractor = create_extractor({"type": "random", "width": 2})
    adapter = wake(QualityAdapter(pipe.unet, extractor, images=images))
    q = adapter.measure(images)
    assert q.mean(0).abs().max() < 1e-4
    seen = []
    handle = adapter.projector.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()))
    with adapter.quality(adapter.measure(images[:1]), negative=0.5):
        turned = tiny.sample(pipe, call, steps=1)
    with adapter.quality(adapter.measure(images[:1])):
        assert not torch.equal(tiny.sample(pipe, call, steps=1), turned)
    handle.remove()
    torch.testing.assert_close(seen[0][:2], -0.5 * q[:1].expand(2, -1))  # and not the target's own, which would cancel
    torch.testing.assert_close(seen[0][2:], q[:1].expand(2, -1))
    assert seen[1][:2].isnan().all()
    with pytest.raises(ValueError, match="trained on reference images"):
        adapter.quality(1.0).__enter__()
    adapter.save(tmp_path / "a.safetensors")
    other, _ = tiny.stable_diffusion()
    loaded = QualityAdapter.load(tmp_path / "a.safetensors", other.unet, scores=extractor)
    torch.testing.assert_close(loaded.measure(images), q)


def test_scorers_measure_the_training_images_once(sd):
    images = torch.rand(30, 3, 8, 8)
    adapter = QualityAdapter(sd[0].unet, brightness(), images=images)
    goodness = images.mean((1, 2, 3))
    torch.testing.assert_close(
        adapter.measure(images)[:, 0], (goodness - goodness.mean()) / goodness.std(), rtol=1e-3, atol=1e-4
    )
    assert adapter.scores.fingerprints == (brightness().fingerprint,)
    with pytest.raises(ValueError, match="give images="):
        QualityAdapter(plain_unet(), brightness())
    with pytest.raises(ValueError, match="made of tables"):
        QualityAdapter(plain_unet(), table()).measure(images)


# Bad input


def test_q_outside_the_training_images_warns_once(sd):
    adapter = QualityAdapter(sd[0].unet, table())
    low, high = adapter.levels()[0], adapter.levels()[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for level in (low, high):
            with adapter.quality(level):
                pass
    with pytest.warns(UserWarning, match=r"q = \+7 of bright lies outside the training images"), adapter.quality(7):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with adapter.quality(8):
            pass


def test_raw_scores_in_a_training_loop_are_told_once():
    raw = 60 + 10 * DRAWN  # a score of [0, 100], whose q lies between -2 and 2
    adapter = QualityAdapter(plain_unet(), table(raw, mark="a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.condition(adapter.of_images(table(raw, mark="a")))
        adapter.condition(raw)  # looked at in the first step alone
    adapter = QualityAdapter(plain_unet(), table(raw, mark="a"))
    with pytest.warns(UserWarning, match=r"bright lies far outside .* raw scores where q is expected, .*of_images"):
        adapter.condition(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.condition(raw)
        reference = QualityAdapter(plain_unet(), create_extractor({"type": "random", "width": 2}),
                                   images=torch.rand(9, 3, 8, 8))  # fmt: skip
        reference.condition(100 * torch.ones(2, len(reference.scores.mean)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.full((20, 1), 3.0), r"'bright' is constant \(3\)"),
        (torch.full((20, 1), torch.nan), "fewer than two of 20 images have a finite score 'bright'"),
        (DRAWN[:1], "fewer than two of 1 image"),
        (torch.stack([DRAWN[:, 0], DRAWN[:, 0]], 1), "2 candidates"),
    ],
)
def test_scores_without_information_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        QualityAdapter(plain_unet(), table(values))


def test_tables_of_the_opposite_direction_are_refused_and_another_scale_is_said(tmp_path):
    adapter = QualityAdapter(plain_unet(), table())
    adapter.save(tmp_path / "dial.safetensors")
    turned, scaled, compressed = table(higher=False), table(100 + 100 * DRAWN), table(DRAWN / 100)

    def load(scores):
        return QualityAdapter.load(tmp_path / "dial.safetensors", plain_unet(), scores=scores)

    for use in (adapter.of_images, load):
        with pytest.raises(ValueError, match="bright with higher_is_better=False, and the adapter was trained with"):
            use(turned)
        with pytest.warns(UserWarning, match="unlike .* training images: bright lies far outside") as said:
            use(scaled)
        assert len(said) == 1
        with pytest.warns(UserWarning, match="bright has a deviation of 0.01 of the training images'"):
            use(compressed)  # inside the range of the dial, where it is all but one quality
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(table())
    marked = QualityAdapter(plain_unet(), table(mark="a"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter.of_images(table(DRAWN / 100), ["0.png", "1.png"])  # of two images a deviation says nothing
        marked.of_images(table(100 + 100 * DRAWN, mark="a"))


def test_tables_that_do_not_fit_are_refused():
    adapter = QualityAdapter(plain_unet(), table(mark="a"))
    with pytest.raises(ValueError, match="keys is empty"):
        adapter.of_images(table(mark="a"), [])
    with pytest.raises(ValueError, match=r"lacks 2 of 3 images: .*new\.png"):
        adapter.of_images(table(mark="a"), ["0.png", "new.png", "newer.png"])
    with pytest.raises(ValueError, match=r"the tables hold the scores \['niqe'\]"):
        adapter.of_images(table(name="niqe"))
    with pytest.raises(ValueError, match="another bright"):
        adapter.of_images(table(mark="b"))
    with pytest.raises(ValueError, match="repeat others"):
        QualityTable(["a", "a"], torch.ones(2, 1), "bright", True)
    with pytest.raises(ValueError, match="two scores have one name"):
        QualityAdapter(plain_unet(), [table(), table()])
    for wrong in (None, "niqe", [], 3.0, [table(), brightness()]):
        with pytest.raises(TypeError, match="scores must be a QualityTable"):
            QualityAdapter(plain_unet(), wrong)


@pytest.mark.parametrize(
    ("q", "options", "kind", "message"),
    [
        ("high", {}, TypeError, "q must be a number"),
        (True, {}, TypeError, "q must be a number"),
        (math.nan, {}, ValueError, "not a number"),
        (math.inf, {}, ValueError, "infinite"),
        ({}, {}, ValueError, "got none"),
        ({"bright": math.nan}, {}, ValueError, "leave out a score"),
        ({"bright": None}, {}, TypeError, "or one for each image, got None"),
        ({"bright": torch.zeros(2, 2)}, {}, ValueError, r"got {'bright': \(2, 2\)}"),
        ({1: 2.0, "a": 1.0}, {}, ValueError, r"got \[1, 'a'\]"),
        ([None, 1.0], {}, TypeError, r"got \[None, 1.0\]"),
        (["a"], {}, TypeError, r"got \['a'\]"),
        (torch.tensor([True]), {}, TypeError, "q must be a number"),
        (torch.zeros(2, 3), {}, ValueError, r"\(n, 1\) or \(n,\), a row for each image"),
        (torch.zeros(0), {}, ValueError, r"\(n, 1\) or \(n,\), a row for each image"),
        (1.0, {"guidance": "yes"}, ValueError, "guidance must be True, False or None"),
        (1.0, {"scale": -1.0}, ValueError, "scale must be"),
        (1.0, {"scale": math.nan}, ValueError, "scale must be"),
        (1.0, {"scale": 0.0, "negative": 0.5}, ValueError, "scale=0 switches it off"),
        (1.0, {"negative": -0.5}, ValueError, "negative must be"),
        (None, {"negative": 0.5}, ValueError, "needs a q to turn round"),
        (1.0, {"negative": 0.5, "guidance": False}, ValueError, "there are none"),
    ],
)
def test_settings_without_sense_are_refused(q, options, kind, message):
    adapter = QualityAdapter(plain_unet(), table())
    with pytest.raises(kind, match=message):
        adapter.quality(q, **options).__enter__()


def test_negative_guidance_without_guidance_is_told_once():
    network = plain_unet()
    adapter = QualityAdapter(network, table())
    with torch.no_grad(), adapter.quality(1.0, negative=0.5), pytest.warns(UserWarning, match="no effect here"):
        network(torch.randn(3, 1, 8, 8), 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "sideways"}, "form must be"),
        ({"init": "zero"}, "init one of"),
        ({"tokens": 0}, "tokens must be"),
        ({"encoding": 0}, "encoding must be"),
        ({"drop": (0.5, 0.5, 0.5)}, "at most 1"),
        ({"drop": 0.1}, "three probabilities"),
        ({"drop": (0.1, 0.1)}, "drop"),
        ({"init": "published"}, "cross-attention"),
        ({"form": "attention"}, 'use form="embedding"'),
    ],
)
def test_options_without_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QualityAdapter(plain_unet(), table(), **options)


def test_networks_and_processors_that_it_cannot_stand_beside():
    with pytest.raises(ValueError, match="Sequential has no place for the quality"):
        QualityAdapter(nn.Sequential(nn.Linear(2, 2)), table())
    with pytest.raises(TypeError, match="must be a network"):
        QualityAdapter(tiny.stable_diffusion()[0], table())
    pipe, call = tiny.stable_diffusion()
    adapter = QualityAdapter(pipe.unet, table())
    with pytest.raises(ValueError, match="has a quality adapter already"):
        QualityAdapter(pipe.unet, table())
    network = plain_unet()
    _ = QualityAdapter(network, table())
    with pytest.raises(ValueError, match="has a quality adapter already"):
        QualityAdapter(network, table())
    names = [f"{name}.processor" for name in adapter.places.names]
    ip = {
        name: IPAdapterAttnProcessor2_0(16, 16) if name in names else AttnProcessor2_0()
        for name in pipe.unet.attn_processors
    }
    pipe.unet.set_attn_processor(ip)  # as load_ip_adapter does, after the adapter was attached
    with adapter.quality(1.0), pytest.raises(ValueError, match=r"IPAdapterAttnProcessor2_0.*unload_ip_adapter"):
        tiny.sample(pipe, call)
    with pytest.raises(ValueError, match=r"IPAdapterAttnProcessor2_0.*unload_ip_adapter"):
        QualityAdapter(pipe.unet, table())
    sd3, _ = tiny.stable_diffusion_3()
    with pytest.raises(ValueError, match=r'SD3Transformer2DModel has no cross-attention.*form="embedding"'):
        QualityAdapter(sd3.transformer, table(), form="attention")


def test_rows_that_do_not_match_are_refused(sd):
    pipe, call = sd
    adapter = QualityAdapter(pipe.unet, table())
    adapter.condition(torch.zeros(3))
    with pytest.raises(ValueError, match=r"condition\(\) was given 3 rows, and the denoiser was called with 2"):
        pipe.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 4, 16))
    with adapter.quality(torch.zeros(3)), pytest.raises(ValueError, match=r"quality\(\) was given 3 rows"):
        tiny.sample(pipe, call)
    flux, options = tiny.flux()
    beside = QualityAdapter(flux.transformer, table())
    true = {"true_cfg_scale": 3.0, "negative_prompt_embeds": options["prompt_embeds"],
            "negative_pooled_prompt_embeds": options["pooled_prompt_embeds"]}  # fmt: skip
    with beside.quality(1.0), pytest.raises(ValueError, match="true_cfg_scale=1"):
        tiny.sample(flux, {**options, **true})
    network = dit().train()
    inside = QualityAdapter(network, table())
    network.enable_gradient_checkpointing()
    inside.condition(torch.zeros(2))
    with pytest.raises(ValueError, match="disable_gradient_checkpointing"):
        network(torch.randn(2, 1, 8, 8), torch.tensor([5, 5]), class_labels=torch.tensor([1, 2]))


def test_units_can_be_given():
    scores = QualityScores.of(torch.tensor([[1.0], [3.0]]), ["mine"], [True])
    assert QualityAdapter(plain_unet(), scores).scores.mean.tolist() == [2.0]
    assert F.mse_loss(scores.standardise(torch.tensor([[2.0]])), torch.zeros(1, 1)) == 0


def test_numbers_of_numpy_and_a_detached_adapter():
    import numpy as np

    adapter = QualityAdapter(plain_unet(), table())
    for q in (np.float32(1.0), np.array(1.0), torch.tensor(1.0), [1.0], np.array([1.0])):
        with adapter.quality(q):
            assert adapter.dial.now.q.tolist() == [[1.0]]
    with pytest.raises(TypeError, match=r"list of the images' keys, got the text '0\.png'"):
        adapter.of_images(table(), "0.png")
    adapter.detach()
    for use in (lambda: adapter.condition(torch.zeros(1)), lambda: adapter.quality(1.0).__enter__()):
        with pytest.raises(ValueError, match="has been detached"):
            use()


def test_it_follows_a_pipeline_that_is_moved_later():
    network = plain_unet()
    adapter = QualityAdapter(network, table())
    parameters = list(adapter.parameters())
    network.to("meta")
    adapter.eval().condition(torch.zeros(2))
    output = network(torch.zeros(2, 1, 8, 8, device="meta"), torch.zeros(2, device="meta")).sample
    assert output.device.type == "meta"
    assert {p.device.type for p in adapter.parameters()} == {"meta"}
    assert len(parameters) == len(list(adapter.parameters()))


def test_a_compiled_network_takes_it(sd):
    unet = sd[0].unet
    adapter = wake(QualityAdapter(unet, table()))
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 16)
    with torch.no_grad(), adapter.quality(0.5, guidance=False):
        expected = unet(x, 5, text).sample
        compiled = torch.compile(unet, backend="eager")
        torch.testing.assert_close(compiled(x, 5, text).sample, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), adapter.quality(-0.5, guidance=False):
        lower = unet(x, 5, text).sample
        torch.testing.assert_close(compiled(x, 5, text).sample, lower, rtol=1e-4, atol=1e-5)
    assert not torch.equal(lower, expected)
