"""The rival without training: the gradient of a score steers the sampling.

    eps <- eps - strength sqrt(1 - abar_t) grad_z Q(decode(x_0(z))),      |grad| clipped

    with GradientGuidance(scorer, strength=2.0).around(pipe):
        images = pipe(prompts).images

Steps in which less than 5 % of the signal is image are left alone: a change there is multiplied by 1 / a in the image.

It needs no data, and in each step it costs a backward pass through denoiser and decoder. It raises the score that it
follows in any way it can, so judge its images by another score as well (Dhariwal and Nichol 2021; Bansal et al. 2023).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.adapters import unwrapped
from qa_hooks._base.checks import check_weight, warn
from qa_hooks.integrations.diffusers.gradient_checks import tensors
from qa_hooks.integrations.diffusers.pipeline_parts import decoder_name, denoisers
from qa_hooks.integrations.diffusers.prediction import (
    predicted_clean,
    prediction_type,
    signal_and_noise,
    to_images,
    without_variance,
)
from qa_hooks.integrations.diffusers.quality.rows import running_pipeline, unconditional_rows
from qa_hooks.scorers.scorer import Scorer, check_is_scorer

FAINTEST = (
    0.05  # a / sqrt(a^2 + s^2) below which there is no image to follow, and a step multiplies any change by 1 / a
)


class GradientGuidance:
    """Steers the denoiser's predictions towards images that score better, while a block lasts.

    It works in `torch.no_grad()` and in `torch.inference_mode()`, as long as no weights were made in the latter.

    Args:
        scorer: of images in [0, 1], differentiable, that needs nothing but the image.
        strength: s; 0 leaves every call as it is.
        clip: the largest norm of an image's gradient.

    Raises:
        TypeError, ValueError: a scorer without a gradient, one that needs more than the image, or of another range.
    """

    def __init__(self, scorer: Scorer, strength: float = 1.0, *, clip: float = 1.0) -> None:
        self.scorer = check_is_scorer(scorer)
        if scorer.inputs or scorer.value_range != (0.0, 1.0):
            raise ValueError(f"{scorer.name} must score images in [0, 1] that need no reference and no prompt")
        if not scorer.differentiable:
            raise ValueError(f"{scorer.name} has no gradient to follow: use quality words, weights or an adapter")
        self._said_odd = False
        self.strength, self.clip = check_weight("strength", strength), check_weight("clip", clip)

    @contextlib.contextmanager
    def around(
        self, target: Any, *, scheduler: Any = None, decode: Any = None, guidance: bool | None = None
    ) -> Iterator[None]:
        """Steer a pipeline, or a denoiser that a loop of your own calls.

        Args:
            target: a Diffusers pipeline; or a denoiser, with its `scheduler`.
            scheduler: of a denoiser.
            decode: of a denoiser that works on latents: its VAE, or a function to images in [-1, 1].
            guidance: of a loop of your own: whether the first half of the rows is unconditional.

        Raises:
            TypeError, ValueError: a pipeline of several denoisers, a denoiser without a scheduler.
        """
        if isinstance(target, nn.Module):
            denoiser = unwrapped(target)
            prediction_type(scheduler)
        else:
            parts = denoisers(target)
            if len(parts) != 1:
                raise ValueError(f"{type(target).__name__} has the denoisers {list(parts)}: give one of them instead")
            denoiser, name = next(iter(parts.values())), decoder_name(target)
            scheduler = target.scheduler
            decode = None if name is None else getattr(target, name)
        if not self.strength:
            yield
            return
        plain, own = denoiser.forward, "forward" in vars(denoiser)
        names = list(inspect.signature(plain).parameters)

        def guided(*args: Any, **kwargs: Any) -> Any:
            call = dict(zip(names, args, strict=False)) | kwargs
            with torch.inference_mode(False):
                try:
                    return self._guided(plain, outside_inference(call), scheduler, decode, guidance)
                except RuntimeError as error:
                    if "nference tensor" not in str(error):
                        raise
                    raise ValueError(
                        "there is no gradient through weights that were made in torch.inference_mode(): load the "
                        "denoiser, its decoder and the scorer outside of it, or sample in torch.no_grad()"
                    ) from error

        denoiser.forward = guided
        try:
            yield
        finally:
            if own:
                denoiser.forward = plain
            else:
                del denoiser.forward

    def _guided(self, plain: Any, call: dict[str, Any], scheduler: Any, decode: Any, guidance: bool | None) -> Any:
        running = running_pipeline()
        scheduler = scheduler if running is None else running[0].scheduler  # which may be a copy in mid-course
        key = "sample" if "sample" in call else "hidden_states"
        if call[key].ndim != 4:
            raise ValueError(
                f"the denoiser is called with {tuple(call[key].shape)}, not with images or latents (N, C, H, W), as "
                "Flux, whose latents are packed, and video models are: there is no guidance by a gradient for them; "
                "use an adapter, quality words or a reward"
            )
        with torch.enable_grad():
            x = call[key].detach().requires_grad_()
            output = plain(**{**call, key: x})
            predicted = next(tensors(getattr(output, "sample", output)))
            prediction = without_variance(predicted, x)
            given = call["timestep"]
            dtype = (
                given.dtype if isinstance(given, Tensor) else torch.float32 if isinstance(given, float) else torch.int64
            )
            timesteps = torch.as_tensor(given, device=x.device, dtype=dtype).expand(len(x))
            a, s = outside_inference(signal_and_noise(scheduler, timesteps, x.detach().float()))
            kind, n = prediction_type(scheduler), (a.square() + s.square()).sqrt()
            noisy = x if kind == "flow_prediction" else x * n.to(x.dtype)
            clean, _ = predicted_clean(scheduler, prediction, timesteps, noisy)
            labels = getattr(getattr(getattr(plain, "__self__", None), "config", None), "num_embeds_ada_norm", None)
            conditional = ~unconditional_rows(call, len(x), 1, guidance, labels, "around(target, guidance=True)")
            images = to_images(clean[conditional.to(x.device)], decode)
            score = self.scorer.goodness(images).sum()
            gradient = torch.autograd.grad(score, x)[0].float()
        if kind == "flow_prediction":
            gradient = gradient * n  # with respect to z = x / n, whose variance is that of the other kinds
        gradient = gradient[conditional.to(x.device)]
        norms = gradient.flatten(1).norm(dim=1).clamp_min(1e-12)
        followed = norms.isfinite()
        if not bool(followed.all()) and not self._said_odd:
            self._said_odd = True
            warn(f"{self.scorer.name} has a gradient that is not finite: such images are left as they are (said once)")
        gradient = torch.where(followed.view(-1, 1, 1, 1), gradient, 0.0)
        gradient = gradient * torch.where(followed, self.clip / norms, 0.0).clamp(max=1).view(-1, 1, 1, 1)
        gradient = gradient.repeat(len(x) // len(gradient), 1, 1, 1)  # both halves of guidance alike
        gradient = torch.where(a / n >= FAINTEST, gradient, torch.zeros_like(gradient))
        change = self._in_units(kind, -self.strength * (s / n) * gradient, a, s, n).to(predicted.dtype)
        new = predicted.detach().clone()
        new[:, : x.shape[1]] += change
        return (new,) if isinstance(output, tuple) else type(output)(sample=new)

    @staticmethod
    def _in_units(kind: str, change: Tensor, a: Tensor, s: Tensor, n: Tensor) -> Tensor:
        """A change of the noise as a change of what the network predicts, at the same noisy image."""
        if kind == "epsilon":
            return change
        factor = {"v_prediction": n / a, "sample": -s / a}.get(kind, (a + s) / a)
        return torch.where(a > 0, change * factor, torch.zeros_like(change))  # a = 0: nothing of the image is left


def outside_inference(value: Any) -> Any:
    """The same with copies of all tensors that were made in `torch.inference_mode()`, which no graph may keep."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: outside_inference(part) for name, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(outside_inference(part) for part in value)
    return value
