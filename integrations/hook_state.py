"""The file that keeps the state of hooks, for all integrations. It needs no framework."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.headers import parse_header

FORMAT = "qa_hooks.state"


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write nested mappings and lists of tensors and numbers as safetensors with a JSON header.

    The file appears whole or not at all.

    Raises:
        TypeError: something in it is neither, or a key is no string.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "state.safetensors"
        >>> save_state({"step": 3, "sums": {"a": torch.ones(2)}}, path)
        >>> load_state(path)
        {'step': 3, 'sums': {'a': tensor([1., 1.])}}
    """
    tensors: dict[str, Tensor] = {}
    header = {"format": FORMAT, "state": json.dumps(_described(state, "", tensors))}
    check_writable(Path(path).parent, name="path")
    write_safetensors(path, tensors, header)


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote (tuples come back as lists); `ValueError` names a file that is something else."""
    tensors, header = read_safetensors(path, "does not hold the state of hooks", format=FORMAT)
    try:
        state: dict[str, Any] = _restored(parse_header(header["state"]), tensors)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} does not hold the state of hooks: {error}") from error
    return state


def _described(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """JSON in which `["tensor", key]` stands for a tensor and `["list", ...]` for a list."""
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory.
        number = str(len(tensors))  # and not its path: two of these can be equal when keys hold slashes
        tensors[number] = value.detach().cpu().contiguous().clone()
        return ["tensor", number]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the keys of a state must be strings, got {key!r} in {where or 'its root'}")
        return {key: _described(item, f"{where}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return ["list", *(_described(item, f"{where}/{index}", tensors) for index, item in enumerate(value))]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a state holds tensors and numbers, got {type(value).__name__} in {where or 'its root'}")


def _restored(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _restored(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        kind, *items = value
        return tensors[items[0]] if kind == "tensor" else [_restored(item, tensors) for item in items]
    return value
