"""What back-propagation through the last k calls of a sampler costs: memory against k, and whole steps in turns.

    python -m benchmarks diffusion [--threads 1] [--runs 9] [--quick]

A small Stable Diffusion pipeline with random weights, guidance (a doubled batch) and 10 DDIM steps. Memory is that of
all living tensors, counted at each allocation; a step is sampling, backward and the recomputation in it. "held" is what
lives between forward and backward, over what lived before the step; "peak" is the most that lived at any time of it.
`--quick` takes a quarter of the pixels and half the images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.timing import OURS, compare, device, header, parser, table
from qa_hooks.demo.diffusion import Living
from qa_hooks.integrations.diffusers import grad_last_steps

STEPS = 10
HELD_GOAL, STEP_GOAL, IDLE_GOAL = 0.05, 1.15, 1.02


def pipeline(batch: int, side: int) -> tuple[Any, dict[str, Any]]:
    """A Stable Diffusion pipeline of random weights, and the arguments of its call; `side` is that of the latents."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        side,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(32, 64),
        norm_num_groups=8,
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    widths = (16, 32, 64, 64)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=widths, norm_num_groups=8, latent_channels=4, scaling_factor=1.0, **kinds)
    pipe = StableDiffusionPipeline(
        vae=vae.requires_grad_(False),
        unet=unet,
        scheduler=DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device())
    pipe.set_progress_bar_config(disable=True)
    embeddings = torch.randn(2, batch, 8, 32, device=device())
    call = {"prompt_embeds": embeddings[0], "negative_prompt_embeds": embeddings[1], "guidance_scale": 5.0}
    noise = torch.randn(batch, 4, side, side, device=device())
    sizes = {"height": 8 * side, "width": 8 * side}
    return pipe, {**call, **sizes, "latents": noise, "num_inference_steps": STEPS}


def step(pipe: Any, call: dict[str, Any], k: int, kind: str = "latent", **options: Any) -> Callable[[], None]:
    """A step of reward training without the optimizer."""

    def run() -> None:
        with grad_last_steps(pipe, k, **options):
            images = pipe(**call, output_type=kind).images
        images.square().mean().backward()
        pipe.unet.zero_grad()

    return run


def by_parts(pipe: Any, call: dict[str, Any], kind: str = "latent", *, decoder: bool = False) -> Callable[[], None]:
    """What a step at k = 1 is measured by: sampling under no_grad, one denoiser call forward and backward.

    With `decoder` the decoder goes forward and backward, too, which a step on images cannot do without.
    """
    latents = torch.cat([call["latents"]] * 2)
    embeddings = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])

    def run() -> None:
        pipe(**call, output_type="latent" if decoder else kind)
        if decoder:
            own = call["latents"].clone().requires_grad_()
            pipe.vae.decode(own / pipe.vae.config.scaling_factor).sample.square().mean().backward()
        pipe.unet(latents, 10, embeddings).sample.square().mean().backward()
        pipe.unet.zero_grad()

    return run


def memory(pipe: Any, call: dict[str, Any], k: int, kind: str = "latent", **options: Any) -> tuple[float, float, float]:
    """Megabytes held between forward and backward, megabytes at the peak of the whole step, and its seconds."""
    with Living() as living:
        with grad_last_steps(pipe, k, **options):
            images = pipe(**call, output_type=kind).images
        held = living.now
        if k:
            images.square().mean().backward()
        del images
        peak = living.peak
    pipe.unet.zero_grad()
    begin = time.perf_counter()
    if k:
        step(pipe, call, k, kind, **options)()
    else:
        pipe(**call, output_type=kind)
    return held / 2**20, peak / 2**20, time.perf_counter() - begin


def tiny_decoder() -> nn.Module:
    from diffusers import AutoencoderTiny

    widths = {"encoder_block_out_channels": (16,) * 4, "decoder_block_out_channels": (16,) * 4}
    return AutoencoderTiny(latent_channels=4, **widths).requires_grad_(False).to(device())


def main(arguments: list[str]) -> None:
    options = parser(__doc__).parse_args(arguments)
    batch, side = (2, 16) if options.quick else (4, 32)
    pipe, call = pipeline(batch, side)
    size = sum(p.numel() for p in pipe.unet.parameters()) / 1e6
    print(f"denoiser {size:.2f} M parameters, latents {batch}x4x{side}x{side}, {STEPS} DDIM steps, guidance")
    torch.set_num_threads(options.threads[0])
    print(f"\n{'k':>3} {'held MB':>20} {'peak MB':>20} {'seconds':>16}   (plain, checkpointed; without the decoder)")
    for k in (0, 1, 2, 5) if options.quick else (0, 1, 2, 3, 5, 10):
        plain, ours = memory(pipe, call, k, checkpoint=False), memory(pipe, call, k)
        print(
            f"{k:>3} " + " ".join(f"{a:>{w}.2f} {b:>{w}.2f}" for a, b, w in zip(plain, ours, (9, 10, 7), strict=True))
        )
        if k == 5:
            ratio = ours[0] / plain[0]
            verdict = "met" if ratio <= HELD_GOAL else "NOT MET"
    print(f"held at k = 5: {ratio:.4f} of the plain run, goal <= {HELD_GOAL} {verdict}")

    print(f"\nimages of {8 * side} pixels, k = 1: held MB, peak MB, seconds")
    ways: dict[str, dict[str, Any]] = {
        "plain": {"checkpoint": False},
        "full": {},
        "crop:64": {"decode": "crop:64"},
        "tiny": {"decode": "tiny", "tiny": tiny_decoder()},
    }
    for name, way in ways.items():
        print(f"{name:>8} " + " ".join(f"{value:9.2f}" for value in memory(pipe, call, 1, "pt", **way)))

    for threads in options.threads:
        torch.set_num_threads(threads)
        print("\n" + header(["diffusers"], threads))
        rows = []
        for kind, decoder in (("latent", False), ("pt", False), ("pt", True)):
            candidates = {OURS: step(pipe, call, 1, kind), "by parts": by_parts(pipe, call, kind, decoder=decoder)}
            work = f"step, k = 1, {kind}" + (", decoder's backward counted" if decoder else "")
            rows.append(compare(work, candidates, goal=STEP_GOAL, runs=options.runs))

        def idle() -> None:
            with grad_last_steps(pipe, 0):
                pipe(**call, output_type="latent")

        candidates = {OURS: idle, "pipeline": lambda: pipe(**call, output_type="latent")}
        rows.append(compare("sampling, k = 0", candidates, goal=IDLE_GOAL, runs=max(options.runs, 15)))
        print(table(rows))
