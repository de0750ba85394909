"""Adapters as files: safetensors, with the options of peft in the header, as Diffusers writes them.

What an adapter is made of is peft's `get_peft_model_state_dict`, so that the magnitudes of DoRA, biases and modules
saved whole are in the file; what cannot be brought back exactly is refused when it is saved.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from torch import Tensor, nn

from qa_hooks._base.adapters import (
    adapter_names,
    check_base_kept,
    configs,
    import_peft,
    is_lora,
    is_saved_whole,
    own_adapter,
    parameters_of,
    parts_of,
    unwrapped,
)
from qa_hooks._base.checks import warn
from qa_hooks._base.files import check_writable, write_safetensors
from qa_hooks._base.text import listed
from qa_hooks.integrations.peft.formats import FILE, METADATA, AdapterFile, check_options, options_of, read_adapter
from qa_hooks.integrations.peft.layers import ADAPTER, check_can_hold, exactly, put_in, take_out
from qa_hooks.integrations.peft.plain import same_geometry
from qa_hooks.integrations.training_checks import GATHER, check_whole

TWO_EXPERTS = ("WanTransformer3DModel",)  # classes of which one pipeline can hold two
_WRITTEN: WeakValueDictionary[Path, nn.Module] = WeakValueDictionary()


def save_lora(model: nn.Module, folder: str | Path, *, adapter: str | None = None, part: str | None = None) -> Path:
    """Write the adapter, not the model: a safetensors file with rank, alpha and targets in its header.

    `load_lora` reads it back into any network. So does `pipe.load_lora_weights(folder)` of Diffusers (0.34 or later,
    which reads the header) where the class of the pipeline has that method; PixArt, DiT, Lumina, OmniGen, PRX, Bria,
    HunyuanImage, Kandinsky and Cosmos have none. Layers with a dilation or a padding mode are right with `load_lora`
    alone. The scale that `scale_lora` has set is not written.

    Args:
        model: with LoRA, made by `inject_lora` or by peft; wrappers (DDP, compiled, an average) are taken off.
        folder: for the file.
        adapter: its name; None for the only one, or the only one that is trained.
        part: the name by which a pipeline has the network; by default "unet" or "transformer" for Diffusers' networks.
            The second expert of Wan 2.2 is `part="transformer_2"`, with keys and a file of its own:
            `pipe.transformer_2.load_lora_adapter(folder, weight_name=path.name, prefix="transformer_2")`.

    Returns:
        The path of the file. On several processes, call it on one.

    Raises:
        ValueError: no LoRA in the model, several adapters of which none is named, options of peft that a file cannot
            bring back, or a folder that cannot be written.
    """
    network = unwrapped(model)
    check_whole(network, "save_lora", f"{GATHER}, and save that one")
    adapter = own_adapter(network, adapter)
    _check_saved_whole(network, adapter)
    _say_untrained(network, adapter)
    prefix = f"{part}." if part else _prefix(network)
    options = options_of(configs(network)[adapter])
    targets = [name for name, layer in parts_of(network, adapter).items() if is_lora(layer)]
    header = json.dumps({f"{prefix}{key}": value for key, value in {**options, "target_modules": targets}.items()})
    check_writable(folder, name="folder")
    path = Path(folder) / (f"{Path(FILE).stem}_{part}.safetensors" if part and part.endswith("_2") else FILE)
    _check_not_another(path, network, part)
    tensors = {f"{prefix}{key}": tensor for key, tensor in adapter_tensors(network, adapter).items()}
    write_safetensors(path, tensors, {"format": "pt", METADATA: header})
    _WRITTEN[path.resolve()] = network
    return path


def load_lora(
    model: nn.Module, folder: str | Path, *, adapter: str | None = None, part: str | None = None
) -> list[nn.Parameter]:
    """Read an adapter into a network; nothing changes when it does not fit.

    Files of `save_lora`, of Diffusers' training scripts (with and without a header), of peft's `save_pretrained`, and
    of kohya's sd-scripts for the models that Diffusers converts.

    Args:
        model: a model without LoRA, which gets it; or with the same LoRA, whose weights are set in place (so that an
            optimizer goes on with its parameters).
        folder: where it was written, or the file.
        adapter: a name. One that the model does not have is put on top of those that it has, which are frozen.
        part: which network of a pipeline the file is for, where it holds several: "unet", "text_encoder".

    Returns:
        The trainable parameters, as of `inject_lora`.

    Raises:
        ValueError: no such file, layers that the model does not have or that have other shapes, or options that cannot
            be brought back.
    """
    network = unwrapped(model)
    check_whole(network, "load_lora", "load the adapter first, then call fully_shard")
    path = find_file(folder, part)
    names = adapter_names(network)
    file = read_adapter(path, network, part)
    if adapter in names or (adapter is None and names):
        return _load_in_place(network, file, own_adapter(network, adapter), named=adapter is not None)
    adapter = adapter or ADAPTER
    check_can_hold(network, adapter)
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    file.check_layers(network)
    put_in(network, file.config(exactly(file.layers)), adapter)
    try:
        _set(network, file, adapter)
    except ValueError:
        take_out(network, adapter)
        for parameter, required in flags:
            parameter.requires_grad_(required)
        raise
    return parameters_of(network, adapter)


def find_file(folder: str | Path, part: str | None) -> Path:
    """The file in a folder; the folder may be the file."""
    if not Path(folder).is_dir():
        return Path(folder)
    second = f"{Path(FILE).stem}_{part}.safetensors"
    names = [name for name in (second, FILE, "adapter_model.safetensors") if (Path(folder) / name).is_file()]
    return Path(folder) / (names[0] if names else FILE)


def adapter_tensors(network: nn.Module, adapter: str) -> dict[str, Tensor]:
    """All tensors of an adapter under peft's names; a layer that is used under two names counts once."""
    with warnings.catch_warnings():
        if configs(network)[adapter].lora_bias:  # peft takes a bias for a shard
            warnings.filterwarnings("ignore", ".*LoRA tensor.*have invalid shape")
        found = import_peft().get_peft_model_state_dict(network, adapter_name=adapter, save_embedding_layers=False)
    parts = parts_of(network, adapter)
    return {key: tensor for key, tensor in found.items() if _owner(key, parts) is not None}


def _owner(key: str, parts: dict[str, Any]) -> str | None:
    while key:
        if key in parts:
            return key
        key = key.rpartition(".")[0]
    return None


def _load_in_place(network: nn.Module, file: AdapterFile, adapter: str, *, named: bool) -> list[nn.Parameter]:
    parameters = parameters_of(network, adapter)
    if not named and not any(parameter.requires_grad for parameter in parameters):
        raise ValueError(
            f"the model has an adapter {adapter!r}, which is frozen: load_lora(..., adapter={adapter!r}) sets its "
            'weights, and adapter="reward" puts this one on top of it'
        )
    file.check_layers(network)
    layers = sorted(name for name, layer in parts_of(network, adapter).items() if is_lora(layer))
    config = configs(network)[adapter]
    if layers != sorted(file.layers) or file.settings(config) != file.settings(file.config(None)):
        raise ValueError(
            f"the model has LoRA already, of other layers, rank or alpha than {file.path} ({file.summary}); load it "
            "into a fresh model, or merge_lora(model) first"
        )
    _set(network, file, adapter)
    return parameters


def _set(network: nn.Module, file: AdapterFile, adapter: str) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in adapter_tensors(network, adapter).items()}
    for key, shape in expected.items():
        found = tuple(file.tensors[key].shape) if key in file.tensors else "missing"
        if found != shape:
            what = key.removesuffix(".weight")
            raise ValueError(f"{file.path}: {what} is {found}, and this model needs {shape}: it is of another model")
    if unknown := [key for key in file.tensors if key not in expected]:
        raise ValueError(f"{file.path} holds {unknown[0]}, which load_lora does not know")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_peft().set_peft_model_state_dict(network, file.tensors, adapter_name=adapter)


def _check_saved_whole(network: nn.Module, adapter: str) -> None:
    check_base_kept(network, adapter)
    check_options(configs(network)[adapter], f"the adapter {adapter!r}")
    for name, layer in parts_of(network, adapter).items():
        if is_lora(layer) and not same_geometry(layer, adapter):
            raise ValueError(
                f"the adapter of {name!r} has another dilation or padding than its layer, which a file does not say: "
                "put it in with inject_lora, which gives it the layer's own"
            )


def _say_untrained(network: nn.Module, adapter: str) -> None:
    """Name the layers whose B is still 0 while others have learnt: the network reads past them."""
    layers = {
        name: layer
        for name, layer in parts_of(network, adapter).items()
        if not is_saved_whole(layer) and adapter in layer.lora_B
    }
    still = [name for name, layer in layers.items() if not layer.lora_B[adapter].weight.any()]
    if still and len(still) < len(layers):
        warn(
            f"{len(still)} of {len(layers)} layers of the adapter are still 0, and have learnt nothing: "
            f"{listed(still)}. They never got a gradient: the network reads their weights past the modules, or does "
            "not use them"
        )


def _check_not_another(path: Path, network: nn.Module, part: str | None) -> None:
    other = _WRITTEN.get(path.resolve())
    another = other is not None and other is not network and type(other) is type(network) and path.is_file()
    if another and type(network).__name__ in TWO_EXPERTS:
        raise ValueError(
            f"{path} holds the adapter of another {type(network).__name__}, which is in use: save the second one "
            'with part="transformer_2", or into a folder of its own'
        )
    if part is None and type(network).__name__ in TWO_EXPERTS:
        warn(
            f"the keys of {path} begin with 'transformer.', which Diffusers loads into the first expert of a pipeline "
            'with two (Wan 2.2): say part="transformer_2" for the second one, part="transformer" for the first'
        )


def _prefix(network: nn.Module) -> str:
    kind, module = type(network).__name__, type(network).__module__
    if module.startswith("transformers."):
        return "text_encoder."
    if "ControlNet" in kind:
        return "controlnet."
    if "UNet" in kind:
        return "unet."
    return "transformer." if module.startswith("diffusers.") else ""
