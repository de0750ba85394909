"""Quality and diversity scores: a closed form, a generator that drops modes, one that blurs."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qa_hooks.demo.data import load_digits_images
from qa_hooks.evaluation.quality_diversity import diversity_score, quality_score
from qa_hooks.features import Features, create_extractor, extract_features
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer
from qa_hooks.scorers.giqa.gmm import GMMScorer
from qa_hooks.scorers.giqa.knn import KNNScorer
from qa_hooks.scorers.score_source import score_features, score_source

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def data():
    return load_digits_images()


@pytest.fixture(scope="module")
def extractor():
    return create_extractor("random")


@pytest.fixture(scope="module", params=["gmm", "knn"])
def scorer(request, data, extractor):
    options = {"value_range": (-1, 1)}
    made = GMMScorer(extractor, **options) if request.param == "gmm" else KNNScorer(extractor, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 100 images a component are few
        return made.fit(data.train[:700], **QUIET)


def brightness(**options) -> FunctionScorer:
    options = {"name": "brightness", "higher_is_better": True, **options}
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), **options)
    return scorer.fit_calibration(torch.linspace(0, 1, 1001), method="ecdf")


@pytest.mark.filterwarnings("ignore:a component has about")
def test_a_collapsed_generator_loses_diversity_and_a_blurred_one_quality(data, scorer):
    """Held-out real digits stand for generators: all classes, the classes 0 to 4 only, one class, a blur."""
    images, labels = data.train[700:], data.train_labels[700:]
    dropped = images[labels < 5]
    whole = images[: len(dropped)]
    generators = {
        "whole": whole,
        "dropped": dropped,
        "blurred": F.avg_pool2d(F.pad(whole, (2, 2, 2, 2), mode="replicate"), 5, stride=1),
    }
    quality = {name: quality_score(scorer, fake, **QUIET) for name, fake in generators.items()}
    with pytest.warns(UserWarning, match="397 real images, but 351 of the other kind: 351 are drawn"):
        diversity = {name: diversity_score(scorer, fake, data.test, **QUIET) for name, fake in generators.items()}
    assert abs(float(quality["dropped"]) - float(quality["whole"])) < 0.1
    assert float(diversity["dropped"]) < float(diversity["whole"]) - 0.12
    assert float(quality["blurred"]) < float(quality["whole"]) - 0.3
    assert abs(float(quality["whole"]) - 0.5) < 0.05  # real images, as unseen as the calibration's
    assert abs(float(diversity["whole"]) - 0.5) < 0.08


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_scores_of_gaussians_have_their_closed_form(sigma):
    """In two dimensions |x|^2 is exponential, so P(|g| > |r|) = s^2 / (1 + s^2) for g ~ N(0, s^2), r ~ N(0, 1)."""
    halves = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())
    pairs = create_extractor(halves, name="halves", channels=1)
    count = 8000

    def gaussian(scale: float, seed: int) -> Features:
        rows = scale * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        return Features(rows, pairs.fingerprint, torch.arange(count))

    scorer = GMMScorer(pairs, components=1, pca=None).fit_features(gaussian(1, 0))
    expected = sigma**2 / (1 + sigma**2)
    quality = quality_score(scorer, gaussian(sigma, 1))
    diversity = diversity_score(scorer, gaussian(sigma, 1), gaussian(1, 2))
    assert float(diversity) == pytest.approx(expected, abs=0.025)
    assert float(quality) == pytest.approx(1 - expected, abs=0.025)
    assert diversity.n == quality.n == count
    for result in (quality, diversity):
        assert 0 < result.error < 0.5 / math.sqrt(count)


def test_the_error_is_the_standard_error_and_the_spec_says_how():
    values = torch.tensor([0.1, 0.2, 0.4, 0.9])
    batch = values[:, None, None, None].expand(4, 3, 8, 8)
    result = quality_score(brightness(), batch, **QUIET)
    assert result.value == pytest.approx(0.4, abs=1e-5)
    assert result.error == pytest.approx(float(values.std()) / 2, abs=1e-5)
    assert quality_score(brightness().calibrated(), batch, **QUIET) == result
    other = quality_score(brightness().fit_calibration(torch.linspace(0, 2, 100)), batch, **QUIET)
    assert other.spec != result.spec  # calibrated on other images
    assert float(quality_score(brightness(higher_is_better=False).fit_calibration(-values.repeat(5)), batch)) < 0.7


def test_diversity_says_what_it_was_made_of(data, scorer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = diversity_score(scorer, data.train[700:900], data.test[:100], seed=3, **QUIET)
        again = diversity_score(scorer, data.train[700:900], data.test[:100], seed=3, **QUIET)
        features = [extract_features(scorer.extractor, part, value_range=(-1, 1), **QUIET) for part in
                    (data.train[700:900], data.test[:100])]  # fmt: skip
        assert result == again == diversity_score(scorer, *features, seed=3)
    assert result.n == 100
    assert result.spec.startswith(f"DS[{scorer.name}, ")
    for part in ("n=100", "draw=3", "random", "ecdf"):
        assert part in result.spec


@pytest.mark.filterwarnings("ignore")
def test_a_generator_that_makes_one_image_has_no_diversity(data, scorer):
    assert float(diversity_score(scorer, data.train[:1].expand(100, -1, -1, -1), data.test[:100], **QUIET)) < 0.01


def test_what_cannot_be_scored_is_refused(data, scorer):
    with pytest.raises(ValueError, match="brightness has no calibration"):
        quality_score(FunctionScorer(lambda x: x, name="brightness", higher_is_better=True), data.test)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        quality_score(scorer, data.test[:1], **QUIET)
    with pytest.raises(ValueError, match="at least 50 images of each kind, got 49 generated and 397 real"):
        diversity_score(scorer, data.train[:49], data.test, **QUIET)
    with pytest.raises(TypeError, match="use a GMMScorer or a KNNScorer"):
        diversity_score(brightness(), data.train, data.test)
    stranger = Features(torch.zeros(60, 448), "0" * 16, torch.arange(60))
    with pytest.raises(ValueError, match="fingerprint"):
        diversity_score(scorer, stranger, stranger)
    nan = brightness(value_range=(-1, 1))
    nan.function = lambda x: torch.full((len(x),), torch.nan)
    with pytest.raises(ValueError, match="5 of 5 scores of brightness are not finite"):
        quality_score(nan, data.test[:5], **QUIET)


@pytest.fixture
def folder(tmp_path, photographs):
    for i, size in enumerate([32, 48, 32, 64, 32]):
        save_image((photographs[i % 4, :, :size, :size] * 255).byte(), tmp_path / f"{i}.png")
    (tmp_path / "2b.png").write_bytes(b"no image")
    return tmp_path


def test_a_folder_with_sizes_and_a_broken_file(folder, photographs):
    failures: dict[int, str] = {}
    scored = score_source(brightness(), folder, batch_size=2, failures=failures, **QUIET)
    assert scored.positions.tolist() == [0, 1, 2, 4, 5]
    assert scored.parts.tolist() == [0] * 5
    sizes = [32, 48, 32, 64, 32]
    expected = [float((photographs[i % 4, :, :s, :s] * 255).byte().float().mean()) / 255 for i, s in enumerate(sizes)]
    assert scored.scores.tolist() == pytest.approx(expected, abs=1e-6)
    assert list(failures) == [3]
    assert "2b.png" in failures[3]
    with pytest.raises(ValueError, match=r"2b\.png is not a readable image"):
        score_source(brightness(), folder, **QUIET)
    with pytest.warns(UserWarning, match=r"1 image could not be read and was left out; .*2b\.png"):
        assert quality_score(brightness(), folder, **QUIET).n == 5


def test_scores_from_features_are_those_from_images(data, scorer):
    features = extract_features(scorer.extractor, data.test[:20], value_range=(-1, 1), **QUIET)
    with torch.no_grad():
        for one in (scorer, scorer.calibrated()):
            assert torch.allclose(score_features(one, features), one(data.test[:20]), rtol=1e-4)


def test_overshoot_is_clamped_on_either_way(data, scorer):
    images = data.test[:60] * 1.2
    features = extract_features(scorer.extractor, images, value_range=(-1, 1), generated=True, progress=False)
    direct = quality_score(scorer, images, **QUIET)
    assert float(direct) == pytest.approx(float(quality_score(scorer, features, **QUIET)), abs=1e-6)
    assert float(direct) == pytest.approx(float(quality_score(scorer, images.clamp(-1, 1), **QUIET)), abs=1e-6)


def test_scoring_leaves_the_callers_state_alone(data):
    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return 5

        def __getitem__(self, index):
            return torch.rand(3, 8, 8)

    before = torch.get_rng_state()
    score_source(brightness(), Noisy(), **QUIET)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
