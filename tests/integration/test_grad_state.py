"""A denoiser call that is made again in the backward pass has the state of its own step, or says what has changed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DDIMScheduler, FirstBlockCacheConfig, StableDiffusionPAGPipeline, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import nn

from qa_hooks.integrations.diffusers import grad_last_steps, reward_sample
from qa_hooks.integrations.diffusers.denoiser_calls import CallRecorder, distance_to_base
from qa_hooks.integrations.diffusers.recompute import recomputed

pytest.importorskip("peft")
from qa_hooks.integrations.peft import inject_lora

pytestmark = [pytest.mark.filterwarnings("ignore")]


def with_adapter(network: nn.Module, spread: float = 0.1) -> list[nn.Parameter]:
    adapter = inject_lora(network, rank=2)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in adapter:
            p.copy_(spread * torch.randn(p.shape, generator=generator))
    return adapter


def gradient(images: torch.Tensor, adapter: list[nn.Parameter]) -> torch.Tensor:
    for p in adapter:
        p.grad = None
    tiny.reward(images).backward()
    return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in adapter])


def truth(pipe: Any, adapter: list[nn.Parameter], k: int, steps: int = 4, **call: Any) -> torch.Tensor:
    """The gradient of the pipeline's own code with autograd on from the last k calls on."""
    with tiny.last_calls(tiny.denoiser_of(pipe), steps, k):
        plain = inspect.unwrap(type(pipe).__call__)
        return gradient(plain(pipe, **call, **tiny.options_of_sample(steps=steps)).images, adapter)


def ours(pipe: Any, adapter: list[nn.Parameter], k: int, steps: int = 4, **call: Any) -> torch.Tensor:
    with grad_last_steps(pipe, k):
        images = pipe(**call, **tiny.options_of_sample(steps=steps)).images
    return gradient(images, adapter)  # after the pipeline has ended


@pytest.mark.parametrize("k", [1, 2])
def test_attention_processors_that_the_pipeline_puts_back(k):
    pipe, call = tiny.stable_diffusion()
    pag = StableDiffusionPAGPipeline(**pipe.components, requires_safety_checker=False, pag_applied_layers=["mid"])
    pag.set_progress_bar_config(disable=True)
    adapter = with_adapter(pag.unet)
    processors = dict(pag.unet.attn_processors)
    expected = truth(pag, adapter, k, **call, pag_scale=2.0)
    torch.testing.assert_close(ours(pag, adapter, k, **call, pag_scale=2.0), expected)
    assert expected.norm() > 0
    assert all(pag.unet.attn_processors[name] is kept for name, kept in processors.items())


@pytest.mark.parametrize("k", [1, 3])
def test_adapter_weights_set_in_each_step(k):
    pipe, call = tiny.stable_diffusion()
    adapter = with_adapter(pipe.unet)

    def schedule(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe.unet.set_adapters(["default"], [1.0 if step % 2 else 0.3])
        return values

    found = []
    for way in (truth, ours):
        pipe.unet.set_adapters(["default"], [1.0])
        found.append(way(pipe, adapter, k, **call, callback_on_step_end=schedule))
    torch.testing.assert_close(found[1], found[0])
    last = [module.scaling for module in pipe.unet.modules() if hasattr(module, "scaling")]
    pipe.unet.set_adapters(["default"], [1.0])
    full = [module.scaling for module in pipe.unet.modules() if hasattr(module, "scaling")]
    assert last == full  # the callback's last weight, 1.0, stands after the backward pass


def test_a_cache_that_lives_in_the_call():
    pipe, call = tiny.flux()
    adapter = with_adapter(pipe.transformer)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e-6))
    expected = truth(pipe, adapter, 1, **call)
    torch.testing.assert_close(ours(pipe, adapter, 1, **call), expected)


class Store:
    """Keys of an earlier call, emptied by the pipeline at its end."""

    def __init__(self) -> None:
        self.layers: list[torch.Tensor] = []


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor, t: int, store: Store) -> torch.Tensor:
        seen = store.layers[0] if store.layers else torch.zeros_like(x)
        store.layers = [x.detach()]
        return self.layer(x + seen).tanh()


def test_what_an_argument_holds_is_part_of_the_state():
    torch.manual_seed(0)
    network, start, found = Remembering(), torch.randn(2, 3), []
    for checkpoint in (False, True):
        network.zero_grad()
        store, x = Store(), start
        with grad_last_steps(network, 2, num_calls=3, checkpoint=checkpoint):
            for t in range(3):
                x = x - network(x, t, store)
        store.layers.clear()
        x.square().sum().backward()
        found.append(network.layer.weight.grad.clone())
    assert torch.equal(*found)


def test_a_list_that_the_network_empties_is_full_again():
    network, x = nn.Linear(3, 3), torch.randn(2, 3)

    def forward(x: torch.Tensor, extra: dict[str, list[torch.Tensor]]) -> torch.Tensor:
        return network(x + extra["residuals"].pop(0)).tanh()  # as Diffusers' UNets do with an adapter's features

    found = []
    for call in (forward, lambda *args: recomputed(network, forward, *args)):
        network.zero_grad()
        given = {"residuals": [torch.ones(2, 3)]}
        call(x, given).square().sum().backward()
        assert given == {"residuals": []}
        found.append(network.weight.grad.clone())
    assert torch.equal(*found)


def test_flags_and_hooks_of_a_part_are_those_of_the_call():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4)).eval()
    x, found = torch.randn(3, 4), []
    for change in (False, True):
        network.zero_grad()
        handle = network[0].register_forward_hook(lambda module, args, output: output * 2)
        output = recomputed(network, network.forward, x)
        handle.remove()
        if change:
            network.train()
        output.square().sum().backward()
        found.append(network[0].weight.grad.clone())
        assert network.training == change
        network.eval()
    assert torch.equal(*found)


@pytest.mark.parametrize("frozen", ["all", "the first", "none"])
def test_what_is_frozen_since_is_not_frozen_in_the_call(frozen):
    """As where another network is trained between sampling and backward."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.SiLU(), nn.Linear(4, 4))
    network[3].requires_grad_(frozen == "none")
    x, found = torch.randn(3, 4), []
    for checkpoint in (False, True):
        network[0].requires_grad_(True)
        network[3].requires_grad_(frozen != "none")
        network.zero_grad()
        output = recomputed(network, network.forward, x) if checkpoint else network(x)
        if frozen == "none":
            network.requires_grad_(True)
        else:
            (network if frozen == "all" else network[0]).requires_grad_(False)
        now = [p.requires_grad for p in network.parameters()]
        output.square().sum().backward()
        found.append([p.grad for p in network.parameters()])
        assert [p.requires_grad for p in network.parameters()] == now
        network.requires_grad_(True)
    for held, again in zip(*found, strict=True):
        assert (held is None and again is None) or torch.equal(held, again)


def test_weights_lent_by_an_average_are_told():
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(8, 1, 1, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **kinds).eval()
    adapter = with_adapter(unet, spread=0.3)
    average = EMAModel(adapter, decay=0.5)
    with torch.no_grad():
        for p in adapter:
            p.add_(0.1)
    noise = torch.randn(2, 1, 8, 8)
    sample = lambda: reward_sample(unet, DDIMScheduler(clip_sample=False), noise, num_steps=3, k=2)  # noqa: E731
    average.store(adapter)
    expected = gradient(sample(), adapter)
    images = sample()
    average.copy_to(adapter)
    with pytest.raises(RuntimeError, match="weights of UNet2DModel have changed between sampling and backward"):
        gradient(images, adapter)
    images = sample()
    average.restore(adapter)
    average.store(adapter)
    average.copy_to(adapter)
    average.restore(adapter)
    with pytest.raises(RuntimeError, match="have changed"):
        gradient(images, adapter)  # they were the average's while sampling
    torch.testing.assert_close(gradient(sample(), adapter), expected)  # restored before sampling


@pytest.mark.parametrize("change", [lambda p: p.data.neg_(), lambda p: p.data.mul_(1.001)])
def test_every_change_of_a_weight_counts(change):
    network, x = nn.Linear(3, 3), torch.randn(2, 3)
    output = recomputed(network, network.forward, x)
    change(network.weight)
    with pytest.raises(RuntimeError, match="weights of Linear have changed"):
        output.square().sum().backward()


def test_an_input_that_was_changed_in_place_is_told():
    network, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3)
    output = recomputed(network, network.forward, x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match=r"an input of Sequential was changed in place .*checkpoint=False"):
        output.sum().backward()


def test_what_cannot_be_called_again_names_the_way_out():
    network, open_ = nn.Linear(3, 3), [True]

    def once(x: torch.Tensor) -> torch.Tensor:
        if not open_[0]:
            raise ValueError("closed")
        return network(x).tanh()

    output = recomputed(network, once, torch.randn(2, 3))
    open_[0] = False
    with pytest.raises(RuntimeError, match=r"called again in the backward pass \(closed\): use checkpoint=False"):
        output.sum().backward()


def test_convolutions_in_float8_are_refused_before_the_backward_pass():
    pipe, call = tiny.stable_diffusion()
    with_adapter(pipe.unet)
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(ValueError, match=r"enable_layerwise_casting.*checkpoint=False"), grad_last_steps(pipe):
        tiny.sample(pipe, call)


def test_linear_layers_in_float8_have_the_gradient_of_the_held_activations():
    pipe, call = tiny.flux()
    adapter = with_adapter(pipe.transformer)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    found = []
    for checkpoint in (True, False):
        with grad_last_steps(pipe, 2, checkpoint=checkpoint):
            images = tiny.sample(pipe, call)
        found.append(gradient(images, adapter))
    assert torch.equal(*found)
    assert found[0].norm() > 0


def test_the_distance_to_the_base_is_measured_with_the_weights_of_each_step():
    pipe, call = tiny.stable_diffusion()
    with_adapter(pipe.unet)
    with_processor, apart = [], []

    def schedule(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        for module in pipe.unet.modules():
            if hasattr(module, "processor") and hasattr(module, "rescale_output_factor"):
                module.rescale_output_factor = 2.0 if step == 2 else 1.0
        return values

    for found, put_back in ((with_processor, False), (apart, True)):
        with CallRecorder(pipe.unet) as calls, grad_last_steps(pipe, 1):
            tiny.sample(pipe, call, callback_on_step_end=schedule)
        if put_back:
            schedule(pipe, 0, 0, {})
        found.append(distance_to_base(pipe.unet, calls.kept))
        schedule(pipe, 0, 0, {})
    # The callback sets the factor back after the last step, so that only the call's own state gives one number twice.
    assert torch.equal(with_processor[0], apart[0])
    assert 0 < with_processor[0] < 1
