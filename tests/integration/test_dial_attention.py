"""The dial under every attention implementation of Diffusers: an adapter that is off or untrained changes no bit."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from diffusers.models import attention_processor
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers import QualityAdapter

DRAWN = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
TABLE = QualityTable([f"{index}.png" for index in range(20)], DRAWN, "bright", True)


class ModuleProcessor(nn.Module):
    """A processor that is a module with a weight of its own, as many that people write are."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.plain = AttnProcessor2_0()

    def forward(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        return self.gain * self.plain(attn, hidden_states, encoder_hidden_states)


class Unwatched:
    """A processor that multiplies by the layer's weights itself."""

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        queries = nn.functional.linear(hidden_states, attn.to_q.weight)
        return nn.functional.linear(queries, attn.to_out[0].weight)


def exchange(make: Callable[[], Any]) -> Callable[[Any], None]:
    def change(pipe: Any) -> None:
        pipe.unet.set_attn_processor({name: make() for name in pipe.unet.attn_processors})

    return change


IMPLEMENTATIONS: dict[str, Callable[[Any], Any]] = {
    "default": lambda pipe: None,
    "plain": exchange(AttnProcessor),
    "sdpa": exchange(AttnProcessor2_0),
    "sliced": exchange(lambda: SlicedAttnProcessor(1)),
    "xformers": exchange(XFormersAttnProcessor),
    "module": exchange(ModuleProcessor),
    "slicing": lambda pipe: pipe.enable_attention_slicing("max"),
    "fused": lambda pipe: pipe.fuse_qkv_projections(),
    "backend-math": lambda pipe: pipe.unet.set_attention_backend("_native_math"),
    "backend-native": lambda pipe: pipe.unet.set_attention_backend("native"),
    "bfloat16": lambda pipe: pipe.to(torch.bfloat16),
}


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for xformers, which is written for GPUs, and Diffusers' own backend at the end."""

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, op: Any, scale: float) -> Tensor:
        return (scale * query @ key.transpose(1, 2)).softmax(-1) @ value

    operators = types.SimpleNamespace(memory_efficient_attention=attention)
    monkeypatch.setattr(attention_processor, "xformers", types.SimpleNamespace(ops=operators))
    yield
    tiny.unet().set_attention_backend("native")


def bits(images: Tensor) -> Tensor:
    """With the signs of zeros, which `==` does not tell apart."""
    return images.contiguous().view({2: torch.int16, 4: torch.int32}[images.element_size()])


def awake(adapter: QualityAdapter) -> QualityAdapter:
    """With its gates open."""
    with torch.no_grad():
        for branch in adapter.branches:
            branch.gate.fill_(0.7)
    return adapter


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_bit_changes_while_the_adapter_is_untrained_or_off(name, when):
    """The implementation is chosen before the adapter comes, or when it is there already."""
    pipe, call = tiny.stable_diffusion()
    IMPLEMENTATIONS[name](pipe)
    base, keys = bits(tiny.sample(pipe, call)), list(pipe.unet.state_dict())
    processors = pipe.unet.attn_processors
    if when == "after":
        pipe, call = tiny.stable_diffusion()
    adapter = QualityAdapter(pipe.unet, TABLE)
    if when == "after":
        IMPLEMENTATIONS[name](pipe)
    assert list(pipe.unet.state_dict()) == keys
    state = torch.get_rng_state()
    with adapter.quality(1.0):
        assert torch.equal(bits(tiny.sample(pipe, call)), base)
    with adapter.quality(1.0, negative=0.5):
        assert torch.equal(bits(tiny.sample(pipe, call)), base)
    awake(adapter)
    with adapter.quality(1.0, scale=0):
        assert torch.equal(bits(tiny.sample(pipe, call)), base)
    with adapter.quality(1.0):
        assert not torch.equal(bits(tiny.sample(pipe, call)), base)
    assert torch.equal(bits(tiny.sample(pipe, call)), base)
    assert torch.equal(torch.get_rng_state(), state)  # the seed of the pipeline is the only one
    adapter.detach()
    assert torch.equal(bits(tiny.sample(pipe, call)), base)
    if when == "before":
        assert all(pipe.unet.attn_processors[place] is processor for place, processor in processors.items())


def test_the_linear_projections_of_stable_diffusion_2():
    pipe, call = tiny.stable_diffusion()
    pipe.unet = tiny.unet(use_linear_projection=True)
    base = bits(tiny.sample(pipe, call))
    adapter = QualityAdapter(pipe.unet, TABLE)
    assert adapter.places.form == "attention"
    with adapter.quality(1.0):
        assert torch.equal(bits(tiny.sample(pipe, call)), base)
    with awake(adapter).quality(1.0):
        assert not torch.equal(bits(tiny.sample(pipe, call)), base)


@pytest.mark.parametrize("name", [name for name in IMPLEMENTATIONS if name != "bfloat16"])
def test_every_implementation_has_the_same_branch(name):
    images = []
    for change in (IMPLEMENTATIONS["plain"], IMPLEMENTATIONS[name]):
        pipe, call = tiny.stable_diffusion()
        change(pipe)
        with awake(QualityAdapter(pipe.unet, TABLE)).quality(1.0):
            images.append(tiny.sample(pipe, call))
    torch.testing.assert_close(images[1], images[0], rtol=1e-4, atol=1e-5)


def test_processors_that_are_modules_keep_their_place_in_the_network():
    pipe, call = tiny.stable_diffusion()
    IMPLEMENTATIONS["module"](pipe)
    state, modules = copy.deepcopy(pipe.unet.state_dict()), [name for name, _ in pipe.unet.named_modules()]
    adapter = awake(QualityAdapter(pipe.unet, TABLE))
    assert [name for name, _ in pipe.unet.named_modules()] == modules
    gains = [p for name, p in pipe.unet.named_parameters() if name.endswith("processor.gain")]
    assert len(gains) == len(pipe.unet.attn_processors)
    with torch.no_grad():
        gains[-1].fill_(0.5)
    pipe.unet.train().eval().requires_grad_(False)
    pipe.unet.load_state_dict(state)
    assert float(gains[-1]) == 1.0
    pipe.unet.set_attn_processor(pipe.unet.attn_processors)  # as unfuse_qkv_projections and others do
    with adapter.quality(1.0):
        turned = tiny.sample(pipe, call)
        average = copy.deepcopy(pipe.unet)
        own, pipe.unet = pipe.unet, average
        assert torch.equal(tiny.sample(pipe, call), turned)
        pipe.unet = own
    pipe.unet.set_attn_processor(AttnProcessor())
    with adapter.quality(1.0):
        torch.testing.assert_close(tiny.sample(pipe, call), turned, rtol=1e-4, atol=1e-5)
    adapter.detach()
    assert not any("processor" in name for name in pipe.unet.state_dict())


def test_a_backend_reaches_the_processor_that_is_there():
    """Diffusers writes the chosen backend into processors that have a place for it."""
    pipe, _ = tiny.stable_diffusion()
    processor = AttnProcessor2_0()
    processor._attention_backend = None
    pipe.unet.set_attn_processor(processor)
    _ = QualityAdapter(pipe.unet, TABLE)
    pipe.unet.set_attention_backend("_native_math")
    assert processor._attention_backend == "_native_math"


def test_a_processor_past_which_nothing_can_be_put_is_refused():
    pipe, call = tiny.stable_diffusion()
    pipe.unet.set_attn_processor(Unwatched())
    base = tiny.sample(pipe, call)
    adapter = QualityAdapter(pipe.unet, TABLE)
    with adapter.quality(1.0, scale=0):
        assert torch.equal(tiny.sample(pipe, call), base)
    with (
        adapter.quality(1.0),
        pytest.raises(ValueError, match=r'Unwatched does not call to_q and to_out .* form="embedding"'),
    ):
        tiny.sample(pipe, call)
    assert torch.equal(tiny.sample(pipe, call), base)
