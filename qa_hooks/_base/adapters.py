"""LoRA layers of peft's inside a network: where they are, and the network without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DDP, `accelerator.prepare` and `torch.compile`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network (of a pipeline: pipe.unet), got {type(model).__name__}")
    while True:
        inner = getattr(model, "_orig_mod", model.module if is_parallel(model) else None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def is_parallel(model: nn.Module) -> bool:
    return isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel))


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """peft's layers by their names; `ValueError` when there is none."""
    import_peft()
    layers = {name: module for name, module in network.named_modules() if is_lora(module)}
    if not layers:
        raise ValueError(f"there is no LoRA in this {type(network).__name__}; inject_lora or load_lora puts it there")
    return layers


def is_lora(module: nn.Module) -> bool:
    """Whether this is one of peft's LoRA layers."""
    return isinstance(module, import_peft().tuners.lora.LoraLayer)


def parameters_of(layers: Iterable[Any]) -> list[nn.Parameter]:
    """A and B of all adapters of these layers."""
    return [p for layer in layers for name in layer.adapter_layer_names for p in getattr(layer, name).parameters()]


@contextlib.contextmanager
def without_lora(model: nn.Module) -> Iterator[nn.Module]:
    """The base model inside the block, bit for bit; blocks may be nested, and an error ends them too.

    Example:
        >>> import torch
        >>> from qa_hooks.integrations.peft import inject_lora
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))
        >>> _ = inject_lora(net, rank=2)
        >>> with torch.no_grad(), without_lora(net) as base:
        ...     drift = net(torch.ones(1, 4)) - base(torch.ones(1, 4))
    """
    layers = [layer for layer in lora_layers(unwrapped(model)).values() if not layer.disable_adapters]
    trained = [(parameter, parameter.requires_grad) for parameter in parameters_of(layers)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, required in trained:  # peft sets the flags by itself, to what it thinks they were
            parameter.requires_grad_(required)


def import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'qa-hooks[lora]'") from error
    return peft
