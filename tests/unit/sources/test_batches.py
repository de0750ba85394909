"""Images come from anywhere: the same pictures whatever the way, broken files named, mixed sizes kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from qa_hooks.images import save_image
from qa_hooks.sources.batches import count_images, first_of_each, has_positions, image_batches, image_paths, is_shared


@pytest.fixture
def images():
    return torch.randint(0, 256, (7, 3, 12, 10), dtype=torch.uint8)


@pytest.fixture
def folder(tmp_path, images):
    for number, image in enumerate(images):
        save_image(image, tmp_path / f"{number}.png")
    return tmp_path


class Items:
    """A map-style dataset with one form of item."""

    def __init__(self, images, form):
        self.images, self.form = images, form

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return {
            "tensor": image,
            "tuple": (image, 3),
            "mapping": {"label": 1, "image": image},
            "pil": Image.fromarray(image.permute(1, 2, 0).numpy()),
            "array": image.permute(1, 2, 0).numpy(),
        }[self.form]


def gathered(source, **options):
    found = {}
    for positions, batch in image_batches(source, **options):
        assert len(positions) == len(batch)
        found.update(zip(positions, batch, strict=True))
    return found


@pytest.mark.parametrize(
    "form", ["tensor", "folder", "files", "loader", "pairs", "batches", "items tensor", "items tuple", "items mapping",
             "items pil", "items array", "pil list", "array"]
)  # fmt: skip
def test_every_source_gives_the_same_pictures(form, images, folder):
    sources = {
        "tensor": images,
        "folder": folder,
        "files": [str(folder / f"{n}.png") for n in range(7)],
        "loader": DataLoader(list(images), batch_size=3),
        "pairs": DataLoader(TensorDataset(images, torch.zeros(7)), batch_size=3),
        "batches": [images[:4], images[4:]],
        "pil list": [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images],
        "array": images.permute(0, 2, 3, 1).numpy(),
    }
    source = Items(images, form.split()[1]) if form.startswith("items") else sources[form]
    found = gathered(source, batch_size=4)
    assert sorted(found) == list(range(7))
    assert all(torch.equal(found[n], images[n]) for n in range(7))


def test_mixed_sizes_and_grey_come_apart_and_nothing_is_lost(tmp_path):
    shapes = [(3, 8, 8), (1, 8, 8), (3, 9, 8), (3, 8, 8)]
    for number, shape in enumerate(shapes):
        save_image(torch.full(shape, 10 * number, dtype=torch.uint8), tmp_path / f"{number}.png")
    batches = list(image_batches(tmp_path, batch_size=4))
    assert [positions for positions, _ in batches] == [[0, 3], [1], [2]]
    assert [tuple(batch.shape[1:]) for _, batch in batches] == [(3, 8, 8), (1, 8, 8), (3, 9, 8)]


def test_broken_files_are_collected_or_raise(folder):
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    (folder / "5.png").write_bytes(b"")
    failures: dict[int, str] = {}
    assert sorted(gathered(folder, failures=failures)) == [0, 1, 2, 4, 6]
    assert sorted(failures) == [3, 5]
    assert "3.png" in failures[3]
    with pytest.raises(ValueError, match=r"3\.png is not a readable image"):
        gathered(folder)


def test_indices_choose(images, folder):
    for source in (images, folder, Items(images, "tensor")):
        assert sorted(gathered(source, indices=[5, 1], batch_size=1)) == [1, 5]
    with pytest.raises(ValueError, match="no positions"):
        gathered([images], indices=[0])


def test_what_is_shared_and_how_many(images, folder):
    loader = DataLoader(TensorDataset(images), batch_size=2)
    for source in (images, folder, Items(images, "pil")):
        assert is_shared(source)
        assert count_images(source) == 7
    assert not is_shared(loader)
    assert count_images(loader) == 7
    assert count_images(iter([images])) is None
    assert image_paths(images) is None
    assert image_paths(folder / "2.png") == [folder / "2.png"]


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (torch.zeros(0, 3, 4, 4), ValueError, "empty"),
        (torch.zeros(3, 4), ValueError, "shape"),
        ("no/such/folder", ValueError, "not a folder"),
        (17, TypeError, "a tensor"),
        ([{"label": 3}], ValueError, "no image under"),
        ([torch.zeros(2, 2, 3, 4, 4)], ValueError, "shape"),
        (iter([torch.zeros(3, 8, 8)]), ValueError, r"images\[:, None\], or for one image images\[None\]"),
        ({"train": torch.zeros(3, 3, 8, 8)}, TypeError, r"a dict of \['train'\]: give a part"),
        ([torch.zeros(2, 16, 16, 3)], ValueError, r"images\.permute\(0, 3, 1, 2\)"),
    ],
)
def test_bad_sources(source, error, message):
    with pytest.raises(error, match=message):
        gathered(source)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="holds no image files"):
        gathered(tmp_path)


def test_a_reader_that_stops_early_leaves_no_threads(folder):
    import threading

    before = threading.active_count()
    walk = image_batches(folder, batch_size=1)
    next(walk)
    walk.close()
    assert threading.active_count() == before


def test_floats_stay_as_they_are():
    values = np.float32(np.random.rand(3, 6, 6, 1)) * 2 - 1
    assert torch.equal(torch.stack(list(gathered(values).values())), torch.from_numpy(values).permute(0, 3, 1, 2))


def test_a_loader_gives_its_images_again_and_its_generator_is_put_back(images):
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(images), batch_size=2, shuffle=True, generator=generator)
    before = generator.get_state()
    first, second = (torch.cat([batch for _, batch in image_batches(loader)]) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, generator.get_state())
    assert not torch.equal(first, images)


def test_the_padding_of_a_distributed_sampler_is_told_by_its_positions(images):
    found = []
    for rank in range(2):
        sampler = DistributedSampler(images, num_replicas=2, rank=rank, shuffle=True, seed=1)
        loader = DataLoader(TensorDataset(images), batch_size=3, sampler=sampler)
        assert has_positions(loader)
        for positions, batch in image_batches(loader):
            assert all(torch.equal(image, images[p]) for p, image in zip(positions, batch, strict=True))
            found += positions
    assert len(found) == 8
    assert torch.tensor(found)[first_of_each(torch.tensor(found))].tolist() == list(range(7))


def test_labelled_items_may_be_lists(images):
    class Labelled(Items):
        def __getitem__(self, index):
            return [self.images[index], 3]

    assert len(gathered(Labelled(images, "tensor"))) == 7


def test_large_images_come_in_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("qa_hooks.sources.windows.BATCH_PIXELS", 2 * 12 * 10)
    images = torch.zeros(5, 3, 12, 10, dtype=torch.uint8)
    for number, image in enumerate(images):
        save_image(image, tmp_path / f"{number}.png")
    for source in (images, tmp_path, Items(images, "pil")):
        assert [len(batch) for _, batch in image_batches(source, batch_size=64)] == [2, 2, 1]


def test_a_pass_over_a_loader_leaves_the_one_that_runs_alone():
    """Persistent workers serve one pass at a time: a second one would end the user's own."""
    data = torch.utils.data.TensorDataset(torch.rand(12, 1, 4, 4), torch.arange(12))
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1, persistent_workers=True)
    order = []
    for _, index in loader:
        order += index.tolist()
        if len(order) == 4:
            seen = torch.cat([images for _, images in image_batches(loader)])
    assert order == list(range(12))
    assert torch.equal(seen, data.tensors[0])
    assert loader.persistent_workers
