"""The networks behind `create_extractor`: each function returns a module that maps prepared images to `(N, dim)`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.checks import check_count
from qa_hooks._base.libraries import import_library
from qa_hooks.functional.channel_statistics import channel_statistics

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of its colours
DINOV2 = {
    "dinov2_vits14": "facebook/dinov2-small",
    "dinov2_vitb14": "facebook/dinov2-base",
    "dinov2_vitl14": "facebook/dinov2-large",
    "dinov2_vitg14": "facebook/dinov2-giant",
}
DINOV2_SIZES: dict[str, dict[str, Any]] = {  # what their files say, for untrained ones
    "dinov2_vits14": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "dinov2_vitb14": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "dinov2_vitl14": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "dinov2_vitg14": {
        "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True
    },
}  # fmt: skip


class RandomNetwork(nn.Module):
    """Untrained 3x3 convolutions at four scales; the log mean and log deviation of each channel of each scale.

    Random convolutions with rectifiers are texture statistics: blur, noise and missing detail move them, and two
    installations have the same ones, because the weights come from a seed. The logarithm keeps the few strongest
    channels from deciding alone (95 % of the variance of photographs lay in 6 directions without it, 29 with it).
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        widths = [3, width, 2 * width, 2 * width, 2 * width]
        self.layers = nn.ModuleList()
        for stage, (before, after) in enumerate(pairwise(widths)):
            layer = nn.utils.skip_init(nn.Conv2d, before, after, 3, stride=1 if stage == 0 else 2)
            with torch.no_grad():
                for values, deviation in ((layer.weight, (2 / (9 * before)) ** 0.5), (layer.bias, 0.1)):
                    drawn = torch.randn(values.shape, generator=generator, device="cpu", dtype=torch.float32)
                    values.copy_(drawn * deviation)
            self.layers.append(layer)

    def forward(self, images: Tensor) -> Tensor:
        return (channel_statistics(self.stages(images)) + 0.01).log()

    def stages(self, images: Tensor) -> list[Tensor]:
        """The rectified maps of the four scales, `(N, C, h, w)` each."""
        found = []
        for layer in self.layers:
            images = F.relu_(layer(F.pad(images, (1, 1, 1, 1), mode="replicate")))
            found.append(images)
        return found


def random_network(seed: int = 0, width: int = 32) -> nn.Module:
    """`14 * width` values, seeded; the global random state is not used."""
    with _cpu_float32():
        return RandomNetwork(check_count("width", width), torch.Generator().manual_seed(int(seed)))


def torchvision_names() -> list[str]:
    """torchvision's classification networks."""
    from torchvision import models

    return list(models.list_models(module=models))


def untrained_size(name: str) -> int:
    """The weights of a network of torchvision or of DINOv2, counted without making it."""
    with torch.device("meta"):
        if name in DINOV2:
            from transformers import Dinov2Config, Dinov2Model

            network: nn.Module = Dinov2Model(Dinov2Config(**DINOV2_SIZES[name]))
        else:
            from torchvision import models

            network = models.get_model(name, weights=None)
    return sum(parameter.numel() for parameter in network.parameters())


def torchvision_network(name: str, weights: str | Path | None = "DEFAULT", *, download: bool = True) -> nn.Module:
    """A torchvision network up to the input of its last linear layer."""
    from torchvision import models

    path = Path(str(weights)) if weights is not None and Path(str(weights)).is_file() else None
    if weights is not None and path is None and not download:
        known = models.get_model_weights(name)
        if str(weights) not in ("DEFAULT", *known.__members__):
            raise ValueError(f"{name} has no weights {weights!r}")
        _check_cached(name, known[str(weights)].url)
    with _cpu_float32(), torch.random.fork_rng(devices=[]):  # an untrained network's initialisation
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach the GPUs
        try:
            network: nn.Module = models.get_model(name, weights=None if path is not None else weights)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"{name} has no weights {weights!r}: give one of torchvision's names, the path of a state dict that "
                f"exists, or None ({error})"
            ) from error
        except OSError as error:
            raise RuntimeError(_no_download(name, error)) from error
    last = [key for key, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not last:
        raise ValueError(f"{name} has no linear layer whose input could be its features; wrap the part that you want")
    parent, _, key = last[-1].rpartition(".")
    setattr(network.get_submodule(parent), key, nn.Identity())
    if path is not None:
        state = _plain_state(read_state(path))
        _load(network, {k: v for k, v in state.items() if not k.startswith(last[-1] + ".")}, path)
    return network


def _check_cached(name: str, url: str) -> None:
    """`RuntimeError` unless torch.hub has downloaded the file before."""
    if not Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]).is_file():
        raise RuntimeError(f"the weights of {name} are not on this machine, and a file starts no download")


def _cached_model(name: str, source: str) -> str:
    """The folder of a model that the Hugging Face hub has downloaded before; `RuntimeError` when it has not."""
    from huggingface_hub import try_to_load_from_cache

    files = [try_to_load_from_cache(source, file) for file in ("config.json", "model.safetensors")]
    if not all(isinstance(file, str) for file in files):
        raise RuntimeError(f"the weights of {name} are not on this machine, and a file starts no download")
    return str(Path(str(files[0])).parent)


@contextlib.contextmanager
def _cpu_float32() -> Iterator[None]:
    """A network is the same whatever the user's default device and default type are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


def _no_download(name: str, error: Exception) -> str:
    return (
        f"the weights of {name} could not be downloaded ({error}); without a network give weights=PATH, a file on "
        'this disk, or use the extractor "random"'
    )


def _plain_state(state: Any) -> dict[str, Any]:
    """The state dict in a checkpoint: without a wrapping key and without DistributedDataParallel's prefix."""
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        return {}
    return {str(key).removeprefix("module."): value for key, value in state.items()}


class Inception(nn.Module):
    """torch-fidelity's InceptionV3 with TensorFlow's weights, pool3; equal to its own forward, and differentiable."""

    LAYERS = (
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_1 Conv2d_3b_1x1 Conv2d_4a_3x3 MaxPool_2 Mixed_5b Mixed_5c "
        "Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c AvgPool"
    )

    def __init__(self, network: nn.Module, resize: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.resize = network, resize

    def forward(self, images: Tensor) -> Tensor:
        # [0, 1] times 255 gives back the uint8 values that FID is defined on to within rounding; generated images are
        # quantised by whoever measures, not here, where a gradient flows.
        values = self.resize(images * 255, size=(299, 299), align_corners=False)
        values = (values - 128) / 128
        for name in self.LAYERS.split():
            values = getattr(self.network, name)(values)
        return values.flatten(1)


def inception(weights: str | Path | None = None, *, download: bool = True) -> nn.Module:
    """The network of the canonical FID."""
    import_library("torch_fidelity", needed_by="the canonical Inception", install="pip install torch-fidelity")
    from torch_fidelity import feature_extractor_inceptionv3 as source
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    def state(url: str, **_options: Any) -> Any:
        if weights is not None:
            return read_state(Path(weights))
        if not download:
            _check_cached("inception", url)
        try:
            return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        except OSError as error:
            raise RuntimeError(_no_download("inception", error)) from error

    with _loads_by(source, state), _cpu_float32(), torch.random.fork_rng(devices=[]):
        try:
            network = source.FeatureExtractorInceptionV3("inception", ["2048"])
        except RuntimeError as error:
            if weights is None:
                raise
            raise ValueError(
                f"{weights or 'the downloaded file'} does not fit torch-fidelity's Inception: {error}"
            ) from error
    return Inception(network, resize)


@contextlib.contextmanager
def _loads_by(module: Any, load: Callable[..., Any]) -> Iterator[None]:
    """torch-fidelity unpickles what it loads: while its network is made, `load` stands in its place."""
    original = module.load_state_dict_from_url
    module.load_state_dict_from_url = load
    try:
        yield
    finally:
        module.load_state_dict_from_url = original


class ClassToken(nn.Module):
    """A vision transformer of transformers, up to its normalised class token."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = self.network(pixel_values=images).last_hidden_state
        return hidden[:, 0]

    def stages(self, images: Tensor) -> list[Tensor]:
        """The patches' tokens after each block, as `(N, C, patches, 1)`."""
        hidden = self.network(pixel_values=images, output_hidden_states=True).hidden_states
        return [tokens[:, 1:].transpose(1, 2).unsqueeze(3) for tokens in hidden[1:]]


def dinov2(name: str, weights: str | Path | None = "DEFAULT", *, download: bool = True) -> nn.Module:
    """DINOv2 from Hugging Face, or from a folder on disk; its files are safetensors."""
    import_library("transformers", needed_by="DINOv2")
    from transformers import Dinov2Config, Dinov2Model

    if weights is None:
        with _cpu_float32(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return ClassToken(Dinov2Model(Dinov2Config(**DINOV2_SIZES[name])))
    source = DINOV2[name] if weights == "DEFAULT" else str(weights)
    if not download and not Path(source).is_dir():
        source = _cached_model(name, source)
    with _cpu_float32(), torch.random.fork_rng(devices=[]):
        try:
            return ClassToken(Dinov2Model.from_pretrained(source, use_safetensors=True))
        except OSError as error:
            raise RuntimeError(_no_download(name, error)) from error


def read_state(path: Path) -> Any:
    """A state dict from safetensors or, without unpickling objects, from a torch file."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and safetensors have no common error
        reason = str(error).split("\n")[0].split(". ")[0]  # torch goes on to advise unpickling
        raise ValueError(f"{path} is not a readable state dict: {reason}") from error


def _load(network: nn.Module, state: Any, path: Path) -> None:
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit {type(network).__name__}: {error}") from error
