"""What a run was made with, for its log: callbacks, tracked parts, versions, as a page of text and as plain values."""

from __future__ import annotations

import inspect
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

import qa_hooks

TAG = "qa_hooks/settings"
Plain = float | str | bool


def settings_text(callbacks: Iterable[Any], track: Mapping[str, Any]) -> str:
    """Markdown: a list of the callbacks, a list of what is tracked, and the versions.

    Example:
        >>> print(settings_text(["SampleGrid(samples, every=500)"], {}))  # doctest: +ELLIPSIS
        **callbacks**
        <BLANKLINE>
        - `SampleGrid(samples, every=500)`
        <BLANKLINE>
        qa_hooks ..., torch ..., Python ...
    """
    parts = {"callbacks": [_short(callback) for callback in callbacks]}
    parts["tracked"] = [f"{name}: {_short(part)}" for name, part in track.items()]
    lists = ["\n".join([f"**{name}**\n", *(f"- `{line}`" for line in lines)]) for name, lines in parts.items() if lines]
    versions = f"qa_hooks {qa_hooks.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    command = [f"`{' '.join(sys.argv)}`"] if sys.argv and sys.argv[0] not in ("", "-c") else []
    return "\n\n".join([*lists, versions, *command])


def plain_settings(callbacks: Iterable[Any], track: Mapping[str, Any]) -> dict[str, Plain]:
    """The options of callbacks and tracked parts that are plain values, by `{who}/{option}`.

    An option is an argument of the constructor that is kept under its own name.

    Example:
        >>> from qa_hooks.losses import SSIMLoss
        >>> plain_settings([], {"ssim": SSIMLoss(weight=0.1)})["ssim/weight"]
        0.1
    """
    parts = [(callback.state_key, callback) for callback in callbacks] + list(track.items())
    found: dict[str, Plain] = {name: type(part).__name__ for name, part in track.items()}
    for who, part in parts:
        for option in inspect.signature(type(part)).parameters:
            value = getattr(part, option, None)
            if isinstance(value, (bool, int, float, str)) and option != "name":
                found[f"{who}/{option}"] = value
            elif isinstance(value, (tuple, list)) and all(isinstance(v, (int, float, str)) for v in value):
                found[f"{who}/{option}"] = str(value)
    return found


def _short(part: Any) -> str:
    """What an object prints as, in one line: of a module its options without its networks, and never an address.

    Example:
        >>> _short(torch.nn.Sequential(torch.nn.Linear(2, 2))), _short(object()), _short("two\\nlines")
        ('Sequential()', '<object>', 'two')
    """
    module = isinstance(part, torch.nn.Module)
    text = f"{type(part).__name__}({part.extra_repr()})" if module else str(part)
    return re.sub(r"( object)? at 0x[0-9a-fA-F]+", "", (text.splitlines() or [""])[0])
