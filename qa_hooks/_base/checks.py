"""Checks of plain arguments, with one message for each kind, and warnings that point at the line of the user."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch

PASSED = ("qa_hooks", "torch", "contextlib")  # who stands between the user's line and ours


def check_weight(name: str, weight: Any) -> float:
    """A finite number of at least 0, as a float; `ValueError` otherwise."""
    value = float("nan")
    if not isinstance(weight, bool) and isinstance(weight, Real):
        with contextlib.suppress(OverflowError):
            value = float(weight)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number and not negative, got {weight!r}")
    return value


def check_share(name: str, share: Any, *, zero: bool = False, one: bool = False) -> float:
    """A number between 0 and 1, as a float; `ValueError` otherwise. `zero` and `one` say whether the ends belong to it.

    Example:
        >>> check_share("keep", 1, one=True)
        1.0
    """
    known = isinstance(share, Real) and not isinstance(share, bool)
    if not known or not (0 < share < 1 or (zero and share == 0) or (one and share == 1)):
        raise ValueError(f"{name} must be a share in {'[' if zero else '('}0, 1{']' if one else ')'}, got {share!r}")
    return float(share)


def arrived(value: Any) -> tuple[int, ...] | str:
    """What a message says of something unexpected: the shape of a tensor, or else the name of the type."""
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def check_size(size: Any, *, largest: int = 1 << 16) -> tuple[int, int]:
    """Two whole numbers from 1 to `largest`, a height and a width; `ValueError` otherwise."""
    try:
        height, width = (check_count("a side", side) for side in size)
    except TypeError:
        raise ValueError(f"a size must be (height, width), got {size!r}") from None
    if max(height, width) > largest:
        raise ValueError(f"a size of {height} x {width} is beyond the largest side, {largest}")
    return height, width


def check_count(name: str, count: Any, *, least: int = 1) -> int:
    """A whole number of at least `least`; `ValueError` otherwise."""
    if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {count!r}")
    return int(count)


def check_call(name: str, function: Any, call: str, *arguments: Any) -> None:
    """`TypeError` unless `function` takes these arguments; `call` shows how it is called.

    A callable whose signature Python does not know passes.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable as {call}, got {type(function).__name__}")
    try:
        signature = inspect.signature(function.forward if isinstance(function, torch.nn.Module) else function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{name} must be callable as {call}, but it takes {signature}: {error}") from None


def with_options(what: str, function: Any, options: Mapping[str, Any], *first: Any, **more: Any) -> Any:
    """`function(*first, **options, **more)`; `TypeError` names options that it does not have, and those that it has.

    A function that takes any option, or whose signature Python does not know, judges them itself.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[len(first) :]
    except (TypeError, ValueError):
        return function(*first, **options, **more)
    if not any(part.kind is part.VAR_KEYWORD for part in parameters):
        check_options(what, options, [part.name for part in parameters if part.name not in more])
    return function(*first, **options, **more)


def check_options(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """`TypeError` for options that are not known."""
    known = list(known)
    unknown = [name for name in options if name not in known]
    if unknown:
        own = f"its own are {', '.join(known)}" if known else "it has none of its own"
        raise TypeError(f"{what} has no option {', '.join(unknown)}; {own}")


def check_whole_batches(named: dict[str, torch.Tensor]) -> None:
    """`RuntimeError` under `torch.func.vmap`, where the numbers of images cannot be looked at, shown or kept."""
    functorch = torch._C._functorch
    for name, images in named.items():
        while functorch.is_functorch_wrapped_tensor(images):
            if functorch.is_batchedtensor(images):
                raise RuntimeError(
                    f"{name} comes from torch.func.vmap, in which losses, penalties and scorers cannot be called: call "
                    'them on the whole batch (N, C, H, W); reduction="none" of a loss gives a value for each image'
                )
            images = functorch.get_unwrapped(images)


def check_initialised(network: torch.nn.Module) -> None:
    """`ValueError` for lazy layers that have not been called yet: their first call draws their weights."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if torch.nn.parameter.is_lazy(tensor):
            raise ValueError(
                f"{name!r} of {type(network).__name__} is not initialised yet, as in torch's lazy layers: call the "
                "network once before, so that its weights are drawn by your run"
            )


def warn(message: str) -> None:
    """A `UserWarning` for the line outside this package that led here, however many calls lie between."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level + 1)


def check_channels(name: str, images: torch.Tensor) -> None:
    """`ValueError` unless `(N, C, H, W)` are grey images or RGB images; the message begins with `name`.

    Example:
        >>> import torch
        >>> check_channels("psnr", torch.zeros(1, 3, 8, 8))
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"{name} takes images with 1 or 3 channels, got {images.shape[1]} (shape {tuple(images.shape)})"
            + channel_hint(images)
        )


def channel_hint(images: torch.Tensor, before: str = "; ") -> str:
    """What a message adds about images of more than three channels, after `before`; "" for others.

    Example:
        >>> import torch
        >>> channel_hint(torch.zeros(1, 16, 8, 8))
        '; 16 channels look like latents: decode them to images first (vae.decode)'
        >>> channel_hint(torch.zeros(1, 3, 8, 8))
        ''
    """
    channels = images.shape[1] if images.ndim == 4 else 0
    if channels <= 3:
        return ""
    alpha = ", or RGB with an alpha channel: images[:, :3]" if channels == 4 else ""
    return f"{before}{channels} channels look like latents: decode them to images first (vae.decode){alpha}"


OVERSHOOT = 0.05  # of the range: how far values may lie outside on average


def is_another_range(images: torch.Tensor, value_range: tuple[float, float]) -> bool:
    """Whether so many values lie so far outside that this is another convention, and not a network's overshoot.

    Judged is the mean distance from the range, over all values: one that is far outside is nothing, half of them as far
    as the range is wide is another convention, and so is one in fifty that goes to 255.

    Example:
        >>> values = torch.linspace(-1, 1, 100)
        >>> is_another_range(values, (0, 1)), is_another_range(0.1 * values, (0, 1)), is_another_range(values, (-1, 1))
        (True, False, False)
    """
    low, high = value_range
    values = images.detach().float()
    return float((values - values.clamp(low, high)).abs().mean()) > OVERSHOOT * (high - low)


def range_hint(low: float, high: float) -> str:
    """The usual range in which values lie, for a message that says what to declare; words where no usual one fits.

    Example:
        >>> range_hint(0.0, 0.9), range_hint(-0.98, 1.02), range_hint(0.0, 251.0), range_hint(-3.0, 12.0)
        ('(0, 1)', '(-1, 1)', '(0, 255)', 'the range that the images have')
    """
    for first, last, most in ((0, 1, 0.0), (-1, 1, 0.0), (0, 255, 50.0)):  # 12 is no level of 255
        slack = 0.02 * (last - first)
        if first - slack <= low and most <= high <= last + slack:
            return f"({first}, {last})"
    return "the range that the images have"
