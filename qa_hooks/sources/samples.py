"""Pictures and scores of what the model makes while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.random import mixed_key
from qa_hooks.images import as_tensor

Sample = Callable[[int, torch.Generator], Any]


def sample_block(sample: Sample, count: int, seed: int, block: int) -> Tensor:
    """`count` images of one numbered block: the same whatever process makes it, so world sizes agree."""
    images = as_tensor(sample(count, torch.Generator().manual_seed(mixed_key(seed, block))))
    if images.shape[0] != count or images.shape[1] not in (1, 3):
        raise ValueError(f"sample({count}, generator) must give ({count}, 1 or 3, H, W), got {tuple(images.shape)}")
    return images


def check_sample(sample: Sample) -> None:
    """`TypeError` unless it can be called."""
    if not callable(sample):
        raise TypeError(f"sample must be callable as sample(n, generator), got {type(sample).__name__}")
