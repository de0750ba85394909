"""Adapters that a network leaves aside are named at its first forward pass, before DDP or a file finds out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from qa_hooks._base.adapters import lora_layers, parts_of
from qa_hooks._base.checks import warn
from qa_hooks._base.graph import graph_behind
from qa_hooks._base.text import listed


class FirstCall:
    """A forward hook that looks once at what the first output with a gradient depends on, and takes itself off."""

    def __init__(self, adapter: str) -> None:
        self.adapter = adapter

    def __call__(self, network: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        tensors = [tensor for tensor in tensors_in(output) if tensor.requires_grad]
        if not tensors:
            return
        for key, hook in list(network._forward_hooks.items()):
            if hook is self:
                del network._forward_hooks[key]
        nodes, reached = graph_behind(tensors)
        # Reentrant checkpointing does not show what is behind its node.
        if not any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes):
            say_unreached(network, self.adapter, reached)


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors of a network's output: one, a structure of them, or an object such as Diffusers' output classes."""
    if not isinstance(output, (Tensor, Mapping, list, tuple)):
        output = getattr(output, "__dict__", output)
    return [
        leaf
        for leaf in tree_leaves(dict(output) if isinstance(output, Mapping) else output)
        if isinstance(leaf, Tensor)
    ]


def say_unreached(network: nn.Module, adapter: str, reached: set[int]) -> None:
    parts = parts_of(network, adapter)
    layers = [name for name in lora_layers(network) if name in parts]
    alone = [name for name in layers if id(parts[name].lora_B[adapter].weight) not in reached]
    if alone:
        warn(
            f"{len(alone)} of {len(layers)} adapters had no part in the first output of {type(network).__name__} and "
            f"get no gradient from it: {listed(alone)}. The network reads their weights past the modules, or did not "
            "use them in this call. DDP stops or hangs at a parameter without a gradient "
            "(find_unused_parameters=True): leave them out with targets=, or give inject_lora an example= of your "
            "calls, and it leaves them out itself"
        )
