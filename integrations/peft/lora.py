"""LoRA for any image network, through peft: one path for plain modules and for Diffusers' UNets and transformers.

    adapters = inject_lora(pipe.unet, rank=16)              # the base is frozen, and the first step changes nothing
    optimizer = torch.optim.AdamW(adapters, lr=5e-4)
    ...
    save_lora(pipe.unet, "adapter")                         # and then, anywhere: pipe.load_lora_weights("adapter")

A layer W x becomes W x + s (alpha / rank) B A x with A of `rank` rows and B = 0 at the start (Hu et al. 2021); of a
convolution, A has its kernel and B is 1x1. s is 1 in training; `scale_lora` sets it afterwards. What few directions can
express limits how far a reward can be cheated, and `without_lora` gives back the base model without a second copy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.adapters import is_lora, lora_layers, parameters_of, unwrapped
from qa_hooks._base.adapters import without_lora as without_lora
from qa_hooks._base.checks import check_count, check_weight
from qa_hooks._base.files import check_writable, read_safetensors, write_safetensors
from qa_hooks._base.headers import parse_header
from qa_hooks._base.random import mixed_key
from qa_hooks.integrations.peft.layers import ADAPTER, matching_layers, put_in, replace_modules

FILE = "pytorch_lora_weights.safetensors"  # the names that Diffusers looks for
METADATA = "lora_adapter_metadata"
PREFIXES = ("unet", "transformer")  # by which a pipeline finds the part that keys belong to
CANNOT = ("rank_pattern", "alpha_pattern", "use_dora", "use_rslora", "lora_bias")


def inject_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 16.0,
    targets: str | Sequence[str] | None = None,
    seed: int = 0,
) -> list[nn.Parameter]:
    """Put LoRA beside layers of `model`, in place, and freeze all else.

    Inject before `accelerator.prepare` or DDP, which reduce the parameters that they find.

    Args:
        model: a network (of a pipeline: `pipe.unet`, `pipe.transformer`); compiled ones are unwrapped.
        rank: of each update.
        alpha: the update is multiplied by `alpha / rank`.
        targets: None for every Linear and Conv2d, except grouped convolutions, the insides of
            `nn.MultiheadAttention`, and layers with at most 4 outputs (an image or a latent: there a low rank restricts
            nothing); a list of names or their endings (`["to_q", "attn.qkv", "conv1"]`); or a regular expression for
            the whole name (`r".*attentions.*"`).
        seed: of A, drawn from our own generator, the same on all ranks; the global random state does not move.

    Returns:
        The trainable parameters, float32 whatever the base is (a GradScaler refuses float16 ones).

    Raises:
        TypeError: no module.
        ValueError: no layer fits `targets`, there is LoRA already, or the model is wrapped for several processes.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 3))
        >>> [tuple(p.shape) for p in inject_lora(net, rank=2)]
        [(2, 3, 3, 3), (8, 2, 1, 1), (2, 8, 3, 3), (8, 2, 1, 1)]
    """
    rank, alpha, network = check_count("rank", rank), check_weight("alpha", alpha), unwrapped(model)
    if alpha == 0:
        raise ValueError("alpha=0 would switch LoRA off for good; without_lora(model) does that for a while")
    names = matching_layers(network, targets)
    put_in(model, names, rank, alpha)
    for index, layer in enumerate(lora_layers(network).values()):
        weight = layer.lora_A[ADAPTER].weight
        bound = 1 / math.sqrt(weight[0].numel())  # Kaiming's with a = sqrt(5), as peft draws it
        drawn = torch.empty(weight.shape).uniform_(
            -bound, bound, generator=torch.Generator().manual_seed(mixed_key(seed, index))
        )
        weight.data.copy_(drawn)
    return lora_parameters(network)


def save_lora(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapter, not the model: a safetensors file with rank, alpha and targets in its header.

    `pipe.load_lora_weights(folder)` of Diffusers (0.34 or later, which reads the header) gives the same images; on a
    model alone it is `unet.load_lora_adapter(folder, weight_name=path.name, prefix="unet")`. The scale that
    `scale_lora` has set is not written.

    Returns:
        The path of the file. On several processes, call it on one.

    Raises:
        ValueError: no LoRA in the model, several adapters, or a folder that cannot be written.
    """
    network = unwrapped(model)
    layers = lora_layers(network)
    rank, alpha = _settings(layers)
    prefix = _prefix(network)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = layer.lora_A[_adapter(layer)].weight
        tensors[f"{prefix}{name}.lora_B.weight"] = layer.lora_B[_adapter(layer)].weight
    facts = {"r": rank, "lora_alpha": alpha, "target_modules": list(layers)}
    header = json.dumps({f"{prefix}{key}": value for key, value in facts.items()})
    check_writable(folder, name="folder")
    path = Path(folder) / FILE
    write_safetensors(path, tensors, {"format": "pt", METADATA: header})
    return path


def load_lora(model: nn.Module, folder: str | Path) -> list[nn.Parameter]:
    """Read an adapter that `save_lora` or Diffusers' `save_lora_weights` wrote; nothing changes when it does not fit.

    Args:
        model: a model without LoRA, which gets it, or with the same LoRA, whose weights are set in place (so that an
            optimizer goes on with its parameters).
        folder: where `save_lora` wrote, or the file.

    Returns:
        The trainable parameters, as of `inject_lora`.

    Raises:
        ValueError: no such file, one without rank and alpha, layers that the model does not have or that have other
            shapes.
    """
    network = unwrapped(model)
    path = Path(folder) / FILE if Path(folder).is_dir() else Path(folder)
    tensors, rank, alpha = _read(path)
    names = sorted({key.rpartition(".lora_")[0] for key in tensors})
    present = dict(network.named_modules())
    existing = {name: layer for name, layer in present.items() if is_lora(layer)}
    for name in names:
        _check_fit(path, name, present.get(name), tensors, rank)
    if existing and (sorted(existing) != names or _settings(existing) != (rank, alpha)):
        raise ValueError(
            f"the model has LoRA already, of other layers, rank or alpha than {path} (rank {rank}, alpha {alpha:g}); "
            "load it into a fresh model, or merge_lora(model) first"
        )
    if not existing:
        put_in(model, names, rank, alpha)
    with torch.no_grad():
        for name, layer in lora_layers(network).items():
            for part in ("lora_A", "lora_B"):
                getattr(layer, part)[_adapter(layer)].weight.copy_(tensors[f"{name}.{part}.weight"])
    return lora_parameters(network)


def merge_lora(model: nn.Module) -> None:
    """Add the adapter, at its present scale, to the base weights and take it out: keys are the base model's again.

    The parameters stay frozen; `model.requires_grad_(True)` for a full fine-tune from here.
    """
    network = unwrapped(model)
    layers = lora_layers(network)
    for layer in layers.values():
        layer.merge()
    replace_modules(network, {id(layer): layer.get_base_layer() for layer in layers.values()})
    if hasattr(network, "peft_config"):
        del network.peft_config


def scale_lora(model: nn.Module, scale: float) -> None:
    """Multiply the update by `scale`, relative to the scale of training: 1 gives exactly that back, 0 the base.

    A fraction undoes part of a reward that was followed too far: .25 brought 21 dB back in a toy run.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, got {scale!r}")
    for layer in lora_layers(unwrapped(model)).values():
        for adapter in layer.scaling:
            layer.set_scale(adapter, scale)


def lora_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the adapter, in the order of the layers; `ValueError` when there is none."""
    return parameters_of(lora_layers(unwrapped(model)).values())


def _prefix(network: nn.Module) -> str:
    kind = type(network).__name__
    if "UNet" in kind:
        return "unet."
    return "transformer." if type(network).__module__.startswith("diffusers.") else ""


def _adapter(layer: Any) -> str:
    adapters = list(layer.lora_A)
    if len(adapters) != 1:
        raise ValueError(f"the model has several adapters, {adapters}: only one can be saved and loaded here")
    return str(adapters[0])


def _settings(layers: dict[str, Any]) -> tuple[int, float]:
    """Rank and alpha, which are one for all layers here."""
    found = {(int(la.r[_adapter(la)]), float(la.lora_alpha[_adapter(la)])) for la in layers.values()}
    if len(found) > 1:
        raise ValueError(f"layers of different (rank, alpha) cannot be saved here, got {sorted(found)}")
    return found.pop()


def _read(path: Path) -> tuple[dict[str, Tensor], int, float]:
    """Tensors without their prefix, rank and alpha."""
    tensors, metadata = read_safetensors(path, "does not hold a LoRA adapter")
    try:
        facts = dict(parse_header(metadata[METADATA]))
        prefix = next(prefix for prefix in ("", *(f"{p}." for p in PREFIXES)) if f"{prefix}r" in facts)
        rank, alpha = int(facts[f"{prefix}r"]), float(facts[f"{prefix}lora_alpha"])
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not say its rank and alpha; save it with save_lora(model, folder)") from error
    strange = [name for name in CANNOT if facts.get(prefix + name)]
    foreign = [
        key for key in tensors if not (key.startswith(prefix) and key.endswith((".lora_A.weight", ".lora_B.weight")))
    ]
    if strange or foreign:
        raise ValueError(f"{path} holds {(strange + foreign)[0]}, which load_lora does not know")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}, rank, alpha


def _check_fit(path: Path, name: str, module: Any, tensors: dict[str, Tensor], rank: int) -> None:
    if module is not None and is_lora(module):
        module = module.get_base_layer()
    if not isinstance(module, (nn.Linear, nn.Conv2d)):
        what = "no such layer" if module is None else f"a {type(module).__name__} there"
        raise ValueError(f"{path} is for the layer {name!r}, and this model has {what}: it is of another model")
    weight = module.weight
    expected = {"lora_A": (rank, *weight.shape[1:]), "lora_B": (weight.shape[0], rank, *[1] * (weight.ndim - 2))}
    for part, shape in expected.items():
        tensor = tensors.get(f"{name}.{part}.weight")
        if tensor is None or tuple(tensor.shape) != shape:
            found = "missing" if tensor is None else tuple(tensor.shape)
            raise ValueError(f"{path}: {name}.{part} is {found}, and this model needs {shape}: it is of another model")
