"""What is trained beside the denoiser gets the gradient of the steps that count, or is named in a warning."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    ImagePipelineOutput,
    StableDiffusionControlNetPipeline,
    UNet2DModel,
)
from torch import nn

from qa_hooks.integrations.diffusers import grad_last_steps, reduce_gradients

pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning")]


def gradient(run: Any, trained: list[torch.Tensor]) -> list[torch.Tensor]:
    for p in trained:
        p.grad = None
    tiny.reward(run().images).backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]


def compare(pipe: Any, call: dict[str, Any], trained: list[torch.Tensor], k: int, networks: list[nn.Module]) -> None:
    """Ours against the pipeline's own code, with autograd on from the last k calls of all these networks on."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with grad_last_steps(pipe, k):
            found = gradient(lambda: pipe(**call, **tiny.options_of_sample()), trained)
    own = inspect.unwrap(type(pipe).__call__)
    with contextlib.ExitStack() as stack:
        for network in networks:
            stack.enter_context(tiny.last_calls(network, 4, k))
        expected = gradient(lambda: own(pipe, **call, **tiny.options_of_sample()), trained)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert sum(float(part.norm()) for part in expected) > 0


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_learned_embedding(k, guidance):
    pipe, call = tiny.stable_diffusion()
    learned = nn.Parameter(call["prompt_embeds"].clone())
    compare(pipe, {**call, "prompt_embeds": learned, "guidance_scale": guidance}, [learned], k, [pipe.unet])


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_control_network(k, frozen):
    pipe, call = tiny.stable_diffusion()
    torch.manual_seed(1)
    blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    control = ControlNetModel(
        **blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        conditioning_embedding_out_channels=(8, 8),
    ).eval()
    with torch.no_grad():
        for p in control.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    pipe.unet.requires_grad_(not frozen)
    both = StableDiffusionControlNetPipeline(**pipe.components, controlnet=control, requires_safety_checker=False)
    both.set_progress_bar_config(disable=True)
    call = {**call, "image": torch.rand(tiny.BATCH, 3, tiny.SIDE, tiny.SIDE)}
    compare(both, call, list(control.parameters()), k, [pipe.unet, control])


class TwoStages(DiffusionPipeline):
    """One network for the first step, another for the others, and one that nobody calls."""

    def __init__(self, transformer: Any, transformer_2: Any, spare: Any, scheduler: Any) -> None:
        super().__init__()
        parts = {"transformer": transformer, "transformer_2": transformer_2, "spare": spare}
        self.register_modules(**parts, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, generator=None, output_type="pt", num_inference_steps=4, height=0, width=0):
        x = torch.randn(2, 3, 8, 8, generator=generator)
        self.scheduler.set_timesteps(num_inference_steps)
        for step, t in enumerate(self.scheduler.timesteps):
            network = self.transformer_2 if step else self.transformer
            x = self.scheduler.step(network(x, t).sample, t, x).prev_sample
        return ImagePipelineOutput(images=(x / 2 + 0.5).clamp(0, 1))


def two_stages() -> TwoStages:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    networks = [UNet2DModel(**kinds, **sizes).eval() for _ in range(2)]
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    return TwoStages(*networks, nn.Linear(1, 1).requires_grad_(False), scheduler)


def test_a_network_of_the_early_steps():
    pipe = two_stages()
    early, late = list(pipe.transformer.parameters()), list(pipe.transformer_2.parameters())
    missing = r"get none from the last k=1 steps: \d+ in transformer, such as"
    with pytest.warns(UserWarning, match=missing), grad_last_steps(pipe, 1):
        found = gradient(lambda: pipe(**tiny.options_of_sample()), early + late)
    assert not any(part.any() for part in found[: len(early)])
    assert any(part.any() for part in found[len(early) :])
    pipe.transformer_2.requires_grad_(False)
    for k in (1, 3):
        untrained = rf"the last k={k} steps call transformer_2 \(UNet2DModel\), where nothing is trained"
        with pytest.raises(RuntimeError, match=untrained), grad_last_steps(pipe, k):
            pipe(**tiny.options_of_sample())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with grad_last_steps(pipe, 4):
            found = gradient(lambda: pipe(**tiny.options_of_sample()), early)
    expected = gradient(lambda: inspect.unwrap(TwoStages.__call__)(pipe, **tiny.options_of_sample()), early)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_what_nobody_calls_is_named_once():
    pipe = two_stages()
    pipe.transformer.requires_grad_(False)
    pipe.spare.requires_grad_(True)
    missing = r"2 of \d+ tensors .* 2 in spare, such as 'spare\.weight'"
    with pytest.warns(UserWarning, match=missing), grad_last_steps(pipe, 1):
        pipe(**tiny.options_of_sample())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with grad_last_steps(pipe, 1):
            pipe(**tiny.options_of_sample())


def test_reducing_gradients_tells_of_those_that_are_missing():
    here, missing = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 4))
    here.square().sum().backward()
    with pytest.warns(UserWarning, match=r"1 of 2 .* number 1 of shape \(3, 4\)"):
        reduce_gradients([here, missing])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reduce_gradients([here])
