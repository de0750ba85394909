"""Work in batches of bounded memory, whatever the items are: read ahead by a few threads, cut into windows, grouped."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
THREADS = 4
# Pixels of a batch, 64 images of 256 x 256: larger images come in smaller batches, so that memory stays flat.
BATCH_PIXELS = 2**22


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`read` of each item, in order, by a few threads that are a few items ahead of the one in use.

    Example:
        >>> list(read_ahead(str, [1, 2, 3]))
        ['1', '2', '3']
    """
    remaining = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        waiting = deque(pool.submit(read, item) for item in itertools.islice(remaining, 2 * THREADS))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(read, item) for item in itertools.islice(remaining, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


def windows(items: Iterable[Item], measure: Callable[[Item], tuple[int, int]], batch_size: int) -> Iterator[list[Item]]:
    """Items cut into lists that fill a batch, shorter where they are large; `measure` counts images and pixels."""
    window: list[Item] = []
    count = pixels = 0
    for item in items:
        window.append(item)
        more = measure(item)
        count, pixels = count + more[0], pixels + more[1]
        if count >= batch_size or pixels >= BATCH_PIXELS:
            yield window
            window, count, pixels = [], 0, 0
    if window:
        yield window


def groups(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """The items of each key together, in the order in which the keys come first.

    Example:
        >>> groups([3, 1, 4, 5], lambda number: number % 2)
        [[3, 1, 5], [4]]
    """
    found: dict[Hashable, list[Item]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, taken evenly and in their order.

    Example:
        >>> evenly("abcdefgh", 3)
        ['a', 'c', 'f']
    """
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]


def fitting(batch_size: int, height: int, width: int) -> int:
    """How many images of this size make a batch: `batch_size`, or fewer large ones."""
    return max(1, min(batch_size, BATCH_PIXELS // (height * width)))
