"""Samples of the user's model: a function `sample(n, generator)`, called for numbered blocks of images.

Block number b of a seed has a generator of its own, so the images are the same for any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import channel_hint, check_call
from qa_hooks._base.isolation import isolated
from qa_hooks._base.random import mixed_key, seed_everything
from qa_hooks._base.reach import modules_of
from qa_hooks._base.sharding import sharded_kind
from qa_hooks.images import Range, RangeGuard, as_tensor

Sample = Callable[[int, torch.Generator], Any]


def check_sample(sample: Sample) -> None:
    """`TypeError` unless it can be called as `sample(n, generator)`."""
    check_call("sample", sample, "sample(n, generator)", 1, torch.Generator("cpu"))


def numbered_blocks(n: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int, int]]:
    """This process's share of `n` images: number, start and stop of each block of `batch_size`.

    Example:
        >>> list(numbered_blocks(10, 4)), list(numbered_blocks(10, 4, rank=1, world_size=2))
        ([(0, 0, 4), (1, 4, 8), (2, 8, 10)], [(1, 4, 8)])
    """
    for block in range(rank, -(-n // batch_size), world_size):
        yield block, block * batch_size, min((block + 1) * batch_size, n)


def sample_block(sample: Sample, count: int, seed: int, block: int) -> Tensor:
    """`count` images of one numbered block: the same whatever process makes it, so world sizes agree.

    The function draws its noise from the generator that it is given. One that ignores it gives the same images each
    time, too: the global generators are seeded for the call, and put back.
    """
    key = mixed_key(seed, block)
    with isolated(*modules_of(sample)):  # each call starts in eval mode, whatever mode the one before left behind
        seed_everything(key)
        images = as_tensor(sample(count, torch.Generator("cpu").manual_seed(key)))
    if images.shape[0] != count or images.shape[1] not in (1, 3):
        raise ValueError(
            f"sample({count}, generator) must give ({count}, 1 or 3, H, W), got {tuple(images.shape)}"
            + channel_hint(images)
        )
    return images


def sample_blocks(
    sample: Sample,
    n: int,
    *,
    batch_size: int,
    seed: int,
    guard: RangeGuard | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[int, Tensor]]:
    """This process's share of `n` samples, block by block: the position of the first image, and the images.

    Args:
        sample: the user's function.
        n: images of all processes together.
        batch_size: images of a block.
        seed: of the noise.
        guard: looks at the first blocks' range.
        rank, world_size: of the processes that share the work; by default this one does it all. Rank -1 gets no block.

    A network in shards works on all processes at once: there each process calls the function for all blocks, and keeps
    its own.
    """
    collective = any(sharded_kind(module) for module in modules_of(sample))
    for block, start, stop in numbered_blocks(n, batch_size):
        own = block % world_size == rank
        if not (own or collective):
            continue
        images = sample_block(sample, stop - start, seed, block)
        if guard is not None:
            guard(predictions={"samples": images})
        if own:
            yield start, images


def in_range(images: Tensor, value_range: Range) -> Tensor:
    """Images as a scorer takes them: uint8 as it is, anything else as float32 clamped to the declared range."""
    return images if images.dtype == torch.uint8 else images.detach().float().clamp(*value_range)
