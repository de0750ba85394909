"""LoRA for any image network, through peft: one path for plain modules and for Diffusers' UNets and transformers.

    adapters = inject_lora(pipe.unet, rank=16)              # the base is frozen, and the first step changes nothing
    optimizer = torch.optim.AdamW(adapters, lr=5e-4)
    ...
    save_lora(pipe.unet, "adapter")                         # and then load_lora(pipe.unet, "adapter")

A layer W x becomes W x + s (alpha / rank) B A x with A of `rank` rows and B = 0 at the start (Hu et al. 2021). For a
convolution, A uses the layer's kernel, dilation and padding; B is 1x1. s is 1 in training; `scale_lora` sets it
afterwards. A low rank limits how far the model can exploit a reward, and `without_lora` gives back the base model
without a second copy.

An adapter has a name. Ours can be trained on top of others, such as a speed-up or a style: the others are frozen and
stay on. Functions take the name of an adapter. Without a name, they use the only adapter, or else the only trainable
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qa_hooks._base.adapters import (
    check_base_kept,
    configs,
    import_peft,
    is_lora,
    is_parallel,
    is_saved_whole,
    own_adapter,
    parameters_of,
    parts_of,
    unwrapped,
)
from qa_hooks._base.adapters import without_lora as without_lora
from qa_hooks._base.checks import check_count, check_weight
from qa_hooks._base.random import mixed_key
from qa_hooks.integrations.peft.first_call import FirstCall
from qa_hooks.integrations.peft.layers import (
    ADAPTER,
    check_can_hold,
    exactly,
    matching_layers,
    put_in,
    say_left_out,
    take_out,
)
from qa_hooks.integrations.peft.plain import is_quantised, same_geometry, why_not_plain
from qa_hooks.integrations.peft.self_test import failing_layers
from qa_hooks.integrations.training_checks import GATHER, check_whole


def inject_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
    seed: int = 0,
    adapter: str = ADAPTER,
    example: Any = None,
) -> list[nn.Parameter]:
    """Put LoRA beside layers of `model`, in place, and freeze all else.

    Inject before `accelerator.prepare` or DDP, which reduce the parameters that they find.

    Some layers are skipped, with a warning that names them and the reason:

    - the weight is made anew in each forward pass (weight_norm, spectral_norm);
    - two layers share the weight;
    - the class's `forward` computes something else than its base class;
    - the self-test found that LoRA does not work there.

    The self-test sends one input through a copy, with random adapters, in train and in eval mode, and again with the
    adapters merged. This finds networks that use a weight without calling its layer. It needs an input: `example`, or a
    random one if the network takes an image (or rows of features) and nothing else. Otherwise a warning after the first
    call names adapters that had no effect.

    Args:
        model: a network (of a pipeline: `pipe.unet`, `pipe.transformer`); compiled ones are unwrapped.
        rank: of each update.
        alpha: the update is multiplied by `alpha / rank`.
        targets: None for every Linear and Conv2d, except grouped convolutions, the insides of
            `nn.MultiheadAttention`, and layers with at most 4 outputs (an image or a latent: there a low rank restricts
            nothing); a list of names or their endings (`["to_q", "attn.qkv", "conv1"]`); or a regular expression for
            the whole name (`r".*attentions.*"`).
        seed: of A, drawn from our own generator, the same on all ranks; the global random state does not move.
        adapter: a name, for an adapter on top of others.
        example: for the self-test, what one call of the network gets: a tensor, a tuple of arguments or a dictionary
            of keywords. It needs the memory of three copies of the network for a moment.

    Returns:
        The trainable parameters, float32 whatever the base is (a GradScaler refuses float16 ones).

    Raises:
        TypeError: no module.
        ValueError: no layer fits `targets`, there is an adapter of this name already, the model is wrapped for several
            processes, or it does not take the example.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> [tuple(p.shape) for p in inject_lora(net, rank=2)]
        [(2, 3, 3, 3), (8, 2, 1, 1), (2, 8, 3, 3), (8, 2, 1, 1)]
    """
    rank, alpha, network = check_count("rank", rank), check_weight("alpha", alpha), unwrapped(model)
    if alpha == 0:
        raise ValueError("alpha=0 would switch LoRA off for good; without_lora(model) does that for a while")
    check_can_hold(network, adapter)
    check_whole(network, "inject_lora", "inject the adapter first, then call fully_shard")
    if is_parallel(model):
        raise ValueError(
            "LoRA must be put in before DDP, DeepSpeed or accelerator.prepare wraps the model: they reduce the "
            "gradients of the parameters that they find"
        )
    names, left_out = matching_layers(network, targets)
    failing = failing_layers(network, names, example)
    names = [name for name in names if name not in (failing or {})]
    if not names:
        told = "; ".join(f"{name}: {reason}" for name, reason in (failing or {}).items())
        raise ValueError(f"LoRA fits none of these layers; {told}")
    say_left_out({**left_out, **(failing or {})})
    put_in(network, import_peft().LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly(names)), adapter)
    for index, layer in enumerate(parts_of(network, adapter).values()):
        weight = layer.lora_A[adapter].weight
        bound = 1 / math.sqrt(weight[0].numel())  # Kaiming's with a = sqrt(5), as peft draws it
        drawn = torch.empty(weight.shape, device="cpu", dtype=torch.float32).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(mixed_key(seed, index))
        )
        weight.data.copy_(drawn)
    if failing is None:
        network.register_forward_hook(FirstCall(adapter))
    return parameters_of(network, adapter)


def merge_lora(model: nn.Module, *, adapter: str | None = None) -> None:
    """Add the adapter, at its present scale, to the base weights and take it out: keys are the base model's again.

    The parameters stay frozen; `model.requires_grad_(True)` for a full fine-tune from here. Other adapters stay what
    they are.

    Raises:
        ValueError: layers whose merged weights would not give what the adapter gave, or a `PeftModel`, which cannot do
            without its adapter; nothing is changed then.
    """
    network = unwrapped(model)
    if any(isinstance(part, import_peft().PeftModel) for part in model.modules()):
        raise ValueError(
            "a PeftModel cannot be called without its adapter: network = model.merge_and_unload(), or take the network "
            "out, network = model.get_base_model(), and merge_lora(network)"
        )
    check_whole(network, "merge_lora", f"{GATHER}, and merge there")
    adapter = own_adapter(network, adapter)
    configs(network)
    check_base_kept(network, adapter)
    parts = parts_of(network, adapter)
    layers = {name: part for name, part in parts.items() if is_lora(part)}
    for name, layer in layers.items():
        if reason := _why_not_merge(layer, adapter):
            raise ValueError(f"the adapter {adapter!r} cannot be merged into {name!r}: {reason}")
    for part in parts.values():
        if is_saved_whole(part):
            trained = part.modules_to_save[adapter].state_dict()
            part.original_module.load_state_dict(trained)
        else:
            part.merge(adapter_names=[adapter])
    take_out(network, adapter)


def _why_not_merge(layer: Any, adapter: str) -> str | None:
    base = layer.get_base_layer()
    if is_quantised(base):
        return "its weights are quantised, and merging would round the update away. Keep the adapter: save_lora"
    if isinstance(base, nn.Conv2d) and base.groups > 1:
        return "it is a grouped convolution, for which peft has no merging"
    if not isinstance(base, (nn.Linear, nn.Conv2d)):
        return None  # embeddings and the like are peft's business
    if not same_geometry(layer, adapter):
        return "its adapter has another dilation or padding than the layer, so that no one weight does what both do"
    others = [name for name in layer.lora_variant if name != adapter]
    if others:
        return f"the adapter {others[0]!r} beside it depends on the base weight (DoRA and the like)"
    if layer.lora_bias.get(adapter) and base.bias is None:
        return "its adapter has a bias, and the layer has none"
    return why_not_plain(base)


def scale_lora(model: nn.Module, scale: float, *, adapter: str | None = None) -> None:
    """Multiply the update by `scale`: 1 is the training strength, 0 the base model.

    A fraction undoes part of a reward that was followed too far (docs/sr.md). Other adapters keep their strength.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    network = unwrapped(model)
    adapter = own_adapter(network, adapter)
    parts = parts_of(network, adapter).values()
    if scale != 1 and any(is_saved_whole(part) or adapter in part.lora_variant for part in parts):
        raise ValueError(
            f"the adapter {adapter!r} has modules_to_save or use_dora, whose update is not a sum that can be scaled; "
            "without_lora(model) switches it off"
        )
    for part in parts:
        if is_lora(part):
            part.set_scale(adapter, scale)


def lora_parameters(model: nn.Module, *, adapter: str | None = None) -> list[nn.Parameter]:
    """The parameters of the adapter, in the order of the layers; `ValueError` when there is none."""
    network = unwrapped(model)
    return parameters_of(network, own_adapter(network, adapter))
