"""What a run was made with, as text for its log: callbacks, tracked parts, versions."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch

import qa_hooks

TAG = "qa_hooks/settings"


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
    parts = {"callbacks": [str(callback) for callback in callbacks]}
    parts["tracked"] = [f"{name}: {_short(part)}" for name, part in track.items()]
    lists = ["\n".join([f"**{name}**\n", *(f"- `{line}`" for line in lines)]) for name, lines in parts.items() if lines]
    versions = f"qa_hooks {qa_hooks.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    command = [f"`{' '.join(sys.argv)}`"] if sys.argv and sys.argv[0] not in ("", "-c") else []
    return "\n\n".join([*lists, versions, *command])


def _short(part: Any) -> str:
    """The first line of what an object prints as, which for a module may be a whole network."""
    return str(part).splitlines()[0]
