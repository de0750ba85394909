"""The clean image that a denoiser predicts: what a score needs inside an ordinary denoising loop.

    noise_pred = unet(noisy, timesteps).sample
    loss = F.mse_loss(noise_pred, noise)
    images, weight = predicted_image(noise_scheduler, noise_pred, timesteps, noisy)
    loss = loss + score_loss(images, sample_weight=weight)

With x_t = a x_0 + s e, a and s read off the scheduler's own `add_noise` (or `scale_noise`), and n = sqrt(a^2 + s^2),

    epsilon        x_0 = (x_t - s e) / a               (Ho et al. 2020)
    sample         x_0 = the output
    v_prediction   x_0 = (a x_t / n - s v) / n         (Salimans and Ho 2022)
    flow           x_0 = (x_t - s v) / (a + s)         (Lipman et al. 2023; a + s = 1)

The jump from an early x_t multiplies the network's error by s / a (15 at t = 999 of Stable Diffusion, 157 of DDPM),
hence the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.functional.clamp import clamp_inward
from qa_hooks.integrations.diffusers.recompute import recomputed

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")
Decode = Callable[[Tensor], Tensor]


def predicted_image(
    scheduler: Any, model_output: Tensor, timesteps: Tensor, noisy: Tensor, decode: Any = None
) -> tuple[Tensor, Tensor]:
    """The predicted clean images of a training batch, each at its own timestep, with their gradient.

    Args:
        scheduler: the one that made `noisy`; it is left as it is. Epsilon, sample, v and flow predictions, and EDM.
        model_output: `(N, C, h, w)`, or `(N, 2 C, h, w)` with a learned variance, which is left out.
        timesteps: `(N,)`, as they were given to `add_noise`.
        noisy: `(N, C, h, w)`, what `add_noise` returned (not scaled as the denoiser's input).
        decode: None when these are pixels in [-1, 1]; a Diffusers VAE (its scaling and shift are undone here, and it is
            checkpointed); or any function from latents to images in [-1, 1].

    Returns:
        images: `(N, C, H, W)` in [0, 1]; values outside are clamped, with the gradient that leads back.
        weight: `(N,)`, sqrt(abar_t) = a / n for epsilon, whose error the jump enlarges by n / a, and 1 otherwise. For
            `sample_weight=` of a loss. At zero terminal SNR (a = 0) the image is grey, and its weight 0.

    Raises:
        TypeError: timesteps or outputs that are no such tensors.
        ValueError: shapes that do not match, timesteps that the scheduler does not have, a prediction type that is not
            known.

    Example:
        >>> from diffusers import DDPMScheduler
        >>> scheduler, clean, noise = DDPMScheduler(), torch.rand(2, 3, 8, 8) * 2 - 1, torch.randn(2, 3, 8, 8)
        >>> timesteps = torch.tensor([10, 500])
        >>> noisy = scheduler.add_noise(clean, noise, timesteps)
        >>> images, weight = predicted_image(scheduler, noise, timesteps, noisy)
        >>> torch.allclose(images, (clean + 1) / 2, atol=1e-4), weight
        (True, tensor([0.9989, 0.2789]))
    """
    for name, value in (("model_output", model_output), ("noisy", noisy), ("timesteps", timesteps)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if not (model_output.is_floating_point() and noisy.is_floating_point()):
        raise TypeError(f"model_output and noisy must be floating point, got {model_output.dtype} and {noisy.dtype}")
    if timesteps.shape != noisy.shape[:1]:
        raise ValueError(
            f"timesteps must be ({noisy.shape[0]},), one for each row of noisy, got {tuple(timesteps.shape)}"
        )
    clean, weight = predicted_clean(scheduler, model_output, timesteps, noisy)
    return to_images(clean, decode), weight


def predicted_clean(scheduler: Any, model_output: Tensor, timesteps: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 like `noisy`, float32 at least and not clamped, and the weight `(N,)`; see `predicted_image`."""
    kind = prediction_type(scheduler)
    model_output, noisy = (
        without_variance(model_output, noisy),
        noisy.to(torch.promote_types(noisy.dtype, torch.float32)),
    )
    model_output = model_output.to(noisy.dtype)
    a, s = signal_and_noise(scheduler, timesteps, noisy)
    n = (a.square() + s.square()).sqrt()
    ones = torch.ones_like(a).flatten()
    if hasattr(scheduler, "precondition_outputs"):  # EDM: the network's output is scaled before it means anything
        clean: Tensor = scheduler.precondition_outputs(noisy, model_output, s)
        return clean, ones
    if kind == "epsilon":
        known = a > 0  # at zero terminal SNR the last level is noise alone, whatever the image is
        clean = (noisy - s * model_output) / torch.where(known, a, torch.ones_like(a))
        return torch.where(known, clean, torch.zeros_like(clean)), (a / n).flatten()
    if kind == "sample":
        return model_output, ones
    if kind == "v_prediction":
        return (a * noisy / n - s * model_output) / n, ones
    return (noisy - s * model_output) / (a + s), ones


def prediction_type(scheduler: Any) -> str:
    """What the network is trained to predict, one of `PREDICTIONS`.

    Raises:
        TypeError: no Diffusers scheduler.
        ValueError: one that does not say, or says something else.
    """
    if not (hasattr(scheduler, "config") and hasattr(scheduler, "step")):
        raise TypeError(f"scheduler must be a Diffusers scheduler, got {type(scheduler).__name__}")
    kind = scheduler.config.get("prediction_type")
    if kind is None and hasattr(scheduler, "scale_noise"):  # the FlowMatch family has no such option
        return "flow_prediction"
    if kind not in PREDICTIONS:
        raise ValueError(
            f"{type(scheduler).__name__} has the prediction type {kind!r}; a clean image follows only "
            f"from {', '.join(PREDICTIONS)}"
        )
    return str(kind)


def signal_and_noise(scheduler: Any, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """a and s of x_t = a x_0 + s e at each timestep, `(N, 1, 1, 1)` for images, read off what the scheduler adds."""
    zeros = like.new_zeros(like.shape[0], *(1,) * (like.ndim - 1))
    ones = torch.ones_like(zeros)
    return add_noise(scheduler, ones, zeros, timesteps), add_noise(scheduler, zeros, ones, timesteps)


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x_t by the scheduler's own `add_noise` or `scale_noise`, which may be in the midst of sampling.

    Raises:
        ValueError: a scheduler that has neither, or timesteps that it does not have.
    """
    own = copy.copy(scheduler)
    own._step_index = own._begin_index = None  # else it takes the level it stands at for all timesteps
    if hasattr(own, "sigmas") and hasattr(own, "index_for_timestep"):  # levels are looked up in the schedule
        known = torch.isin(timesteps.cpu(), own.timesteps.cpu().to(timesteps.dtype))
        if not known.all():
            raise ValueError(
                f"{type(scheduler).__name__} has no timestep {float(timesteps[~known.to(timesteps.device)][0]):g}; "
                f"take timesteps from its `timesteps` ({len(own.timesteps)} of them)"
            )
    try:
        if hasattr(own, "scale_noise"):
            rows: list[Tensor] = []
            for row, t in enumerate(timesteps.split(1)):
                own._step_index = None  # FlowMatchHeun sets it, and takes one timestep for a batch
                rows.append(own.scale_noise(clean[row : row + 1], t, noise[row : row + 1]))
            return torch.cat(rows)
        if hasattr(own, "add_noise"):
            noisy: Tensor = own.add_noise(clean, noise, timesteps)
            return noisy
    except IndexError as error:
        raise ValueError(
            f"timesteps must be whole numbers in [0, {scheduler.config.num_train_timesteps}) for "
            f"{type(scheduler).__name__}, got {timesteps.tolist()}"
        ) from error
    raise ValueError(
        f"{type(scheduler).__name__} has neither add_noise nor scale_noise, so its noise levels are not known"
    )


def without_variance(model_output: Tensor, like: Tensor) -> Tensor:
    """The first C channels of an output of 2 C, the others being a learned variance.

    Raises:
        ValueError: an output that is neither like the latents nor twice their channels.
    """
    if model_output.ndim == like.ndim and model_output.shape[1] == 2 * like.shape[1]:
        model_output = model_output[:, : like.shape[1]]
    if model_output.shape != like.shape:
        raise ValueError(f"the denoiser's output is {tuple(model_output.shape)} for latents of {tuple(like.shape)}")
    return model_output


def to_images(clean: Tensor, decode: Any = None, *, checkpoint: bool = True) -> Tensor:
    """Latents or pixels -> images in [0, 1], clamped, with the gradient that leads back inside; `decode` as above.

    Raises:
        TypeError: a `decode` that cannot decode.
        ValueError: decoded to something that is no batch of images.
    """
    decoder = decoder_of(decode)
    if decoder is not None:
        keep = checkpoint and torch.is_grad_enabled() and clean.requires_grad
        clean = recomputed(_network(decode), decoder, clean) if keep else decoder(clean)
        if not isinstance(clean, Tensor) or clean.ndim != 4 or not clean.is_floating_point():
            got = f"{tuple(clean.shape)} of {clean.dtype}" if isinstance(clean, Tensor) else type(clean).__name__
            raise ValueError(f"decode must give floating-point images (N, C, H, W) in [-1, 1], got {got}")
    return clamp_inward((clean + 1) / 2)


def decoder_of(decode: Any) -> Decode | None:
    """A function from latents to images in [-1, 1], out of what users have for it; None for pixels."""
    if decode is None:
        return None
    config = getattr(decode, "config", None)
    if callable(getattr(decode, "decode", None)) and config is not None:
        scaling, shift = getattr(config, "scaling_factor", 1.0) or 1.0, getattr(config, "shift_factor", 0.0) or 0.0

        def run(latents: Tensor) -> Tensor:
            images: Tensor = decode.decode((latents / scaling + shift).to(decode.dtype), return_dict=False)[0]
            return images.float()

        return run
    if not callable(decode):
        raise TypeError(f"decode must be a Diffusers VAE or a function of latents, got {type(decode).__name__}")
    function: Decode = decode
    return function


def _network(decode: Any) -> nn.Module:
    """The network behind `decode`, whose state counts when it is run again; an empty one for a function."""
    return decode if isinstance(decode, nn.Module) else nn.Module()
