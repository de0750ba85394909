"""Find layers to which LoRA can be added: layers that compute W x (or W * x) with the weight that they hold."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.adapters import is_lora, is_saved_whole

READ_PAST = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # they hand the weights inside them to one kernel
GROUPED = "its groups are separate, and peft cannot merge LoRA into them"
PAST = "torch reads its weight past the module, in nn.MultiheadAttention or nn.TransformerEncoderLayer"
BY_DEFAULT = (GROUPED, PAST)  # what `targets=None` leaves out without a word, as its documentation says


def candidates(network: nn.Module) -> dict[str, nn.Module]:
    """Layers that hold a weight matrix or kernel, by name, as they are beneath any LoRA that is there already."""
    found: dict[str, nn.Module] = {}
    hidden: tuple[str, ...] = ()
    for name, module in network.named_modules():
        if name.startswith(hidden):
            continue
        if is_lora(module) or is_saved_whole(module):
            hidden += (f"{name}.",)
        layer: Any = module.get_base_layer() if is_lora(module) else module
        weight = getattr(layer, "weight", None)
        if name and isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(layer, nn.Embedding):
            found[name] = layer
    return found


def reasons_against(network: nn.Module) -> dict[str, str | None]:
    """For each candidate layer the reason why LoRA cannot be added to it; None if it can."""
    layers = candidates(network)
    past = {id(part) for m in network.modules() if isinstance(m, READ_PAST) for part in m.modules()}
    weights: dict[str, Any] = {name: layer._parameters.get("weight", layer) for name, layer in layers.items()}
    holders: dict[int, list[str]] = {}
    for name, weight in weights.items():
        holders.setdefault(id(weight), []).append(name)
    reasons: dict[str, str | None] = {}
    for name, layer in layers.items():
        others = [other for other in holders[id(weights[name])] if other != name]
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            reasons[name] = f"it is a {type(layer).__name__}, and LoRA stands beside Linear and Conv2d here"
        elif id(layer) in past:
            reasons[name] = PAST
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reasons[name] = GROUPED
        elif others:
            reasons[name] = f"{others[0]!r} has the same weight"
        else:
            reasons[name] = None if is_quantised(layer) else why_not_plain(layer)
    return reasons


def is_quantised(layer: nn.Module) -> bool:
    """Weights of bitsandbytes, torchao and the like: peft has layers for them, and merging rounds."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or type(layer).__module__.startswith("bitsandbytes"):
        return True
    return not weight.is_floating_point() or type(weight) not in (nn.Parameter, Tensor)


def why_not_plain(layer: Any) -> str | None:
    """Why the output is not W x with the weight that the layer holds; None where it is.

    A layer with torch's own `forward` is plain. One with a `forward` of its own is tried, in train and in eval mode, on
    a copy whose weight is another: it is plain if it gives what torch's function gives with that weight.
    """
    if "weight" not in layer._parameters:
        return "its weight is made anew in each forward pass (weight_norm, spectral_norm or another parametrization)"
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    hooked = hasattr(layer, "_hf_hook") or hasattr(layer, "_diffusers_hook")  # they wrap forward and change nothing
    stock = kind is nn.Linear or type(layer)._conv_forward is nn.Conv2d._conv_forward
    if stock and type(layer).forward is kind.forward and ("forward" not in vars(layer) or hooked):
        return None
    return None if _gives_its_weight_times_x(layer) else f"its class {type(layer).__name__} computes something else"


def _gives_its_weight_times_x(layer: Any) -> bool:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cpu", dtype=torch.float32).to(layer.weight.device)

    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            twin = copy.deepcopy(layer).float()
            weight = twin.weight.copy_(drawn(*twin.weight.shape))
            if isinstance(twin, nn.Conv2d):
                reach = zip(twin.dilation, twin.kernel_size, twin.stride, strict=True)
                x = drawn(2, twin.in_channels, *[d * (k - 1) + 2 * s for d, k, s in reach])
                expected = nn.Conv2d._conv_forward(twin, x, weight, twin.bias)
                # As peft makes A: a class with arguments of its own fails here.
                type(layer)(twin.in_channels, 1, twin.kernel_size, twin.stride, twin.padding, bias=False)
            else:
                x = drawn(2, twin.in_features)
                expected = F.linear(x, weight, twin.bias)
            return all(torch.allclose(_forward(twin, x, mode), expected, atol=1e-4) for mode in (True, False))
    except Exception:  # a class with arguments, inputs or outputs of its own
        return False


def _forward(layer: nn.Module, x: Tensor, training: bool) -> Tensor:
    output: Tensor = layer.train(training)(x)
    return output


def same_geometry(part: Any, adapter: str) -> bool:
    """Whether A of a convolution moves over the image as the convolution does."""
    base = part.get_base_layer()
    if not isinstance(base, nn.Conv2d):
        return True
    return all(getattr(part.lora_A[adapter], name) == getattr(base, name) for name in GEOMETRY)


def copy_geometry(part: Any, adapter: str) -> None:
    """Give A of a convolution what peft leaves out: the dilation, and how the border is padded."""
    base = part.get_base_layer()
    if isinstance(base, nn.Conv2d):
        for name in GEOMETRY:
            setattr(part.lora_A[adapter], name, getattr(base, name))


GEOMETRY = ("stride", "padding", "dilation", "padding_mode", "_reversed_padding_repeated_twice")
