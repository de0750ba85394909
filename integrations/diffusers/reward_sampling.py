"""Sampling with a gradient: images of a diffusion model through which a reward reaches its parameters.

    images = reward_sample(unet, scheduler, torch.randn(4, 3, 32, 32), num_steps=20, method="last", k=1)
    score_loss(images).backward()

The early steps run without a gradient; which of the T steps keep theirs is the method:

    last      the last k                                  DRaFT-K (Clark et al. 2024); k = T is the whole loop
    random    the last k, k uniform in 1..min(T, 10)      AlignProp (Prabhudesai et al. 2023)
    refl      call m, uniform in ceil(.75 T)..T-1, and from there straight to x_0     ReFL (Xu et al. 2023)
    lv        the finished sample is noised again to the last level and denoised once, for several noises; the mean
              over them is a gradient of low variance     DRaFT-LV (Clark et al. 2024)

k counts steps: Heun's method calls the denoiser twice in a step, and a step is never cut in two. Each call is
checkpointed as a whole, so that the memory is the memory of one call whatever k is. For a Diffusers pipeline with a
gradient see `grad_last_steps`.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from qa_hooks._base.checks import check_count
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.processes import all_reduce_sum, rank
from qa_hooks.functional.clamp import clamp_inward
from qa_hooks.images import RangeGuard
from qa_hooks.integrations.diffusers.denoiser_function import Denoise, denoiser_function
from qa_hooks.integrations.diffusers.prediction import (
    add_noise,
    predicted_clean,
    prediction_type,
    to_images,
    without_variance,
)
from qa_hooks.integrations.diffusers.recompute import check_recomputable, recomputed
from qa_hooks.integrations.diffusers.steps import evaluations_of_last, step_sizes
from qa_hooks.integrations.training_checks import check_model, inside_ddp

METHODS = ("last", "random", "refl", "lv")
DEEPEST = 10  # of the random truncation


def reward_sample(
    denoiser: Callable[..., Any],
    scheduler: Any,
    noise: Tensor,
    *,
    num_steps: int,
    method: str = "last",
    k: int = 1,
    noises: int = 2,
    condition: Mapping[str, Any] | None = None,
    negative_condition: Mapping[str, Any] | None = None,
    guidance_scale: float | None = None,
    decode: Any = None,
    checkpoint: bool = True,
    generator: torch.Generator | None = None,
    schedule_options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Sample images that carry a gradient to the denoiser's parameters. Under `torch.no_grad` they carry none.

    Args:
        denoiser: a Diffusers UNet or transformer, or any `f(x, t, **condition)` (`timestep=t` where its signature has
            that name) that gives a tensor, a tuple or an object with `.sample`; t is `(N,)`. DDP is passed by, since
            several calls before one backward pass break it: on several processes reduce the gradients with
            `qa_hooks.integrations.peft.sync`.
        scheduler: a Diffusers scheduler; a copy is used.
        noise: `(N, C, h, w)`, standard normal; the scheduler's initial scale is applied here.
        num_steps: of the scheduler.
        method: "last", "random", "refl" or "lv".
        k: how many of the last steps keep their gradient, for "last".
        noises: how often "lv" noises the sample again.
        condition: keyword arguments of the denoiser, such as `{"encoder_hidden_states": (N, L, D)}`.
        negative_condition: the same keys, for classifier-free guidance.
        guidance_scale: w in u + w (c - u) (Ho and Salimans 2022), one call on the doubled batch; None: no guidance.
        decode: None for pixels in [-1, 1], a Diffusers VAE, or a function from latents to images in [-1, 1].
        checkpoint: recompute each call, and the decoding, in the backward pass instead of keeping its activations.
        generator: of all draws here (k and m, the noise of stochastic schedulers and of "lv"); None: a generator seeded
            by the content of `noise`. The global one is never used. k and m are rank 0's on every rank.
        schedule_options: further arguments of `scheduler.set_timesteps`, such as `{"mu": 1.15}` of flow matching.

    Returns:
        `(N, C, H, W)` in [0, 1]: clamped, as by a scheduler's `clip_sample`, with the gradient that leads back inside.
        For "lv" `(noises * N, C, H, W)`, first all images of the first noise: repeat prompts as `prompts * noises`.

    Raises:
        TypeError: something that is no scheduler, noise that is no floating-point tensor.
        ValueError: more steps than there are, noise of the wrong scale, an unknown method or prediction type, a
            scheduler without noise levels for "refl" and "lv", outputs of another shape or that are not finite, images
            to which no gradient leads, weights that are sharded, offloaded, or trained in float16.

    Example:
        >>> from diffusers import DDIMScheduler
        >>> net = torch.nn.Conv2d(1, 1, 3, padding=1)
        >>> images = reward_sample(lambda x, t: net(x), DDIMScheduler(), torch.randn(2, 1, 8, 8), num_steps=4)
        >>> images.mean().backward()
        >>> images.shape, net.weight.grad is not None
        (torch.Size([2, 1, 8, 8]), True)
    """
    k, noises = check_count("k", k), check_count("noises", noises)
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if method != "last" and k != 1:
        raise ValueError(f'k is for method="last"; {method!r} chooses its calls itself, got k={k}')
    prediction_type(scheduler)
    _check_noise(noise)
    if isinstance(denoiser, nn.Module):
        denoiser = inside_ddp(denoiser)
        check_model(denoiser)
        if checkpoint:
            check_recomputable(denoiser)
    if generator is None:
        generator = torch.Generator().manual_seed(int(fingerprint(noise), 16) >> 1)
    denoise = denoiser_function(denoiser, noise, condition, negative_condition, guidance_scale)
    network = denoiser if isinstance(denoiser, nn.Module) else nn.Module()
    loop = _Loop(scheduler, network, denoise, checkpoint, generator, noise.device)
    loop.prepare(check_count("num_steps", num_steps), dict(schedule_options or {}))
    calls = len(loop.timesteps)

    if method == "refl":
        first = min(math.ceil(0.75 * calls), calls - 1)
        stop = _same_on_all_ranks(int(_draw(first, calls, generator)))
        clean = loop.jump(loop.run(noise, stop=stop), stop)
    elif method == "lv":
        with torch.no_grad():
            sample = loop.run(noise)
        clean = torch.cat([loop.again(sample) for _ in range(noises)])
    else:
        if method == "random":
            steps = len(step_sizes(loop.scheduler, calls))
            k = _same_on_all_ranks(int(_draw(1, min(steps, DEEPEST) + 1, generator)))
        clean = loop.run(noise, gradient_from=calls - evaluations_of_last(loop.scheduler, calls, k))
    images = to_images(clean, decode, checkpoint=checkpoint)
    RangeGuard((0.0, 1.0))(predictions={"the sampled image": images})
    if torch.is_grad_enabled() and not images.requires_grad:
        raise ValueError(
            "no gradient leads to the sampled images: no parameter of the denoiser needs one, or it detaches its "
            "output (to sample without a gradient, use torch.no_grad)"
        )
    return images


class _Loop:
    """A scheduler's loop over its timesteps, on copies, so that it can be entered anew at any timestep."""

    def __init__(
        self,
        scheduler: Any,
        network: nn.Module,
        denoise: Denoise,
        checkpoint: bool,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.scheduler, self.network = copy.deepcopy(scheduler), network
        self.denoise, self.checkpoint, self.generator, self.device = denoise, checkpoint, generator, device
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        self.step_options = {"generator": generator} if takes_generator else {}

    def prepare(self, num_steps: int, options: dict[str, Any]) -> None:
        """Lay out the timesteps."""
        if self.scheduler.config.get("use_dynamic_shifting") and "mu" not in options:
            raise ValueError(
                f"{type(self.scheduler).__name__} shifts its timesteps by the size of the image: give "
                'schedule_options={"mu": ...} as the pipeline computes it'
            )
        self.scheduler.set_timesteps(num_steps, device=self.device, **options)
        self.timesteps = self.scheduler.timesteps
        self.fresh = copy.deepcopy(self.scheduler)  # the one in use counts its steps

    def run(self, noise: Tensor, *, stop: int | None = None, gradient_from: int | None = None) -> Tensor:
        """Sample from noise through all calls, or up to call `stop`, with a gradient from one call on or nowhere."""
        scheduler, wanted = copy.deepcopy(self.fresh), torch.is_grad_enabled()
        x = noise * float(getattr(scheduler, "init_noise_sigma", 1.0))
        for index, t in enumerate(self.timesteps[:stop]):
            with torch.set_grad_enabled(wanted and gradient_from is not None and index >= gradient_from):
                output = self.output(scheduler, x, t)
                with _InwardClipping():
                    x = scheduler.step(output, t, x, **self.step_options).prev_sample
                if gradient_from == index == len(self.timesteps) - 1 and output.requires_grad:
                    self._check_influence(x, output)
        self.reached = scheduler
        return x

    def _check_influence(self, x: Tensor, output: Tensor) -> None:
        """Refuse a last step that ignores the network: PNDM's with leading spacing goes from t = 0 to t = 0."""
        if not torch.autograd.grad(x.sum(), output, retain_graph=True)[0].any():
            raise ValueError(
                f"the last step of this {type(self.fresh).__name__} does not depend on the denoiser, so k=1 has no "
                'gradient; set its timestep_spacing="trailing", or take a larger k'
            )

    def jump(self, x: Tensor, index: int) -> Tensor:
        """x_0 as the network predicts it at call `index`, with a gradient to that call alone."""
        t = self.timesteps[index]
        output = self.output(self.reached, x.detach(), t)
        return predicted_clean(self.fresh, output, t.expand(len(x)), x.detach())[0]

    def again(self, sample: Tensor) -> Tensor:
        """A finished sample with fresh noise of the last level, denoised in one call."""
        noise = torch.randn(sample.shape, generator=self.generator, device=self.generator.device, dtype=sample.dtype)
        t = self.timesteps[-1]
        x = add_noise(self.fresh, sample, noise.to(sample.device), t.expand(len(sample)))
        return predicted_clean(self.fresh, self.output(copy.deepcopy(self.fresh), x, t), t.expand(len(x)), x)[0]

    def output(self, scheduler: Any, x: Tensor, t: Tensor) -> Tensor:
        """One denoiser call, recomputed in the backward pass when wished."""
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        if self.checkpoint and torch.is_grad_enabled():
            output: Tensor = recomputed(self.network, self.denoise, scaled, t)
        else:
            output = self.denoise(scaled, t)
        learned = str(scheduler.config.get("variance_type", "")).startswith("learned")
        return output if learned and output.shape[1] == 2 * x.shape[1] else without_variance(output, x)


class _InwardClipping(TorchFunctionMode):
    """A scheduler's `clip_sample` inside: the same values, and saturated pixels can come back (`clamp_inward`)."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is Tensor.clamp and len(args) == 3 and args[0].requires_grad and not kwargs:
            return clamp_inward(args[0], (args[1], args[2]))
        return func(*args, **(kwargs or {}))


def _check_noise(noise: Any) -> None:
    if not isinstance(noise, Tensor) or not noise.is_floating_point():
        got = noise.dtype if isinstance(noise, Tensor) else type(noise).__name__
        raise TypeError(f"noise must be a floating-point tensor (N, C, h, w), got {got}")
    if noise.ndim < 2 or not noise.numel():
        raise ValueError(f"noise must be (N, C, h, w), got {tuple(noise.shape)}")
    spread = float(noise.detach().float().square().mean().sqrt())
    if not math.isfinite(spread) or (noise.numel() >= 64 and not 0.5 < spread < 2):
        raise ValueError(
            f"noise must be standard normal, its RMS is {spread:.4g}; the scheduler's init_noise_sigma and "
            "a VAE's scaling factor are applied here, and images are no noise"
        )


def _draw(low: int, high: int, generator: torch.Generator) -> Tensor:
    """A whole number in [low, high)."""
    return torch.randint(low, high, (), generator=generator, device=generator.device)


def _same_on_all_ranks(number: int) -> int:
    """Rank 0's: ranks whose graphs differ in depth would wait for each other, or hang."""
    return int(all_reduce_sum(torch.tensor(number if rank() == 0 else 0, device="cpu", dtype=torch.int64)))
