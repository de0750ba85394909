"""Record a denoiser's calls during sampling, and measure the distance of its outputs to the base model's outputs.

with CallRecorder(unet) as calls:
    images = sample()
kl = distance_to_base(unet, calls.kept)                    # mean |f_theta(x_t) - f_base(x_t)|^2, base: adapter off
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qa_hooks.integrations.diffusers.gradient_checks import carries_gradient, tensors
from qa_hooks.integrations.diffusers.recompute import CallState, recomputed
from qa_hooks.integrations.peft import without_lora


class DenoiserCall(NamedTuple):
    """One call of a denoiser that carried a gradient: what went in and what came out, with their graphs.

    `state` has the attention processors and adapter weights of that call, which a pipeline may change afterwards.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor
    autocast: dict[str, Any]
    state: CallState


class CallRecorder:
    """Sees the denoiser's calls while images are sampled, and keeps the calls with a gradient.

    The hook sits on the outer call; what a checkpoint runs again later is not seen, since the hook is gone by then.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self.made = 0
        self.kept: list[DenoiserCall] = []
        self._handle: RemovableHandle | None = None

    def __enter__(self) -> CallRecorder:
        self._handle = self.denoiser.register_forward_hook(self._keep, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.made += 1
        first = _first(output)
        if first.requires_grad:
            device = first.device.type
            autocast = {
                "device_type": device,
                "enabled": torch.is_autocast_enabled(device),
                "dtype": torch.get_autocast_dtype(device),
            }
            self.kept.append(DenoiserCall(args, dict(kwargs), first, autocast, CallState(module)))

    def cause(self, images: Tensor) -> str:
        """Why images have no graph."""
        if not torch.is_grad_enabled():
            return "step() is called under torch.no_grad"
        if images.is_inference():
            return "sample runs under torch.inference_mode"
        name = type(self.denoiser).__name__
        if not self.made:
            return f"sample did not call this {name}; give the one that it uses"
        if not self.kept:
            return (
                f"all {self.made} calls of {name} ran under no_grad, as a Diffusers pipeline's do: call it inside "
                "grad_last_steps(pipe)"
            )
        return f"{name} had a gradient, and the scheduler, the decoding or sample itself cut it off after that"


def distance_to_base(denoiser: nn.Module, calls: list[DenoiserCall]) -> Tensor:
    """mean |f_theta(x_t) - f_base(x_t)|^2 over the elements of these calls: for Gaussian steps a weighted KL.

    Where x_t itself depends on the parameters (calls before the last), so do both terms, and their gradients through it
    nearly cancel; leaving out the base's would not be the gradient of anything.

    Args:
        denoiser: with LoRA, which is off for the base.
        calls: with their graphs.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: no calls.
    """
    if not calls:
        raise ValueError(
            f"no call of this {type(denoiser).__name__} with a gradient was seen: the denoiser must be the module that "
            "sample calls, not one inside it, and not by its .forward"
        )

    def base(args: tuple[Any, ...], kwargs: dict[str, Any], call: DenoiserCall) -> Tensor:
        with call.state.restored(), without_lora(denoiser), torch.autocast(**call.autocast):
            return _first(denoiser(*args, **kwargs)).float()

    distances = []
    for call in calls:
        if carries_gradient((call.args, call.kwargs)):
            reference: Tensor = recomputed(denoiser, base, call.args, call.kwargs, call)
        else:
            with torch.no_grad():
                reference = base(call.args, call.kwargs, call)
        distances.append((call.output.float() - reference).square().mean())
    return torch.stack(distances).mean()


def _first(output: Any) -> Tensor:
    """The tensor in a denoiser's output, a tuple or an object with `.sample` included."""
    output = getattr(output, "sample", output)
    found = next(tensors(output), None)
    if found is None:
        raise TypeError(f"the denoiser's output holds no tensor, it is a {type(output).__name__}")
    return found
