"""Networks stored for ncnn (a `.param` of text and a `.bin` of weights) as torch modules that can be trained.

Only the layers that super-resolution networks of the families SRVGG and RRDB are made of are read; anything else is
refused by name. The format is that of ncnn's wiki, "param and model file structure". Nothing is unpickled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAGIC = "7767517"
HALF = 0x01306B47  # the tag before weights in 16 bits; 0 stands before weights in 32 bits
ARRAYS = -23300  # a key below this holds an array: option -key - 23300
INTERPOLATION = {1: "nearest", 2: "bilinear", 3: "bicubic"}
OPTIONS = {  # the options that are read, by kind of layer; with another the layer would mean something else
    "Input": {0, 1, 2},
    "Split": set(),
    "Convolution": {0, 1, 4, 5, 6, 9, 10},  # channels, kernel, padding, bias?, weights, activation and its slope
    "PReLU": {0},
    "PixelShuffle": {0},
    "Interp": {0, 1, 2},
    "BinaryOp": {0},
    "Eltwise": {0, 1},
    "Concat": {0},
}


@dataclass(frozen=True)
class Layer:
    """A line of a `.param`: what it is, the names of the maps it reads and writes, and its numbered options."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: dict[int, tuple[float, ...]]

    def number(self, key: int, default: float | None = None) -> float:
        """The option `key`; without a default it must be there."""
        found = self.options.get(key, () if default is None else (default,))
        if len(found) != 1:
            raise ValueError(f"layer {self.name} ({self.kind}): option {key} should be one number, got {found}")
        return found[0]

    def whole(self, key: int, default: int | None = None) -> int:
        """The option `key`, which must be a whole number and not negative."""
        found = self.number(key, default)
        if found < 0 or found != int(found):
            raise ValueError(f"layer {self.name} ({self.kind}): option {key} should be a whole number, got {found:g}")
        return int(found)


class NCNNNetwork(nn.Module):
    """The network of a pair of files: images `(N, C, H, W)` -> images or features, with gradients.

    Args:
        layers: in their order.
        weights: the bytes of the `.bin`.

    Raises:
        ValueError: layers that do not fit together, or weights that do not fit the layers.
    """

    def __init__(self, layers: list[Layer], weights: bytes) -> None:
        super().__init__()
        self.layers, self.learned = layers, nn.ModuleDict()
        reader, open_maps = _Weights(weights), set[str]()
        for place, layer in enumerate(layers):
            _check(layer, open_maps)
            if layer.kind == "Convolution":
                self.learned[str(place)] = _convolution(layer, reader)
            elif layer.kind == "PReLU":
                slopes = reader.plain(layer.whole(0))
                with torch.device("meta"):
                    module = nn.PReLU(len(slopes))
                module.weight = nn.Parameter(slopes)
                self.learned[str(place)] = module
            open_maps = (open_maps - set(layer.inputs)) | set(layer.outputs)
        if len(open_maps) != 1 or not layers or [layer.kind for layer in layers].count("Input") != 1:
            raise ValueError(f"a network has one input and one output, these layers end in {sorted(open_maps)}")
        reader.close()

    def forward(self, images: Tensor) -> Tensor:
        maps: dict[str, Tensor] = {}
        for place, layer in enumerate(self.layers):
            given = [images] if layer.kind == "Input" else [maps.pop(name) for name in layer.inputs]
            result = self.learned[str(place)](given[0]) if str(place) in self.learned else _run(layer, given)
            maps.update((name, result) for name in layer.outputs)
        return maps.popitem()[1]


def read_ncnn(param: str | Path) -> NCNNNetwork:
    """Read a network from `name.param` and, beside it, `name.bin`.

    Args:
        param: the text file.

    Raises:
        FileNotFoundError: one of the files is not there.
        ValueError: not a network of ncnn, or one with layers that are not read here; the message has the layer.
    """
    param = Path(param)
    weights = param.with_suffix(".bin")
    try:
        return NCNNNetwork(read_layers(param.read_text(encoding="ascii")), weights.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{param} is no .param of ncnn: it should be text ({error})") from error
    except ValueError as error:
        raise ValueError(f"{param} with {weights.name}: {error}") from error


def read_layers(text: str) -> list[Layer]:
    """The layers of a `.param`."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines or lines[0] != [MAGIC]:
        raise ValueError(f"a .param begins with {MAGIC}, got {' '.join(lines[0])[:40] if lines else 'an empty file'!r}")
    try:
        count = int(lines[1][0])
        layers = [_layer(words) for words in lines[2:]]
    except (IndexError, OverflowError) as error:
        raise ValueError(f"a line is cut off: {error}") from error
    if count != len(layers):
        raise ValueError(f"it announces {count} layers and has {len(layers)}")
    return layers


def _layer(words: list[str]) -> Layer:
    kind, name, reads, writes = words[0], words[1], int(words[2]), int(words[3])
    if len(words) < 4 + reads + writes or min(reads, writes) < 0:
        raise ValueError(f"layer {name} ({kind}) is cut off")
    options = {}
    for word in words[4 + reads + writes :]:
        left, _, right = word.partition("=")
        key, values = int(left), tuple(float(value) for value in right.split(","))
        if not all(math.isfinite(value) for value in values):
            raise ValueError(f"layer {name} ({kind}): {word} is not a finite number")
        if key <= ARRAYS:
            key, length, values = ARRAYS - key, values[0], values[1:]
            if length != len(values):
                raise ValueError(f"layer {name} ({kind}): {word} is not an array of {length:g} numbers")
        options[key] = values
    return Layer(kind, name, tuple(words[4 : 4 + reads]), tuple(words[4 + reads : 4 + reads + writes]), options)


def _check(layer: Layer, known: set[str]) -> None:
    """Refuse what `_run` would compute wrongly or stumble over."""
    if layer.kind not in OPTIONS:
        raise ValueError(f"layer {layer.name} is of the kind {layer.kind}; read are {', '.join(OPTIONS)}")
    strange = sorted(set(layer.options) - OPTIONS[layer.kind])
    if strange:
        raise ValueError(f"layer {layer.name} ({layer.kind}) has option {strange[0]}, which is not read here")
    unknown = [name for name in layer.inputs if name not in known]
    if unknown or len(set(layer.inputs)) != len(layer.inputs):
        raise ValueError(f"layer {layer.name} reads {', '.join(unknown or layer.inputs)}, which no open map provides")
    fan_in = {"Input": (0, 0), "BinaryOp": (2, 2), "Eltwise": (2, 99), "Concat": (1, 99)}.get(layer.kind, (1, 1))
    if not fan_in[0] <= len(layer.inputs) <= fan_in[1] or (len(layer.outputs) != 1 and layer.kind != "Split"):
        raise ValueError(f"layer {layer.name} ({layer.kind}): {len(layer.inputs)} inputs, {len(layer.outputs)} outputs")
    if layer.kind == "Interp":
        scales = layer.number(1), layer.number(2)
        if layer.whole(0) not in INTERPOLATION or scales[0] != scales[1] or not 0 < scales[0] <= 16:
            raise ValueError(f"layer {layer.name}: interpolation {layer.options} is not read here")
    additions = {"BinaryOp": 0, "Eltwise": 1}
    if layer.kind in additions and layer.whole(0, 0) != additions[layer.kind]:
        raise ValueError(f"layer {layer.name} ({layer.kind}): only additions are read, not operation {layer.number(0)}")
    if layer.kind == "Eltwise" and len(layer.options.get(1, layer.inputs)) != len(layer.inputs):
        raise ValueError(f"layer {layer.name}: {len(layer.options[1])} coefficients for {len(layer.inputs)} maps")
    if layer.kind == "Concat" and layer.whole(0, 0) != 0:
        raise ValueError(f"layer {layer.name}: only channels are concatenated, not axis {layer.number(0):g}")
    if layer.kind == "PixelShuffle" and layer.whole(0) < 1:
        raise ValueError(f"layer {layer.name}: pixels are shuffled by 1 or more, not {layer.number(0):g}")


def _run(layer: Layer, maps: list[Tensor]) -> Tensor:
    match layer.kind:
        case "PixelShuffle":
            return F.pixel_shuffle(maps[0], layer.whole(0))
        case "Interp":
            return F.interpolate(maps[0], scale_factor=layer.number(1), mode=INTERPOLATION[layer.whole(0)])
        case "BinaryOp":
            return maps[0] + maps[1]
        case "Eltwise":
            coefficients = layer.options.get(1, (1.0,) * len(maps))
            return torch.stack([k * map_ for k, map_ in zip(coefficients, maps, strict=True)]).sum(0)
        case "Concat":
            return torch.cat(maps, 1)
    return maps[0]  # Input, Split


def _convolution(layer: Layer, reader: _Weights) -> nn.Module:
    """A convolution, with its activation behind it if it has one."""
    width, kernel, size = (layer.whole(key) for key in (0, 1, 6))
    before, rest = divmod(size, max(1, width * kernel**2))
    if min(width, kernel, size) < 1 or rest:
        raise ValueError(f"layer {layer.name}: {size} weights for {width} channels of {kernel} x {kernel}")
    kind, slope = layer.whole(9, 0), layer.options.get(10, (0.0,))[0]
    if kind not in (0, 1, 2):
        raise ValueError(f"layer {layer.name}: activation {kind} is not read here")
    with torch.device("meta"):
        module = nn.Conv2d(before, width, kernel, padding=layer.whole(4, 0), bias=bool(layer.whole(5, 0)))
    state = {"weight": reader.tagged(size).view(width, before, kernel, kernel)}
    if module.bias is not None:
        state["bias"] = reader.plain(width)
    module.load_state_dict(state, assign=True)
    module.requires_grad_(True)
    return nn.Sequential(module, nn.LeakyReLU(slope if kind == 2 else 0.0)) if kind else module


class _Weights:
    """Numbers out of a `.bin`, one array after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def tagged(self, count: int) -> Tensor:
        """An array whose precision stands before it."""
        tag = int(self._take(1, "<u4")[0])
        if tag not in (0, HALF):
            raise ValueError(f"weights with the tag {tag:#x} are compressed; read are 32 and 16 bits")
        return self.plain(count, "<f2" if tag else "<f4")

    def plain(self, count: int, kind: str = "<f4") -> Tensor:
        return torch.from_numpy(self._take(count, kind).astype(np.float32))

    def close(self) -> None:
        if self.place != len(self.data):
            raise ValueError(f"the layers have {self.place} bytes of weights, the file has {len(self.data)}")

    def _take(self, count: int, kind: str) -> np.ndarray:
        size = count * np.dtype(kind).itemsize
        if self.place + size > len(self.data):
            raise ValueError(f"the weights end at byte {len(self.data)}, a layer reads up to {self.place + size}")
        found = np.frombuffer(self.data, kind, count, self.place)
        self.place += -(-size // 4) * 4  # arrays begin at multiples of 4
        return found
