"""Which layers LoRA is put beside, how it gets there, and how it is taken out again."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn

from qa_hooks._base.adapters import (
    active_adapters,
    adapter_names,
    configs,
    import_peft,
    is_lora,
    is_saved_whole,
    lora_layers,
    parameters_of,
    parts_of,
    set_active,
)
from qa_hooks._base.checks import check_initialised, warn
from qa_hooks._base.isolation import isolated
from qa_hooks._base.text import listed
from qa_hooks.integrations.peft.plain import BY_DEFAULT, candidates, copy_geometry, reasons_against

ADAPTER = "default"
FEW_CHANNELS = 4  # an image or a latent: at such an output a low rank restricts nothing


def matching_layers(network: nn.Module, targets: str | Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The names of the layers that `inject_lora(targets=...)` means, and why others that it names are left out."""
    reasons = reasons_against(network)
    if targets is None:
        layers = candidates(network)
        named = [
            name
            for name, layer in layers.items()
            if isinstance(layer, (nn.Linear, nn.Conv2d)) and _outputs(layer) > FEW_CHANNELS
            if reasons[name] not in BY_DEFAULT
        ]
    elif isinstance(targets, str):
        try:
            named = [name for name in reasons if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"targets={targets!r} is not a regular expression: {error}") from error
    else:
        endings = {target: [n for n in reasons if n == target or n.endswith(f".{target}")] for target in targets}
        missing = [target for target, found in endings.items() if not found]
        if missing:
            raise ValueError(f"no Linear or ungrouped Conv2d is called {missing[0]!r}; {_some(_good(reasons))}")
        named = [name for name in reasons if any(name in found for found in endings.values())]
    names = [name for name in named if reasons[name] is None]
    left_out = {name: reason for name in named if (reason := reasons[name]) is not None}
    if not names:
        fits = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:4]) or _some(_good(reasons))
        raise ValueError(f"no Linear or ungrouped Conv2d fits targets={targets!r}; {fits}")
    return names, left_out


def _outputs(layer: nn.Linear | nn.Conv2d) -> int:
    return layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features


def _good(reasons: Mapping[str, str | None]) -> list[str]:
    return [name for name, reason in reasons.items() if reason is None]


def _some(names: Collection[str]) -> str:
    return f"this model has {listed(list(names)) or 'none'}"


def say_left_out(left_out: Mapping[str, str]) -> None:
    """One warning that names the layers that get no LoRA, by reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        warn(f"LoRA is left out of {listed(names)}: {reason}")


def exactly(names: Sequence[str]) -> str:
    """One expression for these full names: peft takes the names of a list as endings, and "conv" fits "block.conv"."""
    return "|".join(re.escape(name) for name in names)


def check_can_hold(network: nn.Module, adapter: str) -> None:
    """Refuse a name that is taken, adapters of other kinds than LoRA, and layers that have no weights yet."""
    check_initialised(network)
    tuners = import_peft().tuners.tuners_utils
    other = [m for m in network.modules() if isinstance(m, tuners.BaseTunerLayer) and not is_lora(m)]
    if other:
        kind = type(other[0]).__module__.split(".")[2]
        raise ValueError(
            f"the model has an adapter that is not LoRA but of peft's {kind!r}: merge it and take it out first "
            "(merge_and_unload of peft)"
        )
    if any(module.disable_adapters for module in network.modules() if is_lora(module)):
        raise ValueError(
            "the model's adapters are switched off, and one on top of them would be, too: switch them on first "
            "(enable_adapters of Diffusers and transformers, enable_adapter_layers of peft)"
        )
    if adapter in adapter_names(network):
        raise ValueError(
            f"the model has LoRA already, an adapter called {adapter!r}: go on with lora_parameters(model), or "
            'merge_lora(model) first; or put a second one on top of it, which then is frozen: adapter="reward"'
        )


def put_in(network: nn.Module, config: Any, adapter: str) -> None:
    """Freeze the network and its adapters, and put a new adapter on top of those that are active; A is peft's."""
    peft = import_peft()
    active = {id(module): active_adapters(module) for module in network.modules() if is_lora(module)}
    network.requires_grad_(False)
    with isolated(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
        peft.inject_adapter_in_model(config, network, adapter)
    parts = parts_of(network, adapter)
    for part in parts.values():
        if is_lora(part):
            part.train(part.get_base_layer().training)
            copy_geometry(part, adapter)
            set_active(part, [*active.get(id(part), []), adapter])
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters_of(network, adapter):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    # peft exchanges a layer that is used under several names at the first of them only.
    replace_modules(network, {id(layer.base_layer): layer for layer in lora_layers(network).values()})


def take_out(network: nn.Module, adapter: str) -> None:
    """The network without this adapter; a layer that has no other is the plain layer again."""
    back: dict[int, nn.Module] = {}
    for part in parts_of(network, adapter).values():
        if is_saved_whole(part):
            back[id(part)] = part.original_module
            continue
        set_active(part, [name for name in active_adapters(part) if name != adapter])
        part.merged_adapters = [name for name in part.merged_adapters if name != adapter]
        part.delete_adapter(adapter)
        if not part.lora_A:
            back[id(part)] = part.get_base_layer()
    replace_modules(network, back)
    configs(network).pop(adapter, None)
    if not configs(network):
        del network.peft_config


def replace_modules(network: nn.Module, new: dict[int, nn.Module]) -> None:
    for parent in list(network.modules()):
        if not is_lora(parent) and not is_saved_whole(parent):
            for name, child in list(parent._modules.items()):
                if id(child) in new:
                    setattr(parent, name, new[id(child)])
