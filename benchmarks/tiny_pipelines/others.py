"""Families of one pipeline each."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from benchmarks.tiny_pipelines.family import BATCH, Family, Member, autoencoder, noise
from benchmarks.tiny_pipelines.transformers import FIXED, FLOW, MASK, qwen_vae, text


def aura() -> dict[str, Any]:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16, "out_channels": 4}
    network = d.AuraFlowTransformer2DModel(**sizes, **heads, joint_attention_dim=16, pos_embed_max_size=64)
    return {"transformer": network, "vae": autoencoder(), "scheduler": FLOW()}


def lumina2() -> dict[str, Any]:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_layers": 1}
    heads = {"num_attention_heads": 1, "num_kv_heads": 1, "axes_dim_rope": (8, 4, 4), "cap_feat_dim": 16}
    network = d.Lumina2Transformer2DModel(**sizes, **heads, multiple_of=16, scaling_factor=1.0)
    return {"transformer": network, "vae": autoencoder(shift_factor=0.06), "scheduler": FLOW()}


def lumina() -> dict[str, Any]:
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "num_layers": 1}
    heads = {"num_attention_heads": 2, "num_kv_heads": 2, "cross_attention_dim": 16, "multiple_of": 16}
    network = d.LuminaNextDiT2DModel(**sizes, **heads, learn_sigma=True, qk_norm=True)
    return {"transformer": network, "vae": autoencoder(), "scheduler": FLOW()}


def cogview3() -> dict[str, Any]:
    sizes = {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1, "sample_size": 8}
    heads = {"attention_head_dim": 4, "num_attention_heads": 2, "text_embed_dim": 16, "time_embed_dim": 8}
    network = d.CogView3PlusTransformer2DModel(**sizes, **heads, condition_dim=2, pos_embed_max_size=8)
    scheduler = d.CogVideoXDDIMScheduler()
    return {"transformer": network, "vae": autoencoder(), "scheduler": scheduler}


def cogview4(channels: int = 4) -> dict[str, Any]:
    sizes = {"patch_size": 2, "in_channels": channels, "out_channels": 4, "num_layers": 1}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "text_embed_dim": 16, "time_embed_dim": 8}
    network = d.CogView4Transformer2DModel(**sizes, **heads, condition_dim=4)
    scheduler = FLOW(base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True)
    return {"transformer": network, "vae": autoencoder(), "scheduler": scheduler}


def prx(pixels: bool = False) -> dict[str, Any]:
    sizes = {"patch_size": 2, "in_channels": 3 if pixels else 4, "context_in_dim": 16, "hidden_size": 16}
    network = d.PRXTransformer2DModel(**sizes, mlp_ratio=2.0, num_heads=2, depth=1, axes_dim=[4, 4])
    return {"transformer": network, "vae": autoencoder(shift_factor=0.0), "scheduler": FLOW()}


def bria() -> dict[str, Any]:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8}
    heads = {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": [0, 4, 4]}
    network = d.BriaTransformer2DModel(**sizes, **heads, pooled_projection_dim=None)
    return {"transformer": network, "vae": autoencoder(shift_factor=0.0), "scheduler": FLOW()}


def ovis() -> dict[str, Any]:
    sizes = {"patch_size": 1, "in_channels": 16, "out_channels": 16, "num_layers": 1, "num_single_layers": 1}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8)}
    network = d.OvisImageTransformer2DModel(**sizes, **heads)
    return {"transformer": network, "vae": autoencoder(shift_factor=0.06), "scheduler": FLOW()}


def hunyuan_image() -> dict[str, Any]:
    sizes = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "patch_size": (1, 1), "rope_axes_dim": (4, 4)}
    network = d.HunyuanImageTransformer2DModel(
        **sizes, **heads, guidance_embeds=True, text_embed_dim=16, text_embed_2_dim=16
    )
    vae = d.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        scaling_factor=0.476986,
        spatial_compression_ratio=8,
        sample_size=64,
    ).requires_grad_(False)
    return {"transformer": network, "vae": vae, "scheduler": FLOW()}


def krea() -> dict[str, Any]:
    sizes = {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 8, "text_hidden_dim": 16}
    words = {"num_text_layers": 3, "text_num_attention_heads": 2, "text_num_key_value_heads": 1}
    words |= {"text_intermediate_size": 16, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1}
    network = d.Krea2Transformer2DModel(**sizes, **heads, **words, axes_dims_rope=(4, 2, 2), rope_theta=1000.0)
    return {"transformer": network, "vae": qwen_vae(), "scheduler": FLOW()}


def one(name: str, parts: Any, call: Any = text) -> Family:
    return Family(parts, call, {name: Member()})


LONGER = {
    "prompt_embeds_mask": MASK,
    "negative_prompt_embeds_mask": MASK,
    "prompt_embeds_2": noise(4, 16),
    "prompt_embeds_mask_2": MASK,
    "negative_prompt_embeds_2": noise(4, 16),
    "negative_prompt_embeds_mask_2": MASK,
    "distilled_guidance_scale": 3.0,
}
BOOLEAN = {"prompt_embeds_mask": MASK.bool(), "negative_prompt_embeds_mask": MASK.bool()}
LAYERS = {"prompt_embeds": noise(4, 3, 16), "negative_prompt_embeds": noise(4, 3, 16, seed=6)}
MASKS = {"prompt_attention_mask": MASK.bool(), "negative_prompt_attention_mask": MASK.bool()}
CONTROL = torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(8))
FAMILIES = {
    "AuraFlow": one("AuraFlowPipeline", aura),
    "Lumina": one("LuminaPipeline", lumina),
    "Lumina 2": one("Lumina2Pipeline", lumina2, lambda: text(**MASKS)),
    "CogView 3": one("CogView3PlusPipeline", cogview3, lambda: text(original_size=(16, 16), target_size=(16, 16))),
    "CogView 4": one("CogView4Pipeline", cogview4),
    "CogView 4 control": one("CogView4ControlPipeline", lambda: cogview4(8), lambda: text(control_image=CONTROL)),
    "PRX": one("PRXPipeline", prx, lambda: text(**MASKS, **FIXED, guidance_scale=1.0)),
    "PRX in pixels": one("PRXPixelPipeline", lambda: prx(True), lambda: text(**MASKS, **FIXED, guidance_scale=1.0)),
    "Bria": one("BriaPipeline", bria),
    "Ovis": one("OvisImagePipeline", ovis, lambda: text(negative_prompt=None)),
    "HunyuanImage": one("HunyuanImagePipeline", hunyuan_image, lambda: text(**LONGER)),
    "Krea 2": one("Krea2Pipeline", krea, lambda: text(**{**LONGER, **LAYERS, **BOOLEAN})),
}
