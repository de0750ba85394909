"""Tiny random pipelines of Diffusers, built here; nothing is downloaded. Conditions are embeddings: no tokenizer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn

BATCH, SIDE = 2, 16  # pixels; the latents have half the side
BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}


def vae(channels: int = 4, **options: Any) -> AutoencoderKL:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    common = {"latent_channels": channels, "sample_size": SIDE, "scaling_factor": 1.0}
    model = AutoencoderKL(**{**common, **options}, **BLOCKS, **kinds)
    return model.requires_grad_(False).eval()


def unet(**options: Any) -> UNet2DConditionModel:
    kinds = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    common = {"sample_size": SIDE // 2, "cross_attention_dim": 16, "attention_head_dim": 2}
    return UNet2DConditionModel(**common, **BLOCKS, **kinds, **options).eval()


def embeddings(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(BATCH, *shape, generator=torch.Generator().manual_seed(seed))


def stable_diffusion() -> tuple[Any, dict[str, Any]]:
    """A pipeline, and what to call it with; so too below."""
    torch.manual_seed(0)
    parts = {"safety_checker": None, "feature_extractor": None, "text_encoder": None, "tokenizer": None}
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(vae(), unet=unet(), scheduler=scheduler, requires_safety_checker=False, **parts)
    call = {"prompt_embeds": embeddings(4, 16), "negative_prompt_embeds": embeddings(4, 16, seed=6)}
    return _quiet(pipe), {**call, "guidance_scale": 3.0}


def stable_diffusion_xl() -> tuple[Any, dict[str, Any]]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
        projection_dim=16,
        vocab_size=50,
    )
    denoiser = unet(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40
    )
    parts = {"text_encoder": None, "tokenizer": None, "tokenizer_2": None}
    encoder = CLIPTextModelWithProjection(config)
    pipe = StableDiffusionXLPipeline(
        vae(), text_encoder_2=encoder, unet=denoiser, scheduler=EulerDiscreteScheduler(), add_watermarker=False, **parts
    )
    call = {"prompt_embeds": embeddings(4, 16), "negative_prompt_embeds": embeddings(4, 16, seed=6)}
    call |= {"pooled_prompt_embeds": embeddings(16), "negative_pooled_prompt_embeds": embeddings(16, seed=6)}
    return _quiet(pipe), {**call, "guidance_scale": 3.0}


def stable_diffusion_3() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    denoiser = SD3Transformer2DModel(
        sample_size=SIDE // 2,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    ).eval()
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(
        denoiser, FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.06), **dict.fromkeys(names)
    )
    call = {"prompt_embeds": embeddings(4, 16), "negative_prompt_embeds": embeddings(4, 16, seed=6)}
    call |= {"pooled_prompt_embeds": embeddings(16), "negative_pooled_prompt_embeds": embeddings(16, seed=6)}
    return _quiet(pipe), {**call, "guidance_scale": 3.0}


def flux() -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    denoiser = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = FluxPipeline(
        FlowMatchEulerDiscreteScheduler(), vae(shift_factor=0.06), transformer=denoiser, **dict.fromkeys(names)
    )
    call = {"prompt_embeds": embeddings(4, 16), "pooled_prompt_embeds": embeddings(16)}
    return _quiet(pipe), {**call, "guidance_scale": 3.0}


PIPELINES = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux}


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def denoiser_of(pipe: Any) -> Any:
    return pipe.unet if hasattr(pipe, "unet") else pipe.transformer


def sample(
    pipe: Any, call: dict[str, Any], *, seed: int = 0, steps: int = 4, output_type: str = "pt", **options: Any
) -> Any:
    """The pipeline's images for noise of `seed`."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": steps}
    return pipe(**{**call, **sizes, **options}, generator=generator, output_type=output_type).images


def reward(images: torch.Tensor) -> torch.Tensor:
    """Smooth, and different in each pixel."""
    grid = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).view_as(images[0])
    return (images * grid).flatten(1).sum(1).sin().mean() + (images**2).mean()


def options_of_sample(seed: int = 0, steps: int = 4) -> dict[str, Any]:
    """What `sample` gives a pipeline besides its conditions."""
    sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "output_type": "pt"}
    return {**sizes, "generator": torch.Generator().manual_seed(seed)}


@contextlib.contextmanager
def last_calls(denoiser: nn.Module, calls: int, live: int) -> Iterator[None]:
    """Autograd is on from the last `live` calls of the denoiser on: for a pipeline's own code without its no_grad."""
    own, made = denoiser.forward, itertools.count()

    def forward(*args: Any, **kwargs: Any) -> Any:
        torch.set_grad_enabled(next(made) >= calls - live)
        return own(*args, **kwargs)

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward
        torch.set_grad_enabled(True)
