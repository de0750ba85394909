"""Random numbers of our own, which never touch the user's."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


class OwnRandom:
    """Random numbers that never touch the global state: a CPU generator seeded afresh for each draw (seed, rank, draw).

    The number of draws is the whole state, the same on all ranks, so it is saved without a collective and a resumed run
    goes on with the numbers it would have had.

    Example:
        >>> first = torch.rand(2, generator=OwnRandom(0).generator())
        >>> bool((first == torch.rand(2, generator=OwnRandom(0).generator())).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.draws = 0

    def generator(self) -> torch.Generator:
        """The generator of the next draw."""
        from qa_hooks._base.processes import rank

        generator = torch.Generator("cpu").manual_seed(mixed_key(self.seed, rank(), self.draws))
        self.draws += 1
        return generator


def permutation(count: int, seed: int) -> Tensor:
    """The numbers from 0 to `count - 1` in a random order that the seed decides, on the CPU.

    Example:
        >>> permutation(4, seed=0)
        tensor([0, 1, 3, 2])
    """
    return torch.randperm(count, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def seed_everything(key: int) -> None:
    """Seed the global generators: Python's, NumPy's, the CPU's and the current GPU's. Only inside `isolated`."""
    random.seed(key)
    np.random.seed(key % 2**32)
    torch.default_generator.manual_seed(key)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed(key)


def mixed_key(*parts: int) -> int:
    """A seed of 64 bits from several small numbers (splitmix64, Steele et al. 2014): near keys give unrelated streams.

    Example:
        >>> len({mixed_key(seed, draw) for seed in range(30) for draw in range(30)})
        900
    """
    key = 0
    for part in parts:
        key = (key ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        key = (key ^ key >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        key ^= key >> 31
    return key >> 1
