"""Families whose denoiser is a transformer, most of them trained by flow matching."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from benchmarks.tiny_pipelines.family import BATCH, SIDE, Family, Member, autoencoder, mask, noise, picture

FLOW = d.FlowMatchEulerDiscreteScheduler
MASK = torch.ones(BATCH, 4, dtype=torch.long)


def text(**options: Any) -> dict[str, Any]:
    """Conditions as most pipelines take them, and images to begin from."""
    return {
        "prompt_embeds": noise(4, 16),
        "negative_prompt_embeds": noise(4, 16, seed=6),
        "prompt_attention_mask": MASK,
        "negative_prompt_attention_mask": MASK,
        "pooled_prompt_embeds": noise(16),
        "negative_pooled_prompt_embeds": noise(16, seed=6),
        "guidance_scale": 3.0,
        "true_cfg_scale": 3.0,
        "image": picture(),
        "control_image": picture(seed=8),
        "mask_image": mask(),
        "strength": 0.9,
        "num_inference_steps": 4,
        **options,
    }


def sd3_network(kind: Any = None, **options: Any) -> Any:
    sizes = {"sample_size": SIDE // 2, "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    heads = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "pos_embed_max_size": 16}
    widths = {"caption_projection_dim": 16, "pooled_projection_dim": 16}
    return (kind or d.SD3Transformer2DModel)(**{**sizes, **heads, **widths, **options})


def sd3() -> dict[str, Any]:
    control = sd3_network(d.SD3ControlNetModel, num_layers=1, extra_conditioning_channels=0)
    parts = {"transformer": sd3_network(), "vae": autoencoder(shift_factor=0.06), "scheduler": FLOW()}
    return {**parts, "controlnet": control, "pag_applied_layers": ["blocks.1"]}


def sd3_inpaint() -> dict[str, Any]:
    network = sd3_network(in_channels=16, out_channels=16)
    return {"transformer": network, "vae": autoencoder(16, shift_factor=0.06)}


def sd3_control_inpaint() -> dict[str, Any]:
    control = sd3_network(d.SD3ControlNetModel, num_layers=1, extra_conditioning_channels=1)
    return {"controlnet": control}


STABLE_DIFFUSION_3 = Family(
    sd3,
    lambda: text(pag_scale=2.0),
    {
        "StableDiffusion3Pipeline": Member(),
        "StableDiffusion3Img2ImgPipeline": Member(),
        "StableDiffusion3InpaintPipeline": Member(sd3_inpaint),
        "StableDiffusion3PAGPipeline": Member(),
        "StableDiffusion3PAGImg2ImgPipeline": Member(),
        "StableDiffusion3ControlNetPipeline": Member(),
        "StableDiffusion3ControlNetInpaintingPipeline": Member(
            sd3_control_inpaint, {"control_mask": mask(), "control_image": picture()}
        ),
    },
)


def flux_network(kind: Any = None, **options: Any) -> Any:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    heads = {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 8)}
    kind = kind or d.FluxTransformer2DModel
    pooled = {} if kind is d.ChromaTransformer2DModel else {"pooled_projection_dim": 16}
    return kind(**{**sizes, **heads, **pooled, **options})


def flux() -> dict[str, Any]:
    control = flux_network(d.FluxControlNetModel)
    return {
        "transformer": flux_network(),
        "vae": autoencoder(shift_factor=0.06),
        "scheduler": FLOW(),
        "controlnet": control,
    }


def flux_with(channels: int) -> Member:
    return Member(lambda: {"transformer": flux_network(in_channels=channels, out_channels=16)})


GUIDED = {"negative_prompt_embeds": noise(4, 16, seed=6), "negative_pooled_prompt_embeds": noise(16, seed=6)}
ONE = {"true_cfg_scale": 1.0, "negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
FLUX = Family(
    flux,
    lambda: text(**ONE),
    {
        "FluxPipeline": Member(call={"true_cfg_scale": 3.0, **GUIDED}),
        "FluxImg2ImgPipeline": Member(),
        "FluxInpaintPipeline": Member(),
        "FluxFillPipeline": flux_with(48),
        "FluxControlPipeline": flux_with(32),
        "FluxControlImg2ImgPipeline": flux_with(32),
        "FluxControlInpaintPipeline": flux_with(32),
        "FluxControlNetPipeline": Member(),
        "FluxControlNetImg2ImgPipeline": Member(),
        "FluxControlNetInpaintPipeline": Member(),
        "FluxKontextPipeline": Member(call={"_auto_resize": False, "max_area": SIDE * SIDE}),
        "FluxKontextInpaintPipeline": Member(call={"_auto_resize": False, "max_area": SIDE * SIDE}),
    },
)


def chroma() -> dict[str, Any]:
    sizes = {"approximator_hidden_dim": 32, "approximator_layers": 1, "approximator_num_channels": 16}
    network = flux_network(d.ChromaTransformer2DModel, **sizes)
    return {"transformer": network, "vae": autoencoder(shift_factor=0.06), "scheduler": FLOW()}


CHROMA = Family(
    chroma,
    lambda: text(prompt_attention_mask=MASK.bool(), negative_prompt_attention_mask=MASK.bool()),
    {"ChromaPipeline": Member(), "ChromaImg2ImgPipeline": Member(), "ChromaInpaintPipeline": Member()},
)


def flux2(guided: bool = True) -> dict[str, Any]:
    sizes = {"patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    heads = {"num_attention_heads": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 4, 4, 4)}
    network = d.Flux2Transformer2DModel(timestep_guidance_channels=16, guidance_embeds=guided, **sizes, **heads)
    kinds = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",)}
    vae = d.AutoencoderKLFlux2(
        **kinds, block_out_channels=(8,), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=SIDE
    ).requires_grad_(False)
    return {"transformer": network, "vae": vae, "scheduler": FLOW()}


def klein() -> dict[str, Any]:
    return {**flux2(guided=False), "is_distilled": False}


FLUX_2 = Family(
    flux2,
    lambda: text(image=None),
    {
        "Flux2Pipeline": Member(),
        "Flux2KleinPipeline": Member(klein),
        "Flux2KleinInpaintPipeline": Member(klein, {"image": picture()}),
        "Flux2KleinKVPipeline": Member(klein, {"image": None}),
    },
)


def qwen_vae() -> Any:
    return d.AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).requires_grad_(False)


def qwen() -> dict[str, Any]:
    sizes = {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 1, "attention_head_dim": 16}
    heads = {"num_attention_heads": 3, "joint_attention_dim": 16, "axes_dims_rope": (8, 4, 4)}
    return {
        "transformer": d.QwenImageTransformer2DModel(guidance_embeds=False, **sizes, **heads),
        "controlnet": d.QwenImageControlNetModel(**sizes, **heads),
        "vae": qwen_vae(),
        "scheduler": FLOW(),
    }


QWEN = Family(
    qwen,
    lambda: text(prompt_embeds_mask=MASK, negative_prompt_embeds_mask=MASK, guidance_scale=None, control_mask=mask()),
    {
        "QwenImagePipeline": Member(),
        "QwenImageImg2ImgPipeline": Member(),
        "QwenImageInpaintPipeline": Member(),
        "QwenImageControlNetPipeline": Member(),
    },
)


def z_image() -> dict[str, Any]:
    sizes = {"in_channels": 4, "dim": 32, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    network = d.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        **sizes,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    )
    return {"transformer": network, "vae": autoencoder(shift_factor=0.06), "scheduler": FLOW()}


ROWS = {"prompt_embeds": list(noise(4, 16)), "negative_prompt_embeds": list(noise(4, 16, seed=6))}
Z_IMAGE = Family(
    z_image,
    lambda: text(**ROWS),
    {"ZImagePipeline": Member(), "ZImageImg2ImgPipeline": Member(), "ZImageInpaintPipeline": Member()},
)


def pixart() -> dict[str, Any]:
    sizes = {"sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2}
    widths = {"caption_channels": 16, "in_channels": 4, "cross_attention_dim": 16, "out_channels": 8}
    network = d.PixArtTransformer2DModel(
        **sizes, **widths, num_embeds_ada_norm=1000, norm_type="ada_norm_single", use_additional_conditions=False
    )
    scheduler = d.DPMSolverMultistepScheduler()
    return {
        "transformer": network,
        "vae": autoencoder(),
        "scheduler": scheduler,
        "pag_applied_layers": ["blocks.1"],
    }


FIXED = {"use_resolution_binning": False}
PIXART = Family(
    pixart,
    lambda: text(pag_scale=2.0, negative_prompt=None, **FIXED),
    {"PixArtAlphaPipeline": Member(), "PixArtSigmaPipeline": Member(), "PixArtSigmaPAGPipeline": Member()},
)


def sana(**options: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    widths = {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8}
    sizes = {"patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    blocks = {"encoder_block_types": ("ResBlock",) * 2, "decoder_block_types": ("ResBlock",) * 2}
    blocks |= {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    blocks |= {"encoder_layers_per_block": (1, 1), "decoder_layers_per_block": (1, 1)}
    vae = d.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        **blocks,
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.4,
    ).requires_grad_(False)
    network = d.SanaTransformer2DModel(**sizes, **heads, **widths, **options)
    parts = {"transformer": network, "vae": vae, "scheduler": FLOW(shift=3.0)}
    return {**parts, "pag_applied_layers": ["blocks.1"]}


def sprint() -> dict[str, Any]:
    parts = sana(qk_norm="rms_norm_across_heads", guidance_embeds=True)
    return {**parts, "scheduler": d.SCMScheduler()}


TWO = {"num_inference_steps": 2, "guidance_scale": 4.5}
SANA = Family(
    sana,
    lambda: text(pag_scale=2.0, height=32, width=32, image=picture(side=32), negative_prompt=None, **FIXED),
    {
        "SanaPipeline": Member(),
        "SanaPAGPipeline": Member(),
        "SanaSprintPipeline": Member(sprint, TWO),
        "SanaSprintImg2ImgPipeline": Member(sprint, {**TWO, "strength": 0.6}),
    },
)
FAMILIES = {
    "Stable Diffusion 3": STABLE_DIFFUSION_3,
    "Flux": FLUX,
    "Chroma": CHROMA,
    "Flux 2": FLUX_2,
    "Qwen-Image": QWEN,
    "Z-Image": Z_IMAGE,
    "PixArt": PIXART,
    "Sana": SANA,
}
