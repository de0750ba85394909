"""Families whose denoiser is a UNet: Stable Diffusion, SDXL, DeepFloyd IF, Stable Cascade, pixels."""

from __future__ import annotations

from typing import Any

import diffusers as d

from benchmarks.tiny_pipelines.family import BATCH, SIDE, Family, Member, autoencoder, mask, noise, picture

BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
CROSS = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
UP = {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
ADDED = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 40,
}
ADAPTED = {  # an adapter's features fit to a first block with attention
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SMALL = {"conditioning_embedding_out_channels": (8, 8)}


def unet(**options: Any) -> Any:
    return d.UNet2DConditionModel(**{"sample_size": SIDE // 2, **BLOCKS, **CROSS, **UP, **options})


def ddim() -> Any:
    return d.DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1)


def of_unet(**options: Any) -> Member:
    return Member(lambda: {"unet": unet(**options)})


def sd_parts() -> dict[str, Any]:
    return {
        "vae": autoencoder(),
        "unet": unet(),
        "scheduler": ddim(),
        "controlnet": d.ControlNetModel(**BLOCKS, **CROSS, **SMALL),
        "adapter": d.T2IAdapter(
            in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
        ),
        "requires_safety_checker": False,
        "pag_applied_layers": ["mid"],
    }


def sd_call() -> dict[str, Any]:
    return {
        "prompt_embeds": noise(4, 16),
        "negative_prompt_embeds": noise(4, 16, seed=6),
        "guidance_scale": 3.0,
        "pag_scale": 2.0,
        "image": picture(),
        "control_image": picture(seed=8),
        "mask_image": mask(),
        "strength": 0.9,
        "num_inference_steps": 4,
    }


def lcm() -> dict[str, Any]:
    return {"unet": unet(time_cond_proj_dim=8), "scheduler": d.LCMScheduler()}


def upscale() -> dict[str, Any]:
    return {"unet": unet(in_channels=7, num_class_embeds=1000), "low_res_scheduler": d.DDPMScheduler()}


STABLE_DIFFUSION = Family(
    sd_parts,
    sd_call,
    {
        "StableDiffusionPipeline": Member(),
        "StableDiffusionImg2ImgPipeline": Member(),
        "StableDiffusionInpaintPipeline": Member(),
        "StableDiffusionInstructPix2PixPipeline": of_unet(in_channels=8),
        "StableDiffusionUpscalePipeline": Member(upscale, {"image": picture(side=8), "noise_level": 10}),
        "StableDiffusionControlNetPipeline": Member(),
        "StableDiffusionControlNetImg2ImgPipeline": Member(),
        "StableDiffusionControlNetInpaintPipeline": Member(),
        "StableDiffusionAdapterPipeline": of_unet(**ADAPTED),
        "StableDiffusionPAGPipeline": Member(),
        "StableDiffusionPAGImg2ImgPipeline": Member(),
        "StableDiffusionPAGInpaintPipeline": Member(),
        "StableDiffusionControlNetPAGPipeline": Member(),
        "StableDiffusionControlNetPAGInpaintPipeline": Member(),
        "LatentConsistencyModelPipeline": Member(lcm, {"negative_prompt_embeds": None}),
        "LatentConsistencyModelImg2ImgPipeline": Member(lcm),
    },
)


def xl_parts() -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    encoder = CLIPTextModelWithProjection(CLIPTextConfig(**sizes, projection_dim=16, vocab_size=50))
    return {
        **sd_parts(),
        "unet": unet(**ADDED),
        "text_encoder_2": encoder,
        "controlnet": d.ControlNetModel(**BLOCKS, **CROSS, **SMALL, **ADDED),
        "add_watermarker": False,
    }


def xl_call() -> dict[str, Any]:
    pooled = {"pooled_prompt_embeds": noise(16), "negative_pooled_prompt_embeds": noise(16, seed=6)}
    return {**sd_call(), **pooled}


def union() -> dict[str, Any]:
    options = {**BLOCKS, **CROSS, **SMALL, **ADDED, "num_control_type": 6, "num_trans_channel": 8, "num_trans_head": 2}
    options |= {"num_proj_channel": 8, "projection_class_embeddings_input_dim": 40, "addition_embed_type_num_heads": 2}
    return {"controlnet": d.ControlNetUnionModel(**options)}


UNION = {"control_mode": 1, "control_image": [picture(seed=8)]}
STABLE_DIFFUSION_XL = Family(
    xl_parts,
    xl_call,
    {
        "StableDiffusionXLPipeline": Member(),
        "StableDiffusionXLImg2ImgPipeline": Member(),
        "StableDiffusionXLInpaintPipeline": Member(),
        "StableDiffusionXLInstructPix2PixPipeline": of_unet(in_channels=8, **ADDED),
        "StableDiffusionXLControlNetPipeline": Member(),
        "StableDiffusionXLControlNetImg2ImgPipeline": Member(),
        "StableDiffusionXLControlNetInpaintPipeline": Member(),
        "StableDiffusionXLControlNetUnionPipeline": Member(union, UNION),
        "StableDiffusionXLControlNetUnionImg2ImgPipeline": Member(union, UNION),
        "StableDiffusionXLControlNetUnionInpaintPipeline": Member(union, UNION),
        "StableDiffusionXLAdapterPipeline": of_unet(**ADAPTED, **ADDED),
        "StableDiffusionXLPAGPipeline": Member(),
        "StableDiffusionXLPAGImg2ImgPipeline": Member(),
        "StableDiffusionXLPAGInpaintPipeline": Member(),
        "StableDiffusionXLControlNetPAGPipeline": Member(),
        "StableDiffusionXLControlNetPAGImg2ImgPipeline": Member(),
    },
)


def if_parts() -> dict[str, Any]:
    return {
        "unet": unet(in_channels=3, out_channels=6, sample_size=SIDE),
        "scheduler": d.DDPMScheduler(variance_type="learned_range", clip_sample=False),
        "image_noising_scheduler": d.DDPMScheduler(),
        "requires_safety_checker": False,
    }


LARGER = {"in_channels": 6, "out_channels": 6, "sample_size": SIDE, "num_class_embeds": 1000}
RAW = 2 * picture() - 1
DEEPFLOYD = Family(
    if_parts,
    lambda: {**sd_call(), "image": RAW, "original_image": 2 * picture(seed=9) - 1},
    {
        "IFPipeline": Member(),
        "IFImg2ImgPipeline": Member(),
        "IFInpaintingPipeline": Member(),
        "IFSuperResolutionPipeline": of_unet(**LARGER),
        "IFImg2ImgSuperResolutionPipeline": of_unet(**LARGER),
        "IFInpaintingSuperResolutionPipeline": of_unet(**LARGER),
    },
)


def cascade() -> dict[str, Any]:
    from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel

    sizes = {
        "patch_size": 1,
        "conditioning_dim": 16,
        "block_out_channels": (16, 16),
        "num_attention_heads": (2, 2),
        "down_num_layers_per_block": (1, 1),
        "up_num_layers_per_block": (1, 1),
        "down_blocks_repeat_mappers": (1, 1),
        "up_blocks_repeat_mappers": (1, 1),
        "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),) * 2,
        "clip_text_pooled_in_channels": 16,
        "dropout": (0.0, 0.0),
    }
    decoder = d.StableCascadeUNet(in_channels=4, out_channels=4, effnet_in_channels=16, **sizes)
    vqgan = PaellaVQModel(levels=2, bottleneck_blocks=1, num_vq_embeddings=12, embed_dim=8)
    return {"decoder": decoder, "vqgan": vqgan, "scheduler": d.DDPMWuerstchenScheduler(), "latent_dim_scale": 4.0}


CASCADE = Family(
    cascade,
    lambda: {
        "image_embeddings": noise(16, 2, 2),
        "prompt_embeds": noise(4, 16),
        "prompt_embeds_pooled": noise(1, 16),
        "negative_prompt_embeds": noise(4, 16, seed=6),
        "negative_prompt_embeds_pooled": noise(1, 16, seed=6),
        "guidance_scale": 3.0,
    },
    {"StableCascadeDecoderPipeline": Member()},
)


def pixels() -> Any:
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return d.UNet2DModel(SIDE, 3, 3, **BLOCKS, **kinds)


def dit() -> dict[str, Any]:
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 1}
    network = d.DiTTransformer2DModel(sample_size=8, num_embeds_ada_norm=1000, norm_num_groups=4, patch_size=2, **sizes)
    return {"transformer": network, "vae": autoencoder(), "scheduler": ddim()}


def consistency() -> dict[str, Any]:
    return {"unet": pixels(), "scheduler": d.CMStochasticIterativeScheduler(num_train_timesteps=40)}


UNCONDITIONAL = Family(
    lambda: {"unet": pixels(), "scheduler": d.DDIMScheduler(clip_sample=False)},
    lambda: {"batch_size": BATCH},
    {
        "DDIMPipeline": Member(),
        "DDPMPipeline": Member(),
        "ConsistencyModelPipeline": Member(consistency),
        "DiTPipeline": Member(dit, {"class_labels": [1, 2], "guidance_scale": 3.0}),
    },
)
FAMILIES = {
    "Stable Diffusion": STABLE_DIFFUSION,
    "Stable Diffusion XL": STABLE_DIFFUSION_XL,
    "DeepFloyd IF": DEEPFLOYD,
    "Stable Cascade": CASCADE,
    "without text": UNCONDITIONAL,
}
