"""The ordinary training loss of a diffusion model, one number for each sample.

    weights = quality_weights(table.values[:, 0])                              # once: what each real image is worth
    losses = denoising_loss(unet, scheduler, clean, generator=generator)         # (N,)
    loss = (weights[index] * losses).mean()

    L_i = mean |f(x_t / n, t) - target|^2,  x_t = a x_0 + s e,  n = sqrt(a^2 + s^2)  (flow: the input is x_t itself)
    target:  epsilon e,  v_prediction (a e - s x_0) / n,  sample x_0,  flow e - x_0

with a and s read off the scheduler's own `add_noise` (Ho et al. 2020; Salimans and Ho 2022; Lipman et al. 2023). Whole
images count here, where `predicted_image` makes their scores a term.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qa_hooks.integrations.diffusers.denoiser_function import denoiser_function
from qa_hooks.integrations.diffusers.prediction import add_noise, prediction_type, signal_and_noise, without_variance


def denoising_loss(
    denoiser: Any,
    scheduler: Any,
    clean: Tensor,
    *,
    condition: Mapping[str, Any] | None = None,
    timesteps: Tensor | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How badly the denoiser predicts, for each sample at one timestep.

    Args:
        denoiser: as in `reward_sample`; one in DDP is called as such, which then reduces its gradients.
        scheduler: it adds the noise and says what is predicted; it is left as it is.
        clean: `(N, C, h, w)`, pixels in [-1, 1] or latents as the sampler has them.
        condition: keyword arguments of the denoiser.
        timesteps: `(N,)`; None draws them uniformly from all that the scheduler knows (a scheduler with a table of
            sigmas: from its present `timesteps`).
        noise: like `clean`; None draws it.
        generator: of what is drawn, on the CPU; needed unless both are given, since the global one is never used.

    Returns:
        `(N,)` float32, with a gradient to the denoiser.

    Raises:
        TypeError, ValueError: no scheduler, a prediction type without a target here (EDM), shapes that do not match, no
            generator.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> clean, noise, t = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8), torch.tensor([10, 500])
        >>> denoising_loss(lambda x, t: 0 * x, DDPMScheduler(), clean, timesteps=t, noise=noise)
        tensor([1., 1.])
    """
    kind = prediction_type(scheduler)
    if hasattr(scheduler, "precondition_outputs"):
        raise ValueError(f"{type(scheduler).__name__} weights its loss in its own way: give a pretrain_loss of yours")
    if not isinstance(clean, Tensor) or clean.ndim < 3 or not clean.is_floating_point():
        got = f"{tuple(clean.shape)} of {clean.dtype}" if isinstance(clean, Tensor) else type(clean).__name__
        raise TypeError(f"clean must be floating point (N, C, h, w), pixels in [-1, 1] or latents, got {got}")
    if generator is None and (timesteps is None or noise is None):
        raise ValueError("give timesteps= and noise=, or a generator= to draw them with")
    clean = clean.float()
    if timesteps is None:
        timesteps = _draw_timesteps(scheduler, len(clean), generator)
    if noise is None:
        noise = torch.randn(clean.shape, generator=generator, device="cpu", dtype=torch.float32)
    timesteps, noise = timesteps.to(clean.device), noise.to(clean)
    noisy = add_noise(scheduler, clean, noise, timesteps)
    a, s = signal_and_noise(scheduler, timesteps, clean)
    n = torch.ones_like(a) if kind == "flow_prediction" else (a.square() + s.square()).sqrt()
    targets = {"epsilon": noise, "sample": clean, "v_prediction": (a * noise - s * clean) / n}
    target = targets.get(kind, noise - clean)
    denoise = denoiser_function(denoiser, clean, condition)
    output = without_variance(denoise(noisy / n, timesteps), clean)
    return (output.float() - target).square().flatten(1).mean(1)


def _draw_timesteps(scheduler: Any, count: int, generator: torch.Generator | None) -> Tensor:
    if hasattr(scheduler, "sigmas") and hasattr(scheduler, "index_for_timestep"):
        known: Tensor = scheduler.timesteps.cpu()
        return known[torch.randint(len(known), (count,), generator=generator, device="cpu")]
    return torch.randint(scheduler.config.num_train_timesteps, (count,), generator=generator, device="cpu")
