"""The parts of a Diffusers pipeline: its denoisers, its decoder, and its trainable tensors.

Parts are known by what they do, not by their names: a denoiser's `forward` takes a timestep, whether the pipeline calls
it unet, transformer, transformer_2, decoder or prior; a control network is called in each step, too, and counts as one.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from qa_hooks.integrations.diffusers.gradient_checks import tensors
from qa_hooks.integrations.training_checks import inside_ddp

TIMES = {"timestep", "timesteps", "timestep_ratio", "t"}  # as denoisers name the argument
USUAL = ("unet", "transformer", "transformer_2", "prior", "decoder")  # for a wrapper whose arguments have no names


def networks(pipe: Any) -> dict[str, nn.Module]:
    """The pipeline's networks, by name; a network inside DDP is unwrapped."""
    own = vars(pipe) if hasattr(pipe, "__dict__") else {}
    return {name: inside_ddp(part) for name, part in own.items() if isinstance(part, nn.Module)}


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """The networks that are called in the steps of `pipe.scheduler`.

    A pipeline of two stages has `prior_prior` beside `prior_scheduler`: that network belongs to the other schedule.

    Raises:
        TypeError: there is none.
    """
    found = networks(pipe)
    other = tuple(
        name.removesuffix("scheduler") for name in getattr(pipe, "__dict__", {}) if name.endswith("_scheduler")
    )
    own = {name: part for name, part in found.items() if not (other and name.startswith(other))}
    chosen = {name: part for name, part in own.items() if _takes_a_time(part)}
    chosen = chosen or {name: own[name] for name in USUAL if name in own}
    if not callable(pipe) or not chosen:
        raise TypeError(
            f"{type(pipe).__name__} has no denoiser, that is no network whose forward takes a timestep (its networks "
            f"are: {', '.join(found) or 'none'}): give a Diffusers pipeline, or the denoiser itself and num_calls="
        )
    return chosen


def decoder_name(pipe: Any) -> str | None:
    """Under which name the pipeline has the network that decodes its latents: vae, movq, vqgan; None for pixels."""
    found = [name for name, part in networks(pipe).items() if callable(getattr(part, "decode", None))]
    return next((name for name in found if name == "vae"), found[0] if found else None)


def trained(pipe: Any, arguments: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """All tensors that require a gradient, by name: `text_encoder.layer.weight`, `prompt_embeds=`.

    Args:
        pipe: the pipeline.
        arguments: of its call.
    """
    for name, part in networks(pipe).items():
        yield from ((f"{name}.{key}", p) for key, p in part.named_parameters() if p.requires_grad)
    for name, value in arguments.items():
        yield from ((f"{name}=", tensor) for tensor in tensors(value) if tensor.requires_grad)


def subclass(owner: Any, **methods: Callable[..., Any]) -> type:
    """The object's class with other methods, under the same name; what is asked of their signatures stays.

    Exchanging the class of one object, rather than its attributes, leaves copies of the object with their own methods.
    """
    plain = type(owner)
    own = {name: functools.wraps(getattr(plain, name))(method) for name, method in methods.items()}
    return type(plain.__name__, (plain,), {**own, "__module__": plain.__module__})


def without_no_grad(function: Any) -> Callable[..., Any]:
    """The function under torch's own decorators, such as `@torch.no_grad()`, where these are the outermost."""
    while getattr(function, "__globals__", {}).get("__name__") == "torch.utils._contextlib":
        function = function.__wrapped__
    inner: Callable[..., Any] = function
    return inner


def _takes_a_time(part: nn.Module) -> bool:
    try:
        return bool(TIMES & set(inspect.signature(part.forward).parameters))
    except (TypeError, ValueError):
        return False
