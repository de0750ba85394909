"""NIQE with published parameters gives the MATLAB release's number: against a plain float64 port of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from scipy.special import gamma

from qa_hooks.scorers import NIQE, NaturalnessModel, load_scorer

GRID = np.arange(200, 10001) / 1000
SHAPES = gamma(2 / GRID) ** 2 / (gamma(1 / GRID) * gamma(3 / GRID))
SIDE = np.arange(7) - 3
WINDOW = np.exp(-(SIDE[:, None] ** 2 + SIDE**2) / (2 * (7 / 6) ** 2))
WINDOW /= WINDOW.sum()


def estimate(values):
    """alpha, left, right of an asymmetric generalised Gaussian; an empty side is NaN, as a mean of nothing is."""
    left, right = (
        np.sqrt(np.mean(side**2)) if side.size else np.nan for side in (values[values < 0], values[values > 0])
    )
    ratio, square = left / right, np.mean(values**2)
    moment = np.mean(np.abs(values)) ** 2 / square if square else np.nan
    moment *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = GRID[np.argmin((SHAPES - moment) ** 2)]
    scale = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * scale, right * scale


def half_size(image):
    """MATLAB's imresize(image, 0.5): bicubic with antialiasing, symmetric border."""

    def cubic(x):
        x = abs(x)
        return (1.5 * x**3 - 2.5 * x**2 + 1) * (x <= 1) + (-0.5 * x**3 + 2.5 * x**2 - 4 * x + 2) * ((x > 1) & (x <= 2))

    for _ in range(2):
        rows = []
        for row in range(len(image) // 2):
            at = np.arange(2 * row - 3, 2 * row + 5)
            weights = cubic((at - (2 * row + 0.5)) / 2)
            at = np.where(at < 0, -1 - at, np.where(at >= len(image), 2 * len(image) - 1 - at, at))
            rows.append(weights / weights.sum() @ image[at])
        image = np.array(rows).T
    return image


def features(grey):
    columns = []
    for block in (96, 48):
        mean = correlate(grey, WINDOW, mode="nearest")
        deviation = np.sqrt(np.abs(correlate(grey * grey, WINDOW, mode="nearest") - mean * mean))
        contrast, rows = (grey - mean) / (deviation + 1), []
        for top in range(0, len(grey) - block + 1, block):
            for left in range(0, grey.shape[1] - block + 1, block):
                part = contrast[top : top + block, left : left + block]
                alpha, low, high = estimate(part)
                row = [alpha, (low + high) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    alpha, low, high = estimate(part * np.roll(part, shift, (0, 1)))
                    row += [alpha, (high - low) * gamma(2 / alpha) / gamma(1 / alpha), low, high]
                rows.append(row)
        columns.append(np.array(rows))
        grey = half_size(grey)
    return np.concatenate(columns, 1)


def release(grey, model):
    rows = features(grey)
    whole = rows[~np.isnan(rows).any(1)]
    offset = np.nanmean(rows, 0) - model[0]
    return float(np.sqrt(offset @ np.linalg.pinv((model[1] + np.cov(whole, rowvar=False)) / 2) @ offset))


def grey_of(name):
    data = pytest.importorskip("skimage.data")
    image = getattr(data, name)()[:288, :288]
    if image.ndim == 2:
        return image.astype(float)
    weights = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])[0]
    return np.floor(image.astype(float) @ weights + 0.5)


@pytest.fixture(scope="module")
def model():
    rows = np.concatenate([features(grey_of(name)) for name in ("coffee", "chelsea", "rocket")])
    covariance = np.cov(rows, rowvar=False)
    return rows.mean(0), (covariance + np.diag(np.diag(covariance))) / 2


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / "parameters.npz"
    np.savez(path, mu_pris_param=model[0][None], cov_pris_param=model[1])
    return path


def pictures():
    photograph = grey_of("astronaut")
    return {
        "plain": photograph,
        "a bar at the left": np.pad(photograph, ((0, 0), (96, 0))),
        "letterbox": np.pad(photograph, ((96, 96), (0, 0))),
        "a frame within blocks": np.pad(photograph[40:-40, 40:-40], 40),
    }


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("name", ["plain", "a bar at the left", "letterbox", "a frame within blocks"])
def test_grey_pictures(name, model, path):
    grey = pictures()[name]
    score = float(NIQE(path)(torch.from_numpy(grey)[None, None] / 255))
    assert score == pytest.approx(release(grey, model), abs=0.01)


def test_colours_are_rounded_to_8_bits(model, path):
    data = pytest.importorskip("skimage.data")
    dark = (data.astronaut()[:288, :288] * 0.5 + 20).astype(np.uint8)
    weights = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])[0]
    grey = np.floor(dark.astype(float) @ weights + 0.5)
    colour = torch.from_numpy(dark).permute(2, 0, 1)[None]
    assert float(NIQE(path)(colour)) == pytest.approx(release(grey, model), abs=0.01)


def test_the_handling_stays_with_the_parameters_through_our_files(path, tmp_path):
    picture = torch.from_numpy(pictures()["letterbox"])[None, None] / 255
    expected = NIQE(path)(picture)
    NaturalnessModel.load(path).save(tmp_path / "model.safetensors")
    NIQE(path).save(tmp_path / "scorer.safetensors")
    for file in ("model", "scorer"):
        torch.testing.assert_close(load_scorer(tmp_path / f"{file}.safetensors")(picture), expected)
    ours = NaturalnessModel.load(path)
    ours.provenance.pop("handling")
    assert abs(float(NIQE(ours)(picture) - expected)) > 0.05  # a model of our own leaves the bars out


def test_a_picture_without_a_number_there_gets_our_own(path):
    scorer = NIQE(path)
    flat, photograph = (
        torch.full((1, 1, 288, 288), 0.5),
        torch.from_numpy(grey_of("astronaut"))[None, None].float() / 255,
    )
    both = torch.cat([flat, photograph]).requires_grad_()
    scores = scorer(both)
    (gradient,) = torch.autograd.grad(scores.sum(), both)
    assert scores.isfinite().all()
    assert gradient.isfinite().all()
    torch.testing.assert_close(scores[1:], scorer(photograph))
    assert gradient[1].abs().max() > 0
