"""How a denoiser is called: by its own names, in its own precision, with conditions and classifier-free guidance.

f(x, t) = c + (w - 1) (c - u),  u and c from one call on the doubled batch        Ho and Salimans 2022
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import arrived
from qa_hooks.integrations.training_checks import inside_ddp

Denoise = Callable[[Tensor, Tensor], Tensor]


def denoiser_function(
    denoiser: Any,
    like: Tensor,
    condition: Mapping[str, Any] | None = None,
    negative: Mapping[str, Any] | None = None,
    guidance_scale: float | None = None,
) -> Denoise:
    """The denoiser as a function of x and its timestep, with conditions, guidance and precision.

    Args:
        denoiser: a module, in DDP or not, which is called as it is given; or a function.
        like: `(N, C, h, w)`, for rows and dtype.
        condition, negative, guidance_scale: as in `reward_sample`.

    Returns:
        `f(x, t)` of `(N, C, h, w)` and a timestep or `(N,)`; like x, a learned variance behind it.

    Raises:
        TypeError, ValueError: no denoiser, guidance that lacks something; from the function: another output.
    """
    if not callable(denoiser):
        raise TypeError(f"denoiser must be a module or a function of (x, t), got {type(denoiser).__name__}")
    given, rows = dict(condition or {}), like.shape[0]
    if (guidance_scale is None) != (negative is None) or (negative is not None and set(negative) != set(given)):
        raise ValueError(
            "guidance needs guidance_scale and negative_condition with the keys of condition "
            f"{sorted(given)}, got guidance_scale={guidance_scale} and "
            f"{'no negative_condition' if negative is None else sorted(negative)}"
        )
    guided = guidance_scale is not None and guidance_scale != 1
    if guided:
        given = _joined(dict(negative or {}), given, rows)
    named = "timestep" in _parameters(inside_ddp(denoiser) if isinstance(denoiser, nn.Module) else denoiser)
    dtype = (
        next((p.dtype for p in denoiser.parameters() if p.is_floating_point()), like.dtype)
        if isinstance(denoiser, nn.Module)
        else like.dtype
    )

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        x = (torch.cat([x, x]) if guided else x).to(dtype)
        times = t.to(x.device).expand(len(x))
        result = denoiser(x, timestep=times, **given) if named else denoiser(x, times, **given)
        output = getattr(result, "sample", result)
        output = output[0] if isinstance(output, tuple) else output
        if not isinstance(output, Tensor) or len(output) != len(x):
            raise ValueError(f"the denoiser must give one output for each of {len(x)} rows, got {arrived(output)}")
        output = output.to(like.dtype)
        if not guided or guidance_scale is None:
            return output
        without, with_condition = output.chunk(2)
        channels = x.shape[1]  # a learned variance behind them is not guided
        guidance = (guidance_scale - 1) * (with_condition - without)[:, :channels]
        return torch.cat([with_condition[:, :channels] + guidance, with_condition[:, channels:]], 1)

    return denoise


def _joined(negative: dict[str, Any], positive: dict[str, Any], rows: int) -> dict[str, Any]:
    """Both conditions one after the other, wherever there is one row for each image."""
    joined: dict[str, Any] = {}
    for name, value in positive.items():
        other = negative[name]
        if isinstance(value, Mapping):
            joined[name] = _joined(dict(other), dict(value), rows)
        elif isinstance(value, Tensor) and value.ndim and value.shape[0] == rows:
            if value.shape != other.shape:
                raise ValueError(
                    f"condition and negative_condition differ in {name!r}: {tuple(value.shape)}, {tuple(other.shape)}"
                )
            joined[name] = torch.cat([other, value])
        else:
            joined[name] = value
    return joined


def _parameters(denoiser: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(denoiser.forward if isinstance(denoiser, nn.Module) else denoiser).parameters
    except (TypeError, ValueError):  # a builtin
        return {}
