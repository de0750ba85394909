"""A user's own loader or data set, read without moving it: the next epoch of the training is what it would have been.

A loader is walked through in a copy that has its own workers, sampler and generators, so that a loader that is being
walked through, or keeps its workers, goes on undisturbed. Random generators that a data set keeps are put back.
What cannot be protected: counters and caches of a data set that is read in this process, and state outside Python.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import itertools
import random
import types
from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from qa_hooks._base.checks import warn
from qa_hooks._base.hashing import tensor_bytes

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
DEPTH, OBJECTS = 4, 2000  # how far generators are looked for
AGAIN = 1000  # images in a row that have come before
TOLD, LONGEST = 2000, 100_000  # images of a source that does not say how many it has: a word, and the end


@contextlib.contextmanager
def unmoved(source: Any) -> Iterator[Any]:
    """Walk through a loader or data set without changing it: its random state is restored afterwards."""
    states = [(generator, _state(generator)) for generator in own_generators(source)]
    try:
        yield _copy(source) if isinstance(source, DataLoader) else source
    finally:
        for generator, state in states:
            _set_state(generator, state)


def check_end(source: Any) -> None:
    """Refuse an iterable that has no end.

    Raises:
        ValueError: a loader whose sampler has no length, or `itertools.cycle`.
    """
    if isinstance(source, itertools.cycle):
        raise ValueError("itertools.cycle has no end: give what it goes round")
    if isinstance(source, DataLoader) and not isinstance(source.dataset, IterableDataset) and _length(source) is None:
        sampler = type(source.sampler if source.batch_size is not None else source.batch_sampler)
        raise ValueError(
            f"the loader's sampler, {sampler.__name__}, has no length, so it may have no end: give the data set, "
            "DataLoader(loader.dataset, batch_size=...), or the sampler a __len__"
        )


def until_its_end(batches: Any) -> Iterator[Any]:
    """The batches of one epoch: as many as a loader says it has, though its sampler may go on for ever."""
    check_end(batches)
    counted = isinstance(batches, DataLoader) and not isinstance(batches.dataset, IterableDataset)
    length = _length(batches) if counted else None
    yield from batches if length is None else itertools.islice(batches, length)


class EndWatch:
    """Finds the end of a source that may have none: as many images as it says, or else a word when there is no end."""

    def __init__(self, source: Any) -> None:
        stream = source.dataset if isinstance(source, DataLoader) else source
        said = _length(stream) if isinstance(stream, IterableDataset) else None
        # Workers that do not divide the images among themselves give each image several times; torch warns of it.
        self._most = None if said is None else max(1, getattr(source, "num_workers", 0)) * said
        self._counted = isinstance(source, Sized) and _length(source) is not None
        self._bounded = isinstance(source, itertools.islice)
        self._seen: set[bytes] = set()
        self._given = self._again = 0

    def __call__(self, images: Tensor) -> Tensor:
        """What of a batch belongs to the source.

        Raises:
            ValueError: the source has no length and seems to have no end; long before there is a warning.
        """
        left = None if self._most is None else max(0, self._most - self._given)
        self._given += len(images)
        if not self._counted:
            self._look_for_repeats(images)
            if not self._bounded:
                self._say_how_long(len(images))
        return images if left is None else images[:left]

    @property
    def over(self) -> bool:
        """Whether the source has given as many images as it says it has."""
        return self._most is not None and self._given >= self._most

    def _look_for_repeats(self, images: Tensor) -> None:
        for image in images:
            digest = hashlib.blake2b(tensor_bytes(image), digest_size=8).digest()
            self._again = self._again + 1 if digest in self._seen else 0
            self._seen.add(digest)
        if self._again >= max(AGAIN, 2 * len(self._seen)):
            raise ValueError(
                f"the source has given {len(self._seen)} images and then {self._again} times one of them: it seems to "
                "have no end; give the data set, or a loader of it"
            )

    def _say_how_long(self, new: int) -> None:
        so_far = f"the source has no length, and has given {self._given} images without an end"
        cure = "give the data set, or let the stream have a __len__: so many images are read"
        if self._given >= LONGEST:
            raise ValueError(f"{so_far}: {cure}")
        if self._given >= TOLD > self._given - new:
            warn(f"{so_far}; at {LONGEST} it is given up: {cure}")


def own_generators(source: Any) -> list[Generator]:
    """The random generators that a loader, its samplers or a data set keep, also in what they are made of."""
    found: dict[int, Generator] = {}
    seen: set[int] = set()
    pending: list[tuple[Any, int]] = [(source, 0)]
    while pending and len(seen) < OBJECTS:
        item, depth = pending.pop(0)
        if id(item) in seen or depth > DEPTH:
            continue
        seen.add(id(item))
        if isinstance(item, Generator):
            found[id(item)] = item
            continue
        parts: Iterable[Any] = ()
        if isinstance(item, dict):
            parts = itertools.islice(item.values(), 100)
        elif isinstance(item, (list, tuple)):
            parts = item[:100]
        elif not isinstance(item, (Tensor, np.ndarray, str, bytes, type)):
            parts = _parts(item)
        pending += [(part, depth + 1) for part in parts if not isinstance(part, (int, float, str, bytes, type(None)))]
    return list(found.values())


def _parts(item: Any) -> list[Any]:
    """What an object is made of: its attributes, and what a function has around it."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(item).__mro__]
    names = [name for group in slots for name in ((group,) if isinstance(group, str) else group)]
    parts = [*getattr(item, "__dict__", {}).values(), *(getattr(item, name, None) for name in names)]
    if isinstance(item, functools.partial):
        parts += [item.func, item.args, item.keywords]
    if isinstance(item, types.MethodType):
        parts.append(item.__self__)
    for cell in (item.__closure__ or ()) if isinstance(item, types.FunctionType) else ():
        with contextlib.suppress(ValueError):  # an empty one
            parts.append(cell.cell_contents)
    return parts


def seed_generators(generators: Iterable[Generator], seed: int) -> None:
    """Seed all these generators with one seed."""
    for generator in generators:
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            kind: Any = type(generator.bit_generator)
            generator.bit_generator.state = kind(seed).state
        else:
            generator.seed(seed)


def _state(generator: Generator) -> Any:
    if isinstance(generator, np.random.Generator):
        return copy.deepcopy(generator.bit_generator.state)
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Generator, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)


def _copy(loader: DataLoader[Any]) -> Any:
    """A loader of the same data in the same order, with workers and a sampler of its own."""
    names = ("generator", "sampler", "batch_sampler")
    try:
        walk: Any = copy.copy(loader)
        parts = tuple(getattr(loader, name) for name in names)
        parts = copy.deepcopy(parts, {id(loader.dataset): loader.dataset})
    except Exception:  # somebody's loader that cannot be copied; its generators are put back at least
        return loader
    if "base_dataloader" in vars(walk):  # in the wrapper of Accelerate
        vars(walk)["base_dataloader"] = _copy(walk.base_dataloader)
    # Past `DataLoader.__setattr__`, which refuses to change what it was made with.
    walk.__dict__.update(zip(names, parts, strict=True), _iterator=None, persistent_workers=False)
    return walk


def _length(source: Any) -> int | None:
    try:
        return len(source)
    except (TypeError, NotImplementedError, AttributeError):
        return None
