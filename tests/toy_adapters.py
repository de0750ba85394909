"""Networks with LoRA beside their layers, and numbers for them, for tests of adapters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def rand(*shape: int) -> Tensor:
    """Numbers in [0, 1), the same in every call."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def randomise(parameters: Iterable[nn.Parameter], seed: int = 0) -> None:
    """Give the parameters numbers, so that a new adapter changes something."""
    with torch.no_grad():
        for index, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(100 * seed + index)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def sd_unet() -> nn.Module:
    """Stable Diffusion's kind of UNet, tiny: `(n, 4, 8, 8)` latents with `(n, words, 16)` embeddings."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )


def adapted(network: nn.Module) -> set[str]:
    """The names of the layers that have an adapter."""
    return {name.split(".lora_A")[0] for name, _ in network.named_parameters() if ".lora_A" in name}


def around(body: nn.Module, channels: int = 8) -> nn.Sequential:
    """`body` after a convolution and a ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.ReLU(), body)
