"""A family of pipelines that share their networks: what to build, and what to call each of them with."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

BATCH, SIDE = 2, 16  # images, and their pixels
STEPS = 3


class Member(NamedTuple):
    """What one pipeline needs besides its family's: `parts`, made anew each time, and options of its `call`."""

    parts: Callable[[], dict[str, Any]] = dict
    call: dict[str, Any] = {}  # noqa: RUF012


class Family(NamedTuple):
    """`parts` makes the components by name, `call` are options; each pipeline takes those that it knows."""

    parts: Callable[[], dict[str, Any]]
    call: Callable[[], dict[str, Any]]
    members: dict[str, Member]


def build(family: Family, name: str, scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    """The pipeline in float64, and the options of its call."""
    import diffusers

    torch.manual_seed(0)
    kind, member = getattr(diffusers, name), family.members[name]
    parts = {**family.parts(), **member.parts()}
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    given = {p.name: parts.get(p.name) for p in wanted if p.name in parts or p.default is p.empty}
    for part in given.values():
        if isinstance(part, nn.Module):
            settle(part)
    pipe = kind(**given)
    if scheduler is not None:
        pipe.scheduler = scheduler  # past the constructor, which mends old configurations
    pipe.set_progress_bar_config(disable=True)
    known = inspect.signature(kind.__call__).parameters
    options = {"num_inference_steps": STEPS, "height": SIDE, "width": SIDE, **family.call(), **member.call}
    call = {key: double(value) for key, value in options.items() if key in known}
    return pipe, call


def settle(network: nn.Module) -> None:
    """Evaluation mode, float64, and no layer that is zero as built: else nothing would depend on anything."""
    network.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.double()
    if isinstance(value, list):
        return [double(part) for part in value]
    return value


def noise(*shape: int, seed: int = 5) -> Tensor:
    """Conditions, one row for each image."""
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def picture(channels: int = 3, side: int = SIDE, seed: int = 7) -> Tensor:
    """An image to begin from, in [0, 1]."""
    return torch.rand(BATCH, channels, side, side, generator=torch.Generator().manual_seed(seed))


def mask() -> Tensor:
    """Its left half is to be painted anew."""
    kept = torch.zeros(BATCH, 1, SIDE, SIDE)
    kept[..., : SIDE // 2] = 1
    return kept


def autoencoder(channels: int = 4, **options: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "sample_size": SIDE}
    options = {"scaling_factor": 1.0, "latent_channels": channels, **options}
    network: nn.Module = AutoencoderKL(**kinds, **sizes, **options).requires_grad_(False)
    return network
