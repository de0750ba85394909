"""The dial beside what else Diffusers does to a network: copies, other processors, other calls, other pipelines."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, UNet2DModel
from torch import nn

from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers import GradientGuidance, QualityAdapter
from qa_hooks.integrations.diffusers.quality.attention import QualityProcessor
from qa_hooks.scorers import FunctionScorer

DRAWN = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


def table(column: int = 0, name: str = "bright") -> QualityTable:
    return QualityTable([f"{index}.png" for index in range(20)], DRAWN[:, column : column + 1], name, True)


def wake(adapter: QualityAdapter) -> QualityAdapter:
    """Weights as after some training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.branches.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return adapter.eval()


def unconditional() -> nn.Module:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    return UNet2DModel(8, 4, 4, block_out_channels=(8,), layers_per_block=1, **kinds).eval()


def call_of(network: nn.Module) -> torch.Tensor:
    x, text = torch.ones(2, 4, 8, 8), torch.ones(2, 4, 16)
    with torch.no_grad():
        output = network(x, 5) if isinstance(network, UNet2DModel) else network(x, 5, text)
    return output.sample


@pytest.mark.parametrize("make", [tiny.unet, unconditional])
def test_a_copy_of_the_network_is_turned_by_the_same_dial(make):
    network = make()
    adapter = wake(QualityAdapter(network, table()))
    average = copy.deepcopy(network)  # as an average of weights is made
    base = call_of(average)
    with adapter.quality(1.0, guidance=False):
        assert torch.equal(call_of(average), call_of(network))
        assert (call_of(average) - base).abs().max() > 1e-3
        with torch.no_grad():
            for parameter in adapter.branches.parameters():  # trained on, after the copy was made
                parameter.mul_(1.1)
        assert torch.equal(call_of(average), call_of(network))
    assert torch.equal(call_of(average), base)
    adapter.detach()
    another = QualityAdapter(average, table(), seed=1)  # the copy is free again
    with another.quality(1.0, guidance=False):
        assert torch.equal(call_of(average), base)


@pytest.mark.parametrize("make", [tiny.unet, unconditional])
def test_a_copy_of_the_adapter_has_a_network_of_its_own(make):
    network = make()
    base = call_of(network)
    adapter = wake(QualityAdapter(network, table()))
    for own in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert own.denoiser is not network
        with own.quality(1.0, guidance=False):
            turned = call_of(own.denoiser)
            assert torch.equal(call_of(network), base)
        with adapter.quality(1.0, guidance=False):
            assert torch.equal(call_of(network), turned)
            assert torch.equal(call_of(own.denoiser), base)


def test_diffusers_sees_the_processors_that_were_there():
    """`set_default_attn_processor` and `unload_ip_adapter` ask for classes and make new objects of them."""
    pipe, call = tiny.stable_diffusion()
    adapter = wake(QualityAdapter(pipe.unet, table()))
    with adapter.quality(1.0):
        turned = tiny.sample(pipe, call)
    for change in (pipe.unet.set_default_attn_processor, pipe.unload_ip_adapter, pipe.fuse_qkv_projections,
                   pipe.unfuse_qkv_projections, lambda: pipe.enable_attention_slicing(1),
                   pipe.disable_attention_slicing):  # fmt: skip
        change()
        with adapter.quality(1.0):
            torch.testing.assert_close(tiny.sample(pipe, call), turned, rtol=1e-4, atol=1e-5)
    assert any(isinstance(part, QualityProcessor) for part in pipe.unet.attn_processors.values())


def test_a_controlnet_beside_it_is_left_alone():
    pipe, call = tiny.stable_diffusion()
    adapter = wake(QualityAdapter(pipe.unet, table()))
    control = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16)).eval()
    assert not any(isinstance(part, QualityProcessor) for part in control.attn_processors.values())
    steered = StableDiffusionControlNetPipeline(
        pipe.vae, None, None, pipe.unet, control, pipe.scheduler, None, None, requires_safety_checker=False
    )
    steered.set_progress_bar_config(disable=True)
    image = torch.rand(2, 3, tiny.SIDE, tiny.SIDE, generator=torch.Generator().manual_seed(0))
    base = tiny.sample(steered, call, image=image)
    with adapter.quality([1.0, -1.0]):
        assert (tiny.sample(steered, call, image=image) - base).abs().max() > 1e-3
    assert torch.equal(tiny.sample(steered, call, image=image), base)


def test_options_of_the_call_may_stand_in_their_place():
    """`cross_attention_kwargs` is the seventh argument of the network."""
    network = tiny.unet()
    adapter = wake(QualityAdapter(network, table()))
    x, text = torch.ones(2, 4, 8, 8), torch.ones(2, 4, 16)
    with torch.no_grad(), adapter.quality(1.0, guidance=False):
        named = network(x, 5, text, cross_attention_kwargs={"scale": 0.5}).sample
        assert torch.equal(network(x, 5, text, None, None, None, {"scale": 0.5}).sample, named)


def test_two_adapters_of_different_forms_are_refused_in_either_order():
    for first, second in (("attention", "embedding"), ("embedding", "attention")):
        network = tiny.unet()
        kept = QualityAdapter(network, table(), form=first)
        with pytest.raises(ValueError, match="has a quality adapter already"):
            QualityAdapter(network, table(), form=second)
        kept.detach()
        QualityAdapter(network, table(), form=second)


def test_a_condition_that_no_call_has_used_changes_no_sampling():
    pipe, call = tiny.stable_diffusion()
    adapter = wake(QualityAdapter(pipe.unet, table()))
    base = tiny.sample(pipe, call)
    with adapter.quality(1.0):
        turned = tiny.sample(pipe, call)
    adapter.condition(torch.full((4,), -1.0))  # a step that was given up before its network was called
    with adapter.quality(1.0):
        assert torch.equal(tiny.sample(pipe, call), turned)
    adapter.condition(torch.full((4,), -1.0))
    with pytest.raises(ValueError, match=r"condition\(\) sets one call .* StableDiffusionPipeline makes many"):
        tiny.sample(pipe, call)
    assert torch.equal(tiny.sample(pipe, call), base)


def test_several_scores_take_numbers_by_name_for_each_image():
    adapter = QualityAdapter(tiny.unet(), [table(0, "niqe"), table(1, "sharpness")])
    with adapter.quality({"niqe": [1.0, -1.0], "sharpness": 0.5}):
        assert adapter.dial.now.q.tolist() == [[1.0, 0.5], [-1.0, 0.5]]
    for q in ([1.0, -1.0], torch.zeros(3)):  # two images, or two scores?
        with pytest.raises(ValueError, match=r"\(n, 2\), a row for each image, or numbers by name"):
            adapter.quality(q).__enter__()
        with pytest.raises(ValueError, match=r"\(n, 2\)"):
            adapter.condition(torch.as_tensor(q))
    with pytest.raises(ValueError, match=r"one for each image, got {'niqe': \(2,\), 'sharpness': \(3,\)}"):
        adapter.quality({"niqe": [1.0, 2.0], "sharpness": [1.0, 2.0, 3.0]}).__enter__()


def test_the_third_call_of_skip_layer_guidance_is_one_with_the_prompt():
    pipe, call = tiny.stable_diffusion_3()
    adapter = wake(QualityAdapter(pipe.transformer, table()))
    seen: list[torch.Tensor] = []
    encode = adapter.encode
    adapter.encode = lambda q: (seen.append(q), encode(q))[1]
    options = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    with adapter.quality([1.0, -1.0]):
        tiny.sample(pipe, call, steps=2, **options)
    skipped = [q for q in seen if len(q) == 2]
    assert skipped
    assert all(q.flatten().tolist() == [1.0, -1.0] for q in skipped)
    assert all(q[:2].isnan().all() for q in seen if len(q) == 4)


def test_guidance_in_two_calls_is_refused():
    """A pipeline that guides, and calls its network with the rows of one kind alone."""
    from diffusers import DiffusionPipeline

    class Twice(DiffusionPipeline):
        do_classifier_free_guidance = True

        def __init__(self, unet: nn.Module) -> None:
            super().__init__()
            self.register_modules(unet=unet)

        def __call__(self) -> torch.Tensor:
            latents = torch.ones(2, 4, 8, 8)
            return self.unet(latents, 5).sample - self.unet(latents, 5).sample

    network = unconditional()
    adapter = wake(QualityAdapter(network, table()))
    with torch.no_grad(), adapter.quality(1.0), pytest.raises(ValueError, match="Twice calls its network once with"):
        Twice(network)()
    with torch.no_grad(), adapter.quality(1.0, guidance=False):
        assert not Twice(network)().any()


def test_a_file_or_a_run_of_another_kind_is_named(tmp_path):
    adapter = QualityAdapter(tiny.unet(), table())
    adapter.save(path := tmp_path / "dial.safetensors")
    with pytest.raises(TypeError, match="must be a network"):
        QualityAdapter.load(path, tiny.stable_diffusion()[0])
    with pytest.raises(ValueError, match=r"dial.safetensors \(form='attention'\) cannot be attached: UNet2DModel"):
        QualityAdapter.load(path, unconditional())
    larger = QualityAdapter(tiny.unet(), table(), tokens=4, drop=(0.0, 0.0, 0.0), seed=5)
    with pytest.raises(ValueError, match="had an adapter with tokens=2, not 4"):
        larger.load_state_dict(adapter.state_dict())
    other = QualityAdapter(tiny.unet(), table(), drop=(0.0, 0.0, 0.0), seed=5)  # which may change
    other.load_state_dict(adapter.state_dict())
    with pytest.raises(TypeError, match=r"QualityTable.load\(path\) reads a file"):
        QualityAdapter(tiny.unet(), str(path))


def test_gradient_guidance_leaves_alone_what_it_cannot_follow():
    flat = FunctionScorer(lambda x: (0 * x.flatten(1).var(1)).sqrt(), name="flat", higher_is_better=True)
    pipe, call = tiny.stable_diffusion()
    base = tiny.sample(pipe, call)
    with pytest.warns(UserWarning, match="flat has a gradient that is not finite"), GradientGuidance(flat).around(pipe):
        assert torch.equal(tiny.sample(pipe, call), base)
    scorer = FunctionScorer(lambda x: 10 * x.flatten(1).var(1), name="contrast", higher_is_better=True)
    for name in ("sdxl", "sd3"):
        pipe, call = tiny.PIPELINES[name]()
        base = scorer(tiny.sample(pipe, call))
        with GradientGuidance(scorer, 20.0).around(pipe):
            assert (scorer(tiny.sample(pipe, call)) > base).all()
    flux, call = tiny.flux()
    with pytest.raises(ValueError, match="as Flux, whose latents are packed"), GradientGuidance(scorer).around(flux):
        tiny.sample(flux, call)
