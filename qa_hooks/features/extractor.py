"""A feature extractor: a frozen network with its own resize and normalisation, images in [0, 1] in, vectors out.

Two numbers can be compared only when they were computed in the same features, so an extractor states its `name` and a
`fingerprint` of weights and preprocessing. Fitted objects refuse features with another fingerprint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.checks import check_channels, check_count
from qa_hooks._base.frozen import KeepsFrozen
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.isolation import isolated
from qa_hooks.images import check_images, to_grey, to_unit


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
        features = self._call(self.network, images)
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
        stages = getattr(self.network, "stages", None)
        if not callable(stages):
            raise ValueError(
                f"{self.name} gives one vector and no stages; take random, efficientnet_lite0-stages, hed-stages or "
                "DINOv2, or give your network a method stages(images) that returns a list of maps (N, C, h, w)"
            )
        found = list(self._call(stages, images))
        if not found or not all(isinstance(maps, Tensor) and maps.ndim == 4 for maps in found):
            raise ValueError(f"{self.name}.stages must return a list of tensors (N, C, h, w)")
        return [maps.float() for maps in found]

    def _call(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        """What the network, or a method of it, gives for images."""
        check_images("images", images, floating=False)
        if self.network.training:  # somebody else's .train() has reached it
            self.network.eval()
        prepared = self.prepare(images)
        with torch.autocast(prepared.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return function(prepared)

    @property
    def reads_prompts(self) -> bool:
        """Whether the network has a place for prompts in the space of its images, as CLIP has."""
        return callable(getattr(self.network, "texts", None))

    def prompts(self, prompts: Sequence[str]) -> Tensor:
        """`(N, dim)` features of N prompts, in the space of the images' features.

        Raises:
            ValueError: the network knows no prompts.
        """
        if not self.reads_prompts:
            raise ValueError(
                f"{self.name} knows images and no prompts; take a CLIP-like model: "
                "create_extractor('transformers:MODEL')"
            )
        self.network.eval()
        features: Tensor = self.network.texts(list(prompts))  # type: ignore[operator]
        if features.shape != (len(prompts), self.dim):
            raise ValueError(
                f"{self.name} must give one vector for each prompt: ({len(prompts)}, {self.dim}), got "
                f"{tuple(features.shape)}"
            )
        return features.float()

    def prepare(self, images: Tensor) -> Tensor:
        """Channels, resize and normalisation; `(N, channels, size, size)` float32."""
        images = to_unit(images, (0.0, 1.0)).float()
        check_channels(self.name, images)
        if self.channels == 1:
            images = to_grey(images)
        elif images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.size is not None and images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode=self.interpolation, antialias=True)
        return (images - self.mean) / self.std

    @property
    def is_canonical(self) -> bool:
        """Whether this is the Inception network of the published FID, made by `create_extractor`."""
        return (self.spec or {}).get("type") == "inception"

    @property
    def is_untrained(self) -> bool:
        """Whether the network is untrained: the seeded random one, or one made without weights; not your own."""
        spec = self.spec or {}
        return spec.get("type") == "random" or spec.get("weights", "") is None

    @property
    def doubt(self) -> str:
        """What is to be said beside a value in features of an untrained network; "" for others."""
        if not self.is_untrained:
            return ""
        return f"the features of {self.name} are untrained and see that images differ, not which are better"

    @property
    def resizes(self) -> bool:
        """Whether all images are resized to one size."""
        return self.size is not None or self.is_canonical

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
