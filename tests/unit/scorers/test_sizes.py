"""Scores of another size are another scale: a scorer knows the size it was fitted at, wherever it scores."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qa_hooks.evaluation.quality_diversity import diversity_score, quality_score
from qa_hooks.features import create_extractor, extract_features
from qa_hooks.images import save_image, to_uint8
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import GMMScorer, KNNScorer, MBCScorer, create_scorer, load_scorer
from qa_hooks.weighting import OHEM, pick

NARROW = {"type": "random", "width": 4}


@pytest.fixture(scope="module")
def images():
    coarse = torch.rand(90, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, scale_factor=4, mode="bicubic").clamp(0, 1)


@pytest.fixture(params=["gmm", "knn"])
def fitted(request, images):
    scorer = KNNScorer(NARROW) if request.param == "knn" else GMMScorer(NARROW, 1, pca=4)
    return scorer.fit(images[:80], progress=False)


def enlarged(images):
    return F.interpolate(images, scale_factor=2, mode="bilinear", antialias=True)


def test_its_own_size_passes_without_a_word(fitted, images, tmp_path):
    assert fitted.fitted_size == (32, 32)
    fitted.save(tmp_path / "scorer.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_scorer(tmp_path / "scorer.safetensors", other_sizes="raise")
        torch.testing.assert_close(loaded(images[80:]), fitted(images[80:]))
    assert loaded.fitted_size == (32, 32)


def test_another_size_is_said_once_refused_or_resized(fitted, images, tmp_path):
    fitted.save(tmp_path / "scorer.safetensors")
    large, message = enlarged(images[80:]), "was fitted on images of the size 32 x 32: scores of 64 x 64"
    with pytest.warns(UserWarning, match=message):
        fitted(large)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(large)
    with pytest.raises(ValueError, match=message):
        load_scorer(tmp_path / "scorer.safetensors", other_sizes="raise")(large)
    resized = load_scorer(tmp_path / "scorer.safetensors", other_sizes="resize")(large)
    back = F.interpolate(large, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(resized, fitted(back))
    spec = {"type": str(tmp_path / "scorer.safetensors"), "other_sizes": "resize"}
    torch.testing.assert_close(create_scorer(spec)(large), resized)
    with pytest.raises(ValueError, match="other_sizes must be one of"):
        load_scorer(tmp_path / "scorer.safetensors", other_sizes="ignore")


def test_wherever_it_scores(fitted, images, tmp_path):
    fitted.other_sizes = "raise"
    large = enlarged(images[80:])
    features = extract_features(fitted.extractor, large, progress=False)
    uses = [
        lambda: fitted.calibrated()(large),
        lambda: ScoreLoss(fitted, ceiling=1.0)(large),
        lambda: OHEM(fitted)(large),
        lambda: fitted.score_features(features),
        lambda: fitted.refit(features),
        lambda: quality_score(fitted, large, progress=False),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="32 x 32"):
            use()


def test_images_of_several_sizes_have_no_size(images, tmp_path):
    """A set's size is taken from all of it and not from its first image."""
    for index, image in enumerate(images[:60]):
        save_image(to_uint8(image[:, : 32 - index % 2]), tmp_path / f"{index:02d}.png")
    scorer = KNNScorer(NARROW).fit(tmp_path, progress=False)
    assert scorer.fitted_size is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer(images[:2])
        scorer(enlarged(images[:2]))


class TestExtractorsWhoseLengthDependsOnTheSize:
    def test_one_size_works(self, images, tmp_path):
        extractor = create_extractor(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), name="flat")
        scorer = KNNScorer(extractor).fit(images[:80], progress=False)
        assert scorer(images[80:]).shape == (10,)
        scorer.save(tmp_path / "flat.safetensors")
        loaded = load_scorer(tmp_path / "flat.safetensors", extractor=nn.Sequential(nn.AvgPool2d(8), nn.Flatten()))
        torch.testing.assert_close(loaded(images[80:]), scorer(images[80:]))

    def test_another_size_is_refused_by_name(self, images):
        extractor = create_extractor(nn.Flatten(), name="flat")
        assert extractor(images[:2]).shape == (2, 3 * 32 * 32)
        with pytest.raises(ValueError, match=r"flat gives 12288 values for images of 64 x 64 and gave 3072 before"):
            extractor(enlarged(images[:2]))
        with pytest.raises(ValueError, match=r"flat gives 12288 values"):
            KNNScorer(extractor).fit(enlarged(images), progress=False)

    def test_a_fixed_size_takes_any(self, images):
        extractor = create_extractor(nn.Flatten(), name="flat", size=16)
        assert extractor(images[:2]).shape == extractor(enlarged(images[:2])).shape == (2, 768)


def test_where_resizing_is_asked_for_features_are_taken_at_the_fitted_size_too(fitted, images, tmp_path):
    fitted.save(tmp_path / "scorer.safetensors")
    scorer = load_scorer(tmp_path / "scorer.safetensors", other_sizes="resize")
    large = enlarged(images[80:])
    picked = pick(large, scorer, keep=0.5, progress=False)
    torch.testing.assert_close(picked.scores, scorer(large))
    assert pick(large, scorer.calibrated(), keep=0.5, progress=False).indices.tolist() == picked.indices.tolist()
    assert math.isfinite(diversity_score(scorer, images[:60], enlarged(images[:60])).value)
    with pytest.raises(ValueError, match="32 x 32: scores of 64 x 64"):
        pick(large, fitted, keep=0.5, progress=False)


@pytest.mark.parametrize("odd", ["size", "grey"])
def test_the_first_snapshot_does_not_decide_what_a_network_sees(odd, images, tmp_path):
    """Most snapshots do, wherever the odd one stands."""
    found = {}
    for place in (0, 29):
        folder = tmp_path / str(place)
        folder.mkdir()
        for number, image in enumerate(images[:30]):
            if number == place:
                image = enlarged(image[None])[0] if odd == "size" else image.mean(0, keepdim=True)
            save_image(to_uint8(image), folder / f"step{number:03d}.png")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            scorer = MBCScorer(2).fit_snapshots(folder, images[30:90], steps=1, calibration=None, progress=False)
        found[place] = scorer.shape, any("2 sizes; all are brought to 32 x 32" in str(w.message) for w in told)
    assert found[0] == found[29] == ((3, 32, 32), odd == "size")


def test_a_snapshot_scorer_says_that_images_are_resized_unless_a_size_was_asked_for(images, tmp_path):
    def fit(**options):
        steps = torch.arange(30) * 10
        return MBCScorer(2, **options).fit_snapshots((images[:30], steps), images[30:90], steps=1, progress=False)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own, asked = fit(), fit(size=32)
    own.save(tmp_path / "own.safetensors")
    for scorer in (own, load_scorer(tmp_path / "own.safetensors")):
        with pytest.warns(UserWarning, match="fitted on images of the size 32 x 32: scores of 64 x 64"):
            scorer(enlarged(images[:2]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own(images[:2])
        asked(enlarged(images[:2]))
        load_scorer(tmp_path / "own.safetensors", other_sizes="resize")(enlarged(images[:2]))
