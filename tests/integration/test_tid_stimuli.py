"""TID2013's stimuli made again, on small pictures: crops, matched strengths, and the rule by which a type counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import tid_stimuli
from benchmarks.opinions import check_types
from benchmarks.opinions_scorers import published_psnr, published_ssim
from benchmarks.tid_stimuli import CORNERS, PSNRS, TYPES, psnr, rebuild, reference
from qa_hooks.ratings import Ratings

SMALL = 48, 64


@pytest.fixture
def clean():
    rows, columns = np.mgrid[:48, :64]
    base = 120 + 50 * np.sin(rows / 5) + 40 * np.cos(columns / 7)
    noise = np.random.default_rng(0).normal(0, 8, (48, 64, 3))
    return np.clip(np.stack([base, base + 10, base - 10], 2) + noise, 0, 255).round()


@pytest.mark.parametrize(
    ("kind", "near"),
    [("01", 0.3), ("02", 0.3), ("03", 0.1), ("05", 0.3), ("07", 2.0), ("19", 0.1), ("06", 0.3), ("11", 1.5)],
)
def test_strengths_have_the_published_psnr(kind, near, clean):
    """JPEG 2000 has few rates for so small a picture."""
    for level, target in enumerate(PSNRS):
        made = TYPES[kind](clean, level, np.random.default_rng(1))
        assert psnr(made, clean) == pytest.approx(target, abs=near)


@pytest.mark.parametrize("kind", ["08", "10"])
def test_each_level_is_worse(kind, clean):
    found = [psnr(TYPES[kind](clean, level, np.random.default_rng(1)), clean) for level in range(5)]
    assert found == sorted(found, reverse=True)


def test_colour_noise_is_stronger_in_colour():
    """And white noise is equally strong in each channel."""
    grey = np.full((48, 64, 3), 128.0)
    y, cb, cr = ((TYPES["02"](grey, 2, np.random.default_rng(1)) - grey) @ tid_stimuli.YCBCR.T).reshape(-1, 3).std(0)
    assert cb / y == pytest.approx(2, rel=0.1)
    assert cr / y == pytest.approx(2, rel=0.1)
    white = TYPES["01"](grey, 2, np.random.default_rng(1)) - grey
    assert white.reshape(-1, 3).std(0) == pytest.approx([white.std()] * 3, rel=0.1)


def test_correlated_noise_has_neighbours_alike(clean):
    """A Gaussian of deviation 1 gives neighbours the correlation exp(-1/4)."""
    noise = (TYPES["03"](clean, 2, np.random.default_rng(1)) - clean)[..., 0]
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] == pytest.approx(np.exp(-0.25), abs=0.05)


def test_high_frequency_noise_has_no_low_ones_and_steps_are_equal(clean):
    noise = (TYPES["05"](clean, 2, np.random.default_rng(1)) - clean)[..., 0]
    assert np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1] < -0.1
    values = np.unique(TYPES["07"](clean, 4, np.random.default_rng(1)))
    assert np.ptp(np.diff(values)) < 1e-9


def test_multiplied_noise_grows_with_the_pixel():
    picture = np.concatenate([np.full((48, 32, 3), 50.0), np.full((48, 32, 3), 200.0)], 1)
    noise = TYPES["19"](picture, 2, np.random.default_rng(1)) - picture
    assert noise[:, 32:].std() / noise[:, :32].std() == pytest.approx(4, rel=0.1)


def test_crops_stand_where_they_were_found(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (400, 300, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    top, left = CORNERS[1]
    np.testing.assert_array_equal(reference(tmp_path / "a.png", 1, SMALL), picture[top : top + 48, left : left + 64])
    np.testing.assert_array_equal(reference(tmp_path / "a.png", 2, SMALL), picture[176:224, 118:182])


def test_a_folder_with_fewer_photographs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold kodim01\.png to kodim24\.png, it has 0"):
        rebuild(tmp_path, tmp_path / "out", ["08"])


def test_what_is_there_stays(tmp_path):
    picture = np.random.default_rng(0).integers(0, 255, (320, 320, 3), dtype=np.uint8)
    for number in range(1, 25):
        Image.fromarray(picture).save(tmp_path / f"kodim{number:02}.png")
    rebuild(tmp_path, tmp_path / "out", ["08"], SMALL)
    assert len(list((tmp_path / "out").iterdir())) == 24 * 6
    (tmp_path / "out" / "I03_08_2.png").write_bytes(b"mine")
    rebuild(tmp_path, tmp_path / "out", ["08"], SMALL)
    assert (tmp_path / "out" / "I03_08_2.png").read_bytes() == b"mine"


def test_the_published_psnr_is_that_of_grey_images():
    g = torch.Generator().manual_seed(0)
    images, reference = torch.rand(2, 2, 3, 20, 24, generator=g)
    grey = [0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2] for x in (images.double(), reference.double())]
    wanted = [10 * np.log10(1 / float((a - b).square().mean())) for a, b in zip(*grey, strict=True)]
    assert published_psnr(images, reference).tolist() == pytest.approx(wanted, abs=1e-4)


def test_the_published_ssim_looks_at_grey_means():
    g = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 48, 48, generator=g)
    grey = (images * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    assert published_ssim(images, images).tolist() == pytest.approx([1, 1])
    assert published_ssim(images, grey).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_type_counts_when_both_metrics_agree_with_the_published():
    truth = torch.arange(120.0, dtype=torch.float64)
    names, content = [f"{i}.png" for i in range(120)], [str(i % 24) for i in range(120)]
    ratings = Ratings(names, truth, True, "x", "x", content=content, kind=["08"] * 120)
    g = np.random.default_rng(0)
    noise = g.normal(size=(2, 120))
    near = {"psnr as published": truth.numpy() + 14 * noise[0], "ssim as published": truth.numpy() + 9 * noise[1]}
    assert check_types(ratings, near)["08"]["passes"]
    far = {**near, "psnr as published": truth.numpy()}
    assert not check_types(ratings, far)["08"]["passes"]
