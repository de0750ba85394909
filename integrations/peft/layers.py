"""LoRA inside a network: beside which layers it can be put, how it gets there, and where it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from qa_hooks._base.adapters import import_peft, is_lora, is_parallel, lora_layers, parameters_of, unwrapped
from qa_hooks._base.isolation import isolated

ADAPTER = "default"
FEW_CHANNELS = 4  # an image or a latent: at such an output a low rank restricts nothing


def matching_layers(network: nn.Module, targets: str | Sequence[str] | None) -> list[str]:
    """The names of the layers that `inject_lora(targets=...)` means."""
    layers = _adaptable(network)
    if targets is None:
        names = [name for name, module in layers.items() if module.weight.shape[0] > FEW_CHANNELS]
    elif isinstance(targets, str):
        try:
            names = [name for name in layers if re.fullmatch(targets, name)]
        except re.error as error:
            raise ValueError(f"targets={targets!r} is not a regular expression: {error}") from error
    else:
        endings = {target: [n for n in layers if n == target or n.endswith(f".{target}")] for target in targets}
        missing = [target for target, found in endings.items() if not found]
        if missing:
            raise ValueError(f"no Linear or ungrouped Conv2d is called {missing[0]!r}; {_some(layers)}")
        names = [name for name in layers if any(name in found for found in endings.values())]
    if not names:
        raise ValueError(f"no Linear or ungrouped Conv2d fits targets={targets!r}; {_some(layers)}")
    return names


def _adaptable(network: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that LoRA can be put beside; `nn.MultiheadAttention` reads the weights inside it past any wrapper."""
    inside = {id(part) for m in network.modules() if isinstance(m, nn.MultiheadAttention) for part in m.modules()}
    return {
        name: module
        for name, module in network.named_modules()
        if name and id(module) not in inside
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    }


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return f"this model has {', '.join(names[:8]) or 'none'}{', ...' if len(names) > 8 else ''}"


def put_in(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
    """Freeze the model and put LoRA beside the layers of these full names; A is peft's, B is 0."""
    peft, network = import_peft(), unwrapped(model)
    if any(is_lora(module) for module in network.modules()):
        raise ValueError("the model has LoRA already; merge_lora(model) first, or go on with lora_parameters(model)")
    if is_parallel(model):
        raise ValueError(
            "LoRA must be put in before DDP or accelerator.prepare wraps the model: they reduce the gradients of the "
            "parameters that they find"
        )
    network.requires_grad_(False)
    # One expression, not a list: peft takes the names of a list as endings, and "conv" would fit "block.conv".
    pattern = "|".join(re.escape(name) for name in names)
    with isolated():
        peft.inject_adapter_in_model(
            peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), network, ADAPTER
        )
    layers = lora_layers(network)
    for layer in layers.values():
        layer.train(layer.get_base_layer().training)
    for parameter in parameters_of(layers.values()):
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    # peft exchanges a layer that is used under several names at the first of them only.
    replace_modules(network, {id(layer.get_base_layer()): layer for layer in layers.values()})


def replace_modules(network: nn.Module, new: dict[int, nn.Module]) -> None:
    for parent in list(network.modules()):
        if not is_lora(parent):
            for name, child in list(parent._modules.items()):
                if id(child) in new:
                    setattr(parent, name, new[id(child)])
