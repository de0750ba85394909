"""What files of adapters hold, whoever wrote them: tensors under peft's names, and the options of peft.

save_lora, Diffusers    unet.<layer>.lora_A.weight             options in the header (new) or nowhere (old)
old Diffusers scripts   unet.<layer>.lora.down.weight          rank from the shapes, alpha = rank
peft                    base_model.model.<layer>.lora_A.weight options in adapter_config.json
kohya                   lora_unet_<layer>.lora_down.weight     alpha as a tensor; Diffusers' converters read it
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.adapters import import_peft, is_lora
from qa_hooks._base.checks import warn
from qa_hooks._base.files import read_safetensors
from qa_hooks._base.headers import parse_header

FILE = "pytorch_lora_weights.safetensors"  # the names that Diffusers looks for
METADATA = "lora_adapter_metadata"
PARTS = (
    *("unet", "transformer", "transformer_2", "prior", "decoder", "controlnet"),
    *("text_encoder", "text_encoder_2", "text_encoder_3"),
)
FOREIGN = ("lora_unet_", "lora_te", "lora_transformer_", "diffusion_model.")  # of kohya, ComfyUI and others
WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")  # of peft, DDP and torch.compile
OPTIONS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "modules_to_save")
# What says which layers, how they began and what happens in training: the tensors say the rest.
NO_MATTER = (
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "inference_mode"),
    *("init_lora_weights", "eva_config", "loftq_config", "runtime_config", "task_type", "peft_type", "auto_mapping"),
    *("base_model_name_or_path", "revision", "peft_version", "ensure_weight_tying", "bias"),
)


def options_of(config: Any) -> dict[str, Any]:
    """The options of an adapter that a file keeps: rank and alpha, and others where they are not peft's default."""
    default = import_peft().LoraConfig()
    kept = {name: getattr(config, name) for name in OPTIONS if hasattr(config, name)}
    kept = {n: v for n, v in kept.items() if n in ("r", "lora_alpha") or v != getattr(default, n)}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in kept.items()}


def check_options(config: Any, whose: str) -> None:
    """Refuse options of peft that tensors and `OPTIONS` do not bring back, whatever peft comes to have."""
    given = config if isinstance(config, Mapping) else config.to_dict()
    default = import_peft().LoraConfig().to_dict()
    for name, value in given.items():
        if name not in (*OPTIONS, *NO_MATTER) and value and value != default.get(name):
            raise ValueError(f"{whose} has {name}={value!r}, which a file of an adapter does not bring back here")
    if given.get("bias", "none") != "none":
        raise ValueError(f"{whose} has bias={given['bias']!r}, which trains the base itself: it holds no whole adapter")


@dataclasses.dataclass
class AdapterFile:
    """An adapter as read.

    Attributes:
        path: the file.
        tensors: by peft's names, without a prefix.
        options: of `peft.LoraConfig`.
    """

    path: Path
    tensors: dict[str, Tensor]
    options: dict[str, Any]

    @property
    def layers(self) -> list[str]:
        """The layers that have an A."""
        return sorted({_layer(key) for key in self.tensors if ".lora_" in key})

    @property
    def summary(self) -> str:
        return f"rank {self.options['r']}, alpha {float(self.options['lora_alpha']):g}"

    def config(self, targets: str | None) -> Any:
        """The adapter's configuration, as peft has it."""
        return import_peft().LoraConfig(target_modules=targets, **self.options)

    def settings(self, config: Any) -> tuple[Any, ...]:
        """The settings of the adapter; two adapters with equal settings differ only in their weights."""
        rest = (config.use_rslora, config.use_dora, config.lora_bias, sorted(config.modules_to_save or []))
        ranks = {name: _of(config.rank_pattern, name, config.r) for name in self.layers}
        alphas = {name: float(_of(config.alpha_pattern, name, config.lora_alpha)) for name in self.layers}
        return ranks, alphas, *rest

    def check_layers(self, network: nn.Module) -> None:
        """Refuse a file of another model."""
        present = dict(network.named_modules())
        for name in self.layers:
            module: Any = present.get(name)
            if module is not None and is_lora(module):
                module = module.get_base_layer()
            if not isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)):
                what = "no such layer" if module is None else f"a {type(module).__name__} there"
                raise ValueError(
                    f"{self.path} is for the layer {name!r}, and this model has {what}: it is of another model"
                )


def _of(pattern: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    """peft's rule: the first pattern that fits the end of the name."""
    return next((v for key, v in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), default)


def read_adapter(path: Path, network: nn.Module, part: str | None) -> AdapterFile:
    """The adapter in a file, for this network.

    Raises:
        ValueError: no such file, a form that is not known, or several networks' adapters of which none is named.
    """
    tensors, metadata = read_safetensors(path, "does not hold a LoRA adapter")
    facts = _facts(path, metadata)
    alphas: dict[str, float] = {}
    own = {name for name, _ in network.named_modules()}
    if any(key.startswith(FOREIGN) or ".lora_down." in key for key in tensors if _layer(key) not in own):
        tensors, alphas = _converted(path, tensors, network)
    tensors = {_without_wrappers(key, own): tensor for key, tensor in tensors.items()}
    prefix = _chosen(path, tensors, facts, network, part)
    tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    alphas = {key.removeprefix(prefix).removesuffix(".alpha"): value for key, value in alphas.items()}
    facts = {key.removeprefix(prefix): value for key, value in facts.items() if key.startswith(prefix)}
    if any(".lora.down" in key or "_lora.down" in key for key in tensors):
        tensors, alphas = (
            _renamed(tensors),
            {key.rpartition(".lora_")[0] or key: a for key, a in _renamed(alphas).items()},
        )
    tensors = {key.replace("magnitude_vector.weight", "magnitude_vector"): tensor for key, tensor in tensors.items()}
    for key in [key for key in tensors if key.endswith(".alpha")]:
        alphas[key.removesuffix(".alpha")] = float(tensors.pop(key))
    if facts:
        check_options(facts, str(path))
        options = {name: facts[name] for name in OPTIONS if facts.get(name) is not None}
        if not {"r", "lora_alpha"} <= options.keys():
            raise ValueError(f"{path} has a header that does not say its rank and alpha; save it with save_lora")
    else:
        options = _from_shapes(path, tensors, alphas)
    saved = tuple(options.get("modules_to_save") or ())
    known = re.compile(r".*\.lora_([AB]\.(weight|bias)|magnitude_vector|embedding_[AB])")
    for key in tensors:
        whole = any(re.fullmatch(rf"(.*\.)?{re.escape(name)}\..*", key) for name in saved)
        if not known.fullmatch(key) and not whole:
            raise ValueError(f"{path} holds {prefix}{key}, which load_lora does not know; {_WAY_OUT}")
    return AdapterFile(path, tensors, options)


def _layer(key: str) -> str:
    return key.rpartition(".lora_")[0]


def _without_wrappers(key: str, own: Collection[str]) -> str:
    """A tensor's name without what wraps a network, and without the name of the adapter in peft's own modules."""
    while key.startswith(WRAPPERS) and _layer(key) not in own:
        key = key.removeprefix(next(wrapper for wrapper in WRAPPERS if key.startswith(wrapper)))
    return re.sub(r"(\.lora_[AB])\.(?!weight$|bias$)[^.]+\.(weight|bias)$", r"\1.\2", key)


_WAY_OUT = (
    "if pipe.load_lora_weights(...) of its pipeline reads it, load it there and go on with lora_parameters(pipe.unet)"
)


def _facts(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The options that came with the tensors, with the file's own prefixes."""
    beside = path.parent / "adapter_config.json"
    try:
        if METADATA in metadata:
            return dict(parse_header(metadata[METADATA]))
        if path.name == "adapter_model.safetensors" and beside.is_file():
            return dict(parse_header(beside.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} has options that are not JSON: {error}") from error
    return {}


def _chosen(
    path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], network: nn.Module, part: str | None
) -> str:
    """The prefix of the keys that are this network's: what is behind it are names of its layers."""
    if part is not None:
        if not any(key.startswith(f"{part}.") for key in tensors):
            raise ValueError(f"{path} holds nothing for part={part!r}; its keys begin like {next(iter(tensors), '')!r}")
        return f"{part}."
    if not tensors or "r" in facts:
        return ""
    heads = list(dict.fromkeys(key.partition(".")[0] for key in tensors))
    present = dict(network.named_modules())
    if not set(heads) <= set(PARTS) or all(key.rpartition(".lora")[0] in present for key in tensors):
        return ""
    if len(heads) > 1:
        fitting = [head for head in heads if _fits(head, tensors, present)]
        if len(fitting) != 1:
            raise ValueError(f"{path} holds adapters for {heads}: say which one is this network's, part={heads[0]!r}")
        return f"{fitting[0]}."
    return f"{heads[0]}."


def _fits(head: str, tensors: Mapping[str, Tensor], present: Mapping[str, nn.Module]) -> bool:
    names = [key.removeprefix(f"{head}.") for key in tensors if key.startswith(f"{head}.")]
    return all(name.replace(".processor", "").rpartition(".lora")[0] in present for name in names)


def _from_shapes(path: Path, tensors: Mapping[str, Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Rank and alpha of each layer, where no header says them; without alphas they are the ranks."""
    ranks = {k.removesuffix(".lora_A.weight"): len(t) for k, t in tensors.items() if k.endswith(".lora_A.weight")}
    if not ranks:
        raise ValueError(f"{path} does not hold a LoRA adapter: it has no A of any layer. {_WAY_OUT}")
    if not alphas:
        warn(f"{path} does not say its alpha, which is taken to be its rank, as Diffusers does")
    found = {name: float(alphas.get(name, rank)) for name, rank in ranks.items()}
    rank, alpha = (collections.Counter(d.values()).most_common(1)[0][0] for d in (ranks, found))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{re.escape(name)}": value for name, value in found.items() if value != alpha},
        "use_dora": any(key.endswith("lora_magnitude_vector") for key in tensors),
        "lora_bias": any(key.endswith(".lora_B.bias") for key in tensors),
    }


def _converted(
    path: Path, tensors: dict[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """kohya's names as Diffusers' own converters change them, by the pipeline that this network belongs to."""
    pipeline = pipeline_class(network)
    if pipeline is None or not hasattr(pipeline, "lora_state_dict"):
        raise ValueError(
            f"{path} has another trainer's names of layers, which Diffusers cannot convert for a "
            f"{type(network).__name__}; {_WAY_OUT}"
        )
    config = {"unet_config": network.config} if hasattr(network, "config") and "UNet" in type(network).__name__ else {}
    try:
        found = pipeline.lora_state_dict(dict(tensors), **config)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} has names of layers that Diffusers cannot convert ({error}); {_WAY_OUT}") from error
    state, alphas = found if isinstance(found, tuple) else (found, None)
    return dict(state), {key: float(value) for key, value in (alphas or {}).items()}


def _renamed(named: Mapping[str, Any]) -> dict[str, Any]:
    """Names of Diffusers' old scripts, `attn1.processor.to_q_lora.down.weight`, as peft's."""
    from diffusers.utils import state_dict_utils

    found: dict[str, Any] = state_dict_utils.convert_unet_state_dict_to_peft(named)  # type: ignore[no-untyped-call]
    return found


def pipeline_class(network: nn.Module) -> Any:
    """The pipeline of Diffusers that a denoiser of Diffusers belongs to; None where the names do not say it."""
    kind = type(network).__name__
    if not type(network).__module__.startswith("diffusers."):
        return None
    import diffusers

    if kind == "UNet2DConditionModel":
        large = getattr(network.config, "addition_embed_type", None) == "text_time"
        return diffusers.StableDiffusionXLPipeline if large else diffusers.StableDiffusionPipeline
    stem = {"SD3": "StableDiffusion3", "LTXVideo": "LTX"}
    name = re.sub(r"Transformer[23]?D?(Model)?$|Transformer2DModel$|Transformer3DModel$", "", kind)
    return getattr(diffusers, f"{stem.get(name, name)}Pipeline", None)
