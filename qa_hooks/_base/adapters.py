"""Adapters of peft's inside a network: where they are, which one is meant, and the network without it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from qa_hooks._base.libraries import import_library
from qa_hooks._base.sharding import ENGINE

CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that write into the base weights


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside DDP, `accelerator.prepare`, `torch.compile`, an average of weights or peft's `PeftModel`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a network (of a pipeline: pipe.unet), got {type(model).__name__}")
    while (inner := _inside(model)) is not model:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module:
    children = dict(model.named_children())
    if hasattr(model, "get_base_model") and "base_model" in children:  # peft's
        inner: Any = model.get_base_model()  # type: ignore[operator]
    elif set(children) == {"module"}:  # DDP, DataParallel, AveragedModel and most others
        inner = children["module"]
    else:
        names = ["_orig_mod", "_original_module"]  # torch.compile, Lightning's Fabric
        if type(model).__module__.startswith("ema_pytorch"):
            names.append("ema_model")
        inner = next((children[name] for name in names if name in children), model)
    return inner if isinstance(inner, nn.Module) else model


def is_parallel(model: nn.Module) -> bool:
    """Whether this wrapper reduces the gradients of the parameters that it found when it was made."""
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return isinstance(model, parallel) or type(model).__name__ == ENGINE


def is_lora(module: nn.Module) -> bool:
    """Whether this is one of peft's LoRA layers."""
    return isinstance(module, import_peft().tuners.lora.LoraLayer)


def is_saved_whole(module: nn.Module) -> bool:
    """Whether this is a module of peft's `modules_to_save`: a trained copy beside the original."""
    return isinstance(module, import_peft().utils.ModulesToSaveWrapper)


def lora_layers(network: nn.Module) -> dict[str, Any]:
    """peft's LoRA layers by their names; `ValueError` when there is none."""
    import_peft()
    layers = {name: module for name, module in network.named_modules() if is_lora(module)}
    if not layers:
        raise ValueError(f"there is no LoRA in this {type(network).__name__}; inject_lora or load_lora puts it there")
    return layers


def adapter_names(network: nn.Module) -> list[str]:
    """The names of the adapters in a network, in the order in which they come."""
    found: dict[str, None] = {}
    for module in network.modules():
        if is_lora(module) or is_saved_whole(module):
            found.update(dict.fromkeys(name for held in _held(module) for name in held))
    return list(found)


def own_adapter(network: nn.Module, adapter: str | None = None) -> str:
    """The adapter that is meant: the one of this name, or the only one, or the only one that is trained."""
    lora_layers(network)
    names = adapter_names(network)
    if adapter is not None:
        if adapter not in names:
            raise ValueError(f"there is no adapter {adapter!r} in this {type(network).__name__}, it has {names}")
        return adapter
    trained = [name for name in names if any(p.requires_grad for p in parameters_of(network, name))]
    meant = names if len(names) == 1 else trained
    if len(meant) != 1:
        raise ValueError(
            f"the model has several adapters, {names}, of which {trained or 'none'} are trained: say which one is "
            f"meant, adapter={names[-1]!r}, or freeze the others"
        )
    return meant[0]


def parts_of(network: nn.Module, adapter: str) -> dict[str, Any]:
    """What holds an adapter, by name: LoRA layers, and modules that it saves whole."""
    return {
        name: module
        for name, module in network.named_modules()
        if (is_lora(module) or is_saved_whole(module)) and any(adapter in held for held in _held(module))
    }


def parameters_of(network: nn.Module, adapter: str) -> list[nn.Parameter]:
    """All that an adapter trains, layer by layer: A, B, and what else belongs to it."""
    entries = [held[adapter] for part in parts_of(network, adapter).values() for held in _held(part) if adapter in held]
    return [p for entry in entries for p in (entry.parameters() if isinstance(entry, nn.Module) else [entry])]


def _held(part: Any) -> list[Any]:
    """The dictionaries from names of adapters to their weights."""
    return [getattr(part, name) for name in part.adapter_layer_names]


def configs(network: nn.Module) -> dict[str, Any]:
    """peft's configurations of the adapters in a network.

    Raises:
        ValueError: they are in a part of it, as of a trainer's module that holds the network that was adapted.
    """
    found: Any = getattr(network, "peft_config", None)
    if isinstance(found, dict):
        return found
    for name, part in network.named_modules():
        if name and isinstance(getattr(part, "peft_config", None), dict):
            raise ValueError(
                f"the adapter was put into {name!r}, a part of this {type(network).__name__}: give that part"
            )
    return {}


def active_adapters(part: Any) -> list[str]:
    """The adapters that a layer adds to its output."""
    return list(part.active_adapters)


def set_active(part: Any, adapters: list[str]) -> None:
    """Let a layer add these adapters and no others; unlike peft's own, it leaves `requires_grad` alone."""
    flags = [(parameter, parameter.requires_grad) for parameter in part.parameters()]
    part.set_adapter(adapters)
    for parameter, required in flags:
        parameter.requires_grad_(required)


@contextlib.contextmanager
def without_lora(model: nn.Module, *, adapter: str | None = None) -> Iterator[nn.Module]:
    """The network without an adapter inside the block, bit for bit; blocks may be nested, and an error ends them too.

    Other adapters, such as a frozen style, stay on: the base of ours is everything but ours.

    Args:
        model: with LoRA.
        adapter: its name; None for the only one, or the only one that is trained.

    Raises:
        ValueError: no LoRA, several adapters of which none is named, an adapter that is merged, or one that has
            written into the base, so that there is none any more.

    Example:
        >>> import torch
        >>> from qa_hooks.integrations.peft import inject_lora
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 8))
        >>> _ = inject_lora(net, rank=2)
        >>> with torch.no_grad(), without_lora(net) as base:
        ...     drift = net(torch.ones(1, 4)) - base(torch.ones(1, 4))
    """
    network = unwrapped(model)
    adapter = own_adapter(network, adapter)
    parts = list(parts_of(network, adapter).values())
    check_base_kept(network, adapter)
    merged = [part for part in parts if is_lora(part) and part.merged]
    if merged:
        raise ValueError("an adapter is merged into the base weights, which then are not at hand: unmerge it first")
    active = [active_adapters(part) for part in parts]
    for part, names in zip(parts, active, strict=True):
        if adapter in names:
            set_active(part, [name for name in names if name != adapter])
    try:
        yield model
    finally:
        for part, names in zip(parts, active, strict=True):
            if adapter in names:
                set_active(part, names)


def check_base_kept(network: nn.Module, adapter: str) -> None:
    """Refuse an adapter whose options of peft let it change the weights of the base itself."""
    own = [getattr(part, "peft_config", None) for part in network.modules()]
    config = next((each[adapter] for each in own if isinstance(each, dict) and adapter in each), None)
    if tokens := getattr(config, "trainable_token_indices", None):
        raise ValueError(
            f"the adapter {adapter!r} has trainable_token_indices={tokens!r}, which train rows of an embedding beside "
            "LoRA: they are not switched off, merged or saved here"
        )
    bias, start = getattr(config, "bias", "none"), getattr(config, "init_lora_weights", True)
    if bias != "none":
        raise ValueError(
            f"the adapter {adapter!r} has bias={bias!r}, which trains biases of the base itself, so that the base is "
            'gone: make it with bias="none" (or lora_bias=True, which has biases of its own)'
        )
    if isinstance(start, str) and start.lower().startswith(CHANGE_THE_BASE):
        raise ValueError(
            f"the adapter {adapter!r} has init_lora_weights={start!r}, which has written into the weights of the base: "
            "the file of such an adapter fits no other copy of it. Make it with init_lora_weights=True"
        )


def import_peft() -> Any:
    """The library peft, or an ImportError with the command that installs it."""
    return import_library("peft", needed_by="LoRA", install="pip install 'qa-hooks[lora]'")
