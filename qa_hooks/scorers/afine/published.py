"""A-FINE as it was published, from its checkpoint `afine.pth` or from a safetensors file made of it.

    D = F + lambda N, lambda = exp(k (N(reference) - N(image)))          lower is better; heads.py has the formulas

The backbone is CLIP's ViT-B/32, fine-tuned. Sides are stretched to multiples of 32 by bicubic interpolation, as the
published code does; images themselves are not changed. Batches of any size give the numbers of single images.

The checkpoint is on Google Drive (the link is in the README of github.com/ChrisDud0257/AFINE, Apache-2.0). It is read
without unpickling objects (`weights_only=True`). CLIP's own file is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from qa_hooks._base.checks import check_channels
from qa_hooks.features.networks import read_state
from qa_hooks.images import Range
from qa_hooks.scorers.afine.adaptive import AdaptiveScorer
from qa_hooks.scorers.afine.checkpoint import BACKBONE, find_weights, networks_of, parts_of
from qa_hooks.scorers.afine.heads import Heads, Level

Own = TypeVar("Own", bound="AFINE")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's


class AFINE(AdaptiveScorer):
    """The published A-FINE (2025): lower is better, [0, 100]; it may find an image better than its reference.

    Args:
        weights: the path of `afine.pth`, or its content, a dictionary of state dicts. None looks for afine.safetensors
            (from `qa-hooks fit afine --convert`) and afine.pth in torch.hub's folder of checkpoints.
        part: what a call returns, see `AdaptiveScorer`.
        value_range: what the numbers of the images mean.

    Raises:
        ValueError: no file, or one that is no checkpoint of A-FINE; when called: images that are neither grey nor RGB.

    Example:
        >>> from qa_hooks.scorers.afine.checkpoint import random_checkpoint
        >>> scorer = AFINE(random_checkpoint())  # random weights of a small shape; AFINE("afine.pth") for the real ones
        >>> image = torch.rand(1, 3, 40, 64)
        >>> scorer(image, reference=image).shape, float(scorer.terms(image, image).log_lambda)
        (torch.Size([1]), 0.0)
    """

    name = "afine"

    def __init__(
        self,
        weights: str | Path | Mapping[str, Any] | None = None,
        *,
        part: str = "score",
        value_range: Range = (0.0, 1.0),
    ) -> None:
        super().__init__(part=part, value_range=value_range)
        self.name = "afine" if part == "score" else f"afine_{part}"
        where = "the checkpoint" if isinstance(weights, Mapping) else str(weights or find_weights())
        try:
            with torch.inference_mode(False):  # weights made in it could take no part in a graph
                content = weights if isinstance(weights, Mapping) else read_state(Path(where))
                clip, heads = networks_of(parts_of(content))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split("\n")[:2])  # torch goes on with a line for every tensor
            raise ValueError(f"{where} is no checkpoint of A-FINE: {reason}") from error
        self.clip, self._heads = self.keep(clip), self.keep(heads)

    @property
    def heads(self) -> Heads:
        """The heads of the checkpoint."""
        return self._heads

    def levels(self, images: Tensor) -> list[Level]:
        check_channels(self.name, images)
        images = images.expand(-1, 3, -1, -1)
        patch = self.clip.patch
        size = [side + -side % patch for side in images.shape[2:]]
        if list(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bicubic", align_corners=False)
        mean, std = (images.new_tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
        tokens = self.clip((images - mean) / std)
        return [Level.of(images.flatten(2)), *(Level.of(F.relu(each).transpose(1, 2)) for each in tokens)]

    def tensors(self) -> dict[str, Tensor]:
        clip = {f"{BACKBONE}.{name}": value for name, value in self.clip.state_dict().items()}
        return {name: v.detach().cpu().contiguous() for name, v in {**clip, **self.heads.state_dict()}.items()}

    @classmethod
    def from_saved(cls: type[Own], options: dict[str, Any], tensors: dict[str, Tensor], value_range: Range) -> Own:
        return cls(tensors, **options, value_range=value_range)
