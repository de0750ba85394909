"""Files of many pictures are read like folders: the same pixels, names that stay inside, nothing that is believed."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from qa_hooks._base.containers import Grid, cut_grid, file_behind, file_state, is_container, parse_grid, picture_size
from qa_hooks.folders import pick_folder, score_folder
from qa_hooks.images import list_images, load_image, save_image
from qa_hooks.scorers import FunctionScorer
from qa_hooks.sources.batches import count_images, image_batches
from qa_hooks.sources.fingerprint import data_fingerprint


@pytest.fixture
def images():
    return torch.randint(0, 256, (5, 3, 12, 10), dtype=torch.uint8)


@pytest.fixture
def level():
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True)


def as_zip(images, path):
    """As StyleGAN's tools make it, with what a Mac adds and what is no picture."""
    with zipfile.ZipFile(path, "w") as archive:
        for number, image in enumerate(images):
            save_image(image, path.with_suffix(".png"))
            archive.write(path.with_suffix(".png"), f"00000/img{number:08d}.png")
        path.with_suffix(".png").unlink()
        archive.writestr("dataset.json", json.dumps({"labels": None}))
        archive.writestr("__MACOSX/00000/._img00000000.png", b"resource fork")
        archive.writestr("00000/.hidden.png", b"")
    return path


def as_npz(images, path):
    np.savez(path, images.permute(0, 2, 3, 1).numpy(), labels=np.arange(len(images)))
    return path


def as_packed(images, path):
    np.savez_compressed(path, images=images.permute(0, 2, 3, 1).numpy())
    return path


def as_npy(images, path):
    np.save(path, images.permute(0, 2, 3, 1).numpy())
    return path


def as_saved(images, path):
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    datasets.Dataset.from_dict({"img": pictures, "label": list(range(len(images)))}, features=datasets.Features(
        {"img": datasets.Image(), "label": datasets.Value("int64")})).save_to_disk(str(path))  # fmt: skip
    return path


KINDS = [("set.zip", as_zip), ("set.npz", as_npz), ("packed.npz", as_packed), ("set.npy", as_npy), ("saved", as_saved)]


@pytest.mark.parametrize(("name", "make"), KINDS)
def test_a_file_of_many_is_like_the_folder_of_its_pictures(images, level, tmp_path, name, make):
    path = make(images, tmp_path / name)
    assert is_container(path)
    paths = list_images(path)
    assert len(paths) == count_images(path) == len(images)
    assert all(torch.equal(load_image(member), image) for member, image in zip(paths, images, strict=True))
    assert picture_size(paths[0]) == (10, 12)
    batches = torch.cat([batch for _, batch in image_batches(path, batch_size=2)])
    assert torch.equal(batches, images)
    assert file_behind(paths[0]) == path
    table = score_folder(path, level, tmp_path / "s.csv", progress=False)
    torch.testing.assert_close(table.columns["level"], images.float().mean((1, 2, 3)) / 255)
    assert all(not name.startswith("/") and ".." not in name for name in table.paths)
    picked = pick_folder(path, level, tmp_path / "out", keep=2, progress=False)
    kept = [load_image(tmp_path / "out" / "images" / name) for name in picked.kept]
    assert all(torch.equal(image, load_image(path / name)) for image, name in zip(kept, picked.kept, strict=True))
    assert pick_folder(path, level, tmp_path / "out", keep=1, progress=False).kept == picked.kept[:1]
    with pytest.raises(ValueError, match="nothing can link to it"):
        pick_folder(path, level, tmp_path / "links", keep=2, link=True, progress=False)
    before = data_fingerprint(path)
    assert before != data_fingerprint(make(255 - images, tmp_path / f"other-{name}"))


def test_a_file_that_changes_is_read_anew(images, level, tmp_path):
    path = as_npy(images, tmp_path / "set.npy")
    score_folder(path, level, tmp_path / "s.csv", progress=False)
    state = file_state(path / "000000.png")
    as_npy(255 - images, path)
    assert file_state(path / "000000.png") != state
    table = score_folder(path, level, tmp_path / "s.csv", progress=False)
    torch.testing.assert_close(table.columns["level"], (255 - images).float().mean((1, 2, 3)) / 255)


def test_names_in_an_archive_stay_inside(images, tmp_path):
    save_image(images[0], tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("good.png", "../up.png", "/etc/root.png", "a/../../b.png", "C:\\windows.png", "..\\c.png"):
            archive.write(tmp_path / "a.png", name)
        info = zipfile.ZipInfo("/absolute.png")
        archive.writestr(info, (tmp_path / "a.png").read_bytes())
    names = [path.relative_to(tmp_path / "set.zip").as_posix() for path in list_images(tmp_path / "set.zip")]
    assert "good.png" in names
    assert not any(".." in name or name.startswith("/") or ":" in name for name in names)


def test_what_is_in_no_file_of_many(images, tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        list_images(as_npy(images[:0], tmp_path / "empty.npy"))
    np.save(tmp_path / "floats.npy", np.random.rand(3, 4, 4, 3))
    with pytest.raises(ValueError, match="one array of uint8 images"):
        list_images(tmp_path / "floats.npy")
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 4, 4, 3), np.uint8), b=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="it has 2"):
        list_images(tmp_path / "two.npz")
    np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
        list_images(tmp_path / "pickled.npy")
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "nowhere" / "a.png")
    (tmp_path / "broken.zip").write_bytes(b"PK")
    with pytest.raises((ValueError, zipfile.BadZipFile)):
        list_images(tmp_path / "broken.zip")


def test_a_header_is_not_believed(tmp_path):
    """An array that says it is larger than its file costs no memory."""
    np.savez(tmp_path / "a.npz", np.zeros((2, 4, 4, 3), np.uint8))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        data = archive.read("arr_0.npy")
    lie = data.replace(b"(2, 4, 4, 3), }         ", b"(999999, 999, 9, 3), }  ")
    assert lie != data
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "lie.npz", "w", compression) as archive:
            archive.writestr("arr_0.npy", lie)
        with pytest.raises(ValueError, match="it has 0"):
            list_images(tmp_path / "lie.npz")


@pytest.mark.parametrize("grid", ["4x3+2", "4x3", "2x1+1", "1x6"])
def test_cells_of_a_grid_are_the_images(tmp_path, grid):
    parsed = parse_grid(grid)
    count = parsed.columns * parsed.rows
    images = torch.randint(0, 256, (count, 3, 9, 7), dtype=torch.uint8)
    save_image(make_grid(images, nrow=parsed.columns, padding=parsed.padding), tmp_path / "100.png")
    cells = cut_grid(tmp_path / "100.png", parsed)
    assert len(cells) == count
    assert all(torch.equal(load_image(cell), image) for cell, image in zip(cells, images, strict=True))
    assert {cell.parent.name for cell in cells} == {f"100.png#{grid}"}
    assert cells == sorted(cells)


def test_grids_without_a_frame_and_rows_that_are_not_full(tmp_path):
    images = torch.randint(1, 256, (7, 3, 8, 8), dtype=torch.uint8)
    whole = make_grid(images, nrow=3, padding=2)
    save_image(whole[:, 2:-2, 2:-2], tmp_path / "bare.png")
    cells = cut_grid(tmp_path / "bare.png", Grid(3, 3, 2))
    assert len(cells) == 7
    assert all(torch.equal(load_image(cell), image) for cell, image in zip(cells, images, strict=True))
    with pytest.raises(ValueError, match="cannot be cut into a grid of 5x3"):
        cut_grid(tmp_path / "bare.png", Grid(5, 3))
    for text in ("8", "8x", "0x4", "1x1", "8x8+", "8x8-2", "auto"):
        with pytest.raises(ValueError, match="a grid is COLUMNSxROWS"):
            parse_grid(text)


def test_what_a_broken_file_of_many_raises_names_it(tmp_path):
    (tmp_path / "text.zip").write_bytes(b"no zip")
    (tmp_path / "text.npz").write_bytes(b"no zip")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    whole = io.BytesIO()
    np.save(whole, np.zeros((5, 8, 8, 3), dtype=np.uint8))
    (tmp_path / "short.npy").write_bytes(whole.getvalue()[:-100])
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read"):
            list_images(path)


def test_other_spellings_of_names_in_an_archive(images, tmp_path):
    save_image(images[0], tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("./a.png", "b//c.png", "d/./e.png"):
            archive.writestr(name, (tmp_path / "a.png").read_bytes())
    found = list_images(tmp_path / "set.zip")
    assert [path.relative_to(tmp_path / "set.zip").as_posix() for path in found] == ["a.png", "b/c.png", "d/e.png"]
    assert all(torch.equal(load_image(path), images[0]) for path in found)


@pytest.mark.parametrize("compress", [False, True])
def test_an_array_whose_columns_come_first(images, tmp_path, compress):
    array = np.asfortranarray(images.permute(0, 2, 3, 1).numpy())
    (np.savez_compressed if compress else np.savez)(tmp_path / "a.npz", array)
    assert torch.equal(torch.stack([load_image(path) for path in list_images(tmp_path / "a.npz")]), images)


def test_one_image_in_an_array_is_not_many_grey_ones(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((50, 80, 3), np.uint8))
    with pytest.raises(ValueError, match=r"save it as array\[None\]"):
        list_images(tmp_path / "one.npy")


def test_what_an_array_has_instead_is_said(tmp_path):
    np.save(tmp_path / "first.npy", np.zeros((5, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"it has 0; its arrays: uint8 \(5, 3, 8, 8\)"):
        list_images(tmp_path / "first.npy")


def test_pictures_of_other_formats_are_named_when_they_are_left_out(images, tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"x")
    (tmp_path / "b.jxl").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"holds no image files .*, 2 are left out, .* the first is a\.HEIC"):
        list_images(tmp_path)
    save_image(images[0], tmp_path / "c.png")
    with pytest.warns(UserWarning, match=r"2 are left out, since their formats are not read, the first is a\.HEIC"):
        assert list_images(tmp_path) == [tmp_path / "c.png"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(tmp_path / "c.png", "c.png")
        archive.writestr("d.avif", b"x")
    with pytest.warns(UserWarning, match=r"1 are left out, .* d\.avif"):
        assert len(list_images(tmp_path / "set.zip")) == 1


def test_a_data_set_of_numbers_and_one_of_several_parts(images, tmp_path):
    datasets = pytest.importorskip("datasets")
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    for kind, values in (("uint8", arrays), ("float32", [array / 255 for array in arrays])):
        features = datasets.Features({"image": datasets.Array3D((12, 10, 3), kind)})
        datasets.Dataset.from_dict({"image": values}, features=features).save_to_disk(str(tmp_path / "all" / kind))
    whole = list_images(tmp_path / "all" / "uint8")
    assert torch.equal(torch.stack([load_image(path) for path in whole]), images)
    with pytest.raises(ValueError, match=r"it holds float64 \(12, 10, 3\), expected whole numbers from 0 to 255"):
        load_image(tmp_path / "all" / "float32" / "000000.png")
    with pytest.raises(
        ValueError, match=r"holds no image files .* it holds saved data sets: give one of them, such as"
    ):
        list_images(tmp_path / "all")


@pytest.mark.parametrize("named", ["outside.png", "http://example.invalid/x.png"])
def test_a_saved_data_set_leads_nowhere(images, tmp_path, named, monkeypatch):
    """Neither to files outside nor to a server; and a column beside the pictures is not opened at all."""
    datasets = pytest.importorskip("datasets")
    import pyarrow as pa

    def asked(*_):
        raise AssertionError("a server was asked")

    monkeypatch.setattr("socket.getaddrinfo", asked)
    save_image(images[0], tmp_path / "outside.png")
    if not named.startswith("http"):
        named = str(tmp_path / named)
    buffer = io.BytesIO()
    save_image(images[1], tmp_path / "held.png")
    held = {"bytes": (tmp_path / "held.png").read_bytes(), "path": None}
    entry = {"bytes": None, "path": named}
    struct = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = datasets.Dataset.from_dict({"image": [entry, held], "other": [entry, entry]},
                                      features=datasets.Features({"image": struct, "other": struct}))  # fmt: skip
    rows.save_to_disk(str(tmp_path / "set"))
    (file,) = (tmp_path / "set").glob("*.arrow")
    features = {name: {"_type": "Image"} for name in ("image", "other")}
    facts = {"info": {"features": features}}
    table = pa.ipc.open_stream(file.read_bytes()).read_all().replace_schema_metadata({"huggingface": json.dumps(facts)})
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    file.write_bytes(buffer.getvalue())
    facts = json.loads((tmp_path / "set" / "dataset_info.json").read_text())
    (tmp_path / "set" / "dataset_info.json").write_text(json.dumps({**facts, "features": features}))
    first, second = list_images(tmp_path / "set")
    with pytest.raises(ValueError, match=r"000000\.png .* it names the picture .* and does not hold it"):
        load_image(first)
    assert torch.equal(load_image(second), images[1])


def test_a_saved_data_set_without_pictures_says_its_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"photo": [1, 2]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"none of its columns \['photo'\] is called image, images"):
        list_images(tmp_path / "set")
