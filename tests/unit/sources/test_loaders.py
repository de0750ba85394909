"""A user's loader is read without moving it, and one without an end is noticed."""

from __future__ import annotations

import functools
import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset

from qa_hooks import GenerativeMonitor
from qa_hooks.data import QualitySampler
from qa_hooks.sources.batches import image_batches
from qa_hooks.sources.fingerprint import data_fingerprint
from qa_hooks.sources.loaders import check_end


@pytest.fixture
def images():
    return torch.rand(12, 3, 8, 8)


def read(source) -> torch.Tensor:
    return torch.cat([batch for _, batch in image_batches(source, batch_size=4)])


class Shuffled(Sampler[int]):
    """With a generator of one of four kinds, and a counter."""

    def __init__(self, generator) -> None:
        self.generator, self.epoch = generator, 0

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        self.epoch += 1
        order, generator = list(range(12)), self.generator
        if isinstance(generator, torch.Generator):
            order = torch.randperm(12, generator=generator).tolist()
        else:
            generator.shuffle(order)
        return iter(order)


class Noisy(Dataset):
    """Adds noise from a generator of its own, kept inside a part."""

    def __init__(self, images, generator) -> None:
        self.images, self.parts = images, {"noise": [generator]}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        generator = self.parts["noise"][0]
        if isinstance(generator, torch.Generator):
            return self.images[index] + torch.rand((), generator=generator)
        return self.images[index] + float(generator.uniform(0, 1))


class InSlots:
    __slots__ = ("generator",)

    def __init__(self, generator) -> None:
        self.generator = generator

    def __call__(self) -> float:
        return float(self.generator.uniform(0, 1))


def in_a_closure(generator):
    return lambda: float(generator.uniform(0, 1))


def in_a_partial(generator):
    return functools.partial(generator.uniform, 0, 1)


class Shaken(Dataset):
    """Its noise comes from a function that keeps the generator."""

    def __init__(self, images, noise) -> None:
        self.images, self.noise = images, noise

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] + self.noise()


GENERATORS = {
    "torch": lambda: torch.Generator().manual_seed(3),
    "numpy": lambda: np.random.default_rng(3),
    "numpy's old": lambda: np.random.RandomState(3),
    "python": lambda: random.Random(3),
}


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_samplers_own_state_is_not_moved(images, kind):
    def loader():
        return DataLoader(TensorDataset(images, torch.arange(12)), batch_size=4, sampler=Shuffled(GENERATORS[kind]()))

    def orders(of):
        return [torch.cat([index for _, index in of]).tolist() for _ in range(2)]

    untouched, watched = loader(), loader()
    read(watched)
    data_fingerprint(watched)
    assert watched.sampler.epoch == 0
    assert orders(watched) == orders(untouched)


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_data_sets_own_generator_is_not_moved(images, kind):
    untouched, watched = (Noisy(images, GENERATORS[kind]()) for _ in range(2))
    for source in (watched, DataLoader(watched, batch_size=4)):
        first, second = read(source), read(source)
        assert torch.equal(first, second)
        data_fingerprint(source)
    assert torch.equal(watched[0], untouched[0])


@pytest.mark.parametrize("kept", [InSlots, in_a_closure, in_a_partial])
@pytest.mark.parametrize("kind", ["numpy's old", "python"])
def test_a_generator_that_a_function_keeps_is_not_moved(images, kept, kind):
    untouched, watched = (Shaken(images, kept(GENERATORS[kind]())) for _ in range(2))
    for source in (watched, DataLoader(watched, batch_size=4)):
        assert torch.equal(read(source), read(source))
    assert torch.equal(watched[0], untouched[0])


def test_a_loader_in_the_middle_of_its_epoch_goes_on(images):
    def loader():
        generator = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(images), batch_size=4, shuffle=True, generator=generator, num_workers=1,
                          persistent_workers=True)  # fmt: skip

    untouched, watched = loader(), loader()
    expected = [torch.cat([batch for (batch,) in untouched]) for _ in range(2)]
    walk, got = iter(watched), []
    got.append(next(walk)[0])
    assert len(read(watched)) == 12
    got += [batch for (batch,) in walk]
    assert torch.equal(torch.cat(got), expected[0])
    assert torch.equal(torch.cat([batch for (batch,) in watched]), expected[1])


def test_our_own_sampler_keeps_its_epoch(images):
    sampler = QualitySampler(torch.arange(12.0))
    loader = DataLoader(TensorDataset(images), batch_size=4, sampler=sampler)
    before = sampler.state_dict()
    read(loader)
    assert sampler.state_dict() == before
    assert sampler.epoch == 0


class Endless(Sampler[int]):
    def __iter__(self):
        while True:
            yield from range(12)


class EndlessWithLength(Endless):
    def __len__(self) -> int:
        return 12


class EndlessItems(IterableDataset):
    def __init__(self, images) -> None:
        self.images = images

    def __iter__(self):
        while True:
            yield from self.images


def test_a_sampler_without_an_end_is_refused_at_once(images):
    data = TensorDataset(images)
    endless = (
        DataLoader(data, batch_size=4, sampler=Endless()),
        DataLoader(data, batch_sampler=BatchSampler(Endless(), 4, drop_last=False)),
        itertools.cycle([images]),
    )
    for source in endless:
        with pytest.raises(ValueError, match=r"no end|no length"):
            check_end(source)
        with pytest.raises(ValueError, match=r"no end|no length"):
            read(source)
    with pytest.raises(ValueError, match="Endless, has no length"):
        GenerativeMonitor(
            lambda n, g: torch.rand(n, 3, 8, 8, generator=g), endless[0], extractor="random", every=1, n=64
        )
    for source in (DataLoader(data), DataLoader(data, sampler=RandomSampler(data)), [images], iter([images]), images):
        check_end(source)


def test_a_sampler_that_says_its_length_is_read_for_one_epoch(images):
    assert torch.equal(read(DataLoader(TensorDataset(images), batch_size=4, sampler=EndlessWithLength())), images)


class Stream(IterableDataset):
    """New images for ever; of which it says to have `length`, or nothing."""

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        while True:
            yield torch.rand(3, 8, 8, generator=generator)


class CountedStream(Stream):
    def __len__(self) -> int:
        return 20


def test_a_stream_that_says_its_length_is_read_so_far():
    expected = torch.stack(list(itertools.islice(iter(CountedStream()), 20)))
    assert torch.equal(read(CountedStream()), expected)
    for size in (1, 6, 20, 64):
        assert torch.equal(read(DataLoader(CountedStream(), batch_size=size)), expected)


def test_a_stream_of_new_images_is_told_of_and_given_up(monkeypatch):
    monkeypatch.setattr("qa_hooks.sources.loaders.TOLD", 50)
    monkeypatch.setattr("qa_hooks.sources.loaders.LONGEST", 200)

    def batches():
        while True:
            yield torch.rand(10, 3, 8, 8)

    for source in (batches(), Stream(), DataLoader(Stream(), batch_size=6)):
        with (
            pytest.warns(UserWarning, match=r"has given 5[0-9] images without an end") as told,
            pytest.raises(ValueError, match=r"has given 20[0-9] images without an end: give the data set"),
        ):
            read(source)
        assert len(told) == 1
    assert len(read(itertools.islice(batches(), 30))) == 300
    assert len(read(DataLoader(list(torch.rand(300, 3, 8, 8)), batch_size=64))) == 300


def test_a_function_is_refused_when_the_monitor_is_made():
    def batches():
        yield torch.rand(4, 3, 8, 8)

    with pytest.raises(TypeError, match="got the function batches; call it"):
        GenerativeMonitor(lambda n, g: torch.rand(n, 3, 8, 8, generator=g), batches, extractor="random", n=64)


def test_a_source_that_repeats_itself_for_ever_is_noticed(images):
    def forever():
        while True:
            yield from images.split(4)

    for source in (forever(), DataLoader(EndlessItems(images), batch_size=6)):
        with pytest.raises(ValueError, match=r"has given 12 images and then .* no end"):
            read(source)
    assert len(read(iter([images, images, images]))) == 36  # a few repeats are nobody's fault
    assert len(read(DataLoader(list(images) * 100, batch_size=64))) == 1200
