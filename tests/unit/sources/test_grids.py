"""Grids are noticed on sheets that torchvision makes, not on photographs, and cut when asked for."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.utils import make_grid

from qa_hooks.folders import read_scores, score_folder, watch_folder
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer
from qa_hooks.sources.grids import find_grid, find_images, grid_remark

DATA = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def crops():
    """16 photographs of 96 pixels, in an order without meaning."""
    whole = [
        torch.from_numpy(getattr(DATA, n)()).permute(2, 0, 1) for n in ("astronaut", "coffee", "chelsea", "rocket")
    ]
    corners = [(0, 0), (0, 120), (120, 0), (140, 200)]
    found = torch.stack([image[:, t : t + 96, x : x + 96] for image in whole for t, x in corners])
    return found[torch.randperm(16, generator=torch.Generator().manual_seed(0))]


def sheet(images, **options) -> np.ndarray:
    return make_grid(images, **options).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("count", "columns", "padding", "value"),
    [(16, 4, 2, 0), (16, 4, 2, 255), (16, 8, 2, 0), (14, 4, 2, 0), (16, 4, 0, 0), (9, 3, 4, 128), (4, 2, 2, 0)],
)
def test_sheets_of_photographs(crops, count, columns, padding, value):
    found = find_grid(sheet(crops[:count], nrow=columns, padding=padding, pad_value=value))
    assert found == (columns, -(-count // columns), padding)


@pytest.mark.parametrize("quality", [75, 90])
def test_a_sheet_saved_as_jpeg(crops, quality):
    file = io.BytesIO()
    Image.fromarray(sheet(crops, nrow=4)).save(file, "JPEG", quality=quality)
    assert find_grid(np.asarray(Image.open(file))) == (4, 4, 2)


def test_a_sheet_of_digits(digits):
    large = torch.nn.functional.interpolate(digits[:64], size=32)
    images = ((large + 1) * 127.5).byte()
    assert find_grid(sheet(images, nrow=8)) == (8, 8, 2)


@pytest.mark.parametrize(
    "name", ["astronaut", "coffee", "chelsea", "rocket", "moon", "page", "brick", "coins", "camera"]
)
def test_photographs_are_no_sheets(name):
    image = getattr(DATA, name)()
    assert find_grid(image if image.ndim == 3 else image[:, :, None]) is None


def test_flat_and_noisy_pictures_are_no_sheets():
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    logo = np.full_like(noise, 255)
    logo[50:80, 40:90] = noise[50:80, 40:90]
    for picture in (noise, np.zeros_like(noise), np.full_like(noise, 255), logo):
        assert find_grid(picture) is None


def test_a_likely_sheet_is_told_of_and_cut_when_asked_for(crops, tmp_path):
    folder = tmp_path / "samples"
    folder.mkdir()
    save_image(make_grid(crops, nrow=4), folder / "1000.png")
    save_image(crops[0], folder / "one.png")
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True)
    with pytest.warns(UserWarning, match=r"1000\.png looks like a grid of many images \(4x4\+2\).*grid='4x4\+2"):
        score_folder(folder, scorer, tmp_path / "whole.csv", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = score_folder(folder, scorer, tmp_path / "cut.csv", grid="auto", progress=False)
    assert table.paths == [*(f"1000.png#4x4+2/{n:02d}.png" for n in range(16)), "one.png"]
    levels = crops.float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(table.columns["level"][:16], levels)
    torch.testing.assert_close(read_scores(tmp_path / "cut.csv").columns["level"][16], levels[0])
    with pytest.raises(ValueError, match=r"1000\.png: 394 x 394 pixels cannot be cut into a grid of 5x5\+2"):
        score_folder(folder, scorer, tmp_path / "cut.csv", grid="5x5+2", progress=False)
    with pytest.raises(ValueError, match="grid was auto, is now 2x2"):
        score_folder(folder, scorer, tmp_path / "cut.csv", grid="2x2", progress=False)


def test_a_watched_sheet_is_many_images(crops, tmp_path, caplog):
    folder = tmp_path / "samples"
    folder.mkdir()
    for step in (1000, 2000):
        save_image(make_grid(crops, nrow=4), folder / f"{step}.png")
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True)
    options = {"scorers": scorer, "once": True, "every": 0.01, "say": lambda line: None}
    result = watch_folder(folder, log_dir=tmp_path / "whole", **options)
    assert [values["n"] for values in result.steps.values()] == [1, 1]
    assert "looks like a grid of many images (4x4+2)" in caplog.text
    result = watch_folder(folder, log_dir=tmp_path / "cut", grid="4x4+2", **options)
    assert [values["n"] for values in result.steps.values()] == [16, 16]
    levels = crops.float().mean((1, 2, 3)) / 255
    assert result.steps[1000]["level"] == pytest.approx(float(levels.mean()), abs=1e-5)
    assert result.steps[1000]["level_std"] == pytest.approx(float(levels.std(unbiased=False)), abs=1e-5)


def test_a_name_alone_is_worth_a_word(tmp_path):
    noise = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8)
    save_image(noise, tmp_path / "grid_0001.png")
    assert "grid_0001.png is called a grid" in grid_remark(find_images(tmp_path, "auto"))
    assert grid_remark([]) == ""
