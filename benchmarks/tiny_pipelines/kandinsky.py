"""Kandinsky 2.2 and 3, which hand out tensors in [-1, 1]."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from benchmarks.tiny_pipelines.family import BATCH, Family, Member, mask, noise, picture
from benchmarks.tiny_pipelines.unets import sd_call, unet


def movq() -> Any:
    return d.VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=32,
        num_vq_embeddings=12,
        vq_embed_dim=4,
        norm_type="spatial",
    ).requires_grad_(False)


def kandinsky_unet(**options: Any) -> Any:
    kinds = {
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "resnet_time_scale_shift": "scale_shift",
        "encoder_hid_dim": 16,
        "encoder_hid_dim_type": "image_proj",
        "addition_embed_type": "image",
        "out_channels": 8,
    }
    return unet(**{**kinds, **options})


def kandinsky_parts() -> dict[str, Any]:
    scheduler = d.DDPMScheduler(clip_sample=False, prediction_type="epsilon", variance_type="learned_range")
    return {"unet": kandinsky_unet(), "movq": movq(), "scheduler": scheduler}


def kandinsky_call() -> dict[str, Any]:
    return {
        "image_embeds": noise(16),
        "negative_image_embeds": noise(16, seed=6),
        "guidance_scale": 3.0,
        "image": picture(),
        "mask_image": mask(),
        "hint": picture(side=256),
        "strength": 0.9,
        "height": 64,
        "width": 64,
    }


HINT = {"in_channels": 8, "addition_embed_type": "image_hint"}
KANDINSKY = Family(
    kandinsky_parts,
    kandinsky_call,
    {
        "KandinskyV22Pipeline": Member(),
        "KandinskyV22Img2ImgPipeline": Member(),
        "KandinskyV22InpaintPipeline": Member(
            lambda: {"unet": kandinsky_unet(in_channels=9)},
            {"image": picture(side=64), "mask_image": mask().repeat(1, 1, 4, 4)},
        ),
        "KandinskyV22ControlnetPipeline": Member(lambda: {"unet": kandinsky_unet(**HINT)}),
        "KandinskyV22ControlnetImg2ImgPipeline": Member(lambda: {"unet": kandinsky_unet(**HINT)}),
    },
)


def kandinsky3() -> dict[str, Any]:
    network = d.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=16,
    )
    return {"unet": network, "movq": movq(), "scheduler": d.DDPMScheduler(clip_sample=False)}


KANDINSKY_3 = Family(
    kandinsky3,
    lambda: {**sd_call(), "attention_mask": torch.ones(BATCH, 4), "negative_attention_mask": torch.ones(BATCH, 4)},
    {"Kandinsky3Pipeline": Member(), "Kandinsky3Img2ImgPipeline": Member()},
)
FAMILIES = {"Kandinsky 2.2": KANDINSKY, "Kandinsky 3": KANDINSKY_3}
