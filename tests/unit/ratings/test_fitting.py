"""`fit_mos` and `fit_pairs`: what is held out, what is measured, what is refused, and work that goes on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.features import create_extractor
from qa_hooks.ratings import Preference, Preferences, Ratings, fit_mos, fit_pairs
from qa_hooks.ratings import opinion_features as opinion_features_module
from qa_hooks.ratings.held_out import contents_of_pairs, held_out_contents, pair_agreement
from qa_hooks.ratings.opinion_features import rated_features
from qa_hooks.ratings.rated_images import one_row_an_image
from qa_hooks.rewards import diagnose
from qa_hooks.scorers import load_scorer

EXTRACTOR = {"type": "random", "width": 4}
QUIET = {"extractor": EXTRACTOR, "progress": False}
LITTLE = pytest.mark.filterwarnings("ignore:.*which is little, and knows no more")


@pytest.fixture(scope="module")
def stimuli(tmp_path_factory) -> tuple[list[str], list[Path], torch.Tensor, list[str]]:
    """16 contents at 5 strengths of noise: names, files, goodness and contents."""
    folder, random = tmp_path_factory.mktemp("stimuli"), np.random.default_rng(0)
    names, files, goodness, contents = [], [], [], []
    for content in range(16):
        clean = np.kron(random.integers(60, 195, (4, 4, 3)), np.ones((8, 8, 1)))
        for level in range(5):
            noisy = (clean + random.normal(0, 1, clean.shape) * 12 * level).clip(0, 255).astype(np.uint8)
            names.append(f"c{content:02d}_{level}.png")
            files.append(folder / names[-1])
            Image.fromarray(noisy).save(files[-1])
            goodness.append(9.0 - level + 0.2 * random.normal())
            contents.append(f"c{content:02d}")
    return names, files, torch.tensor(goodness, dtype=torch.float64), contents


def ratings_of(stimuli, **changes) -> Ratings:
    names, files, goodness, contents = stimuli
    given = {"content": list(contents), "images": list(files), **changes}
    return Ratings(list(names), given.pop("rating", goodness), given.pop("higher", True), "stars", "made", **given)


def pairs_of(stimuli) -> Preferences:
    names, files, *_ = stimuli
    return replace(ratings_of(stimuli).as_pairs(), images=dict(zip(names, files, strict=True)))


@LITTLE
def test_ratings_become_a_scorer_that_knows_what_it_knows(stimuli, tmp_path):
    scorer = fit_mos(ratings_of(stimuli), **QUIET)
    srcc = scorer.facts["held_out"]["srcc"]
    assert srcc["value"] > 0.9
    assert srcc["low"] <= srcc["value"] <= srcc["high"] <= 1
    assert srcc["clusters"] == 5
    assert srcc["n"] == 25
    assert scorer.facts["images"] == 55
    assert scorer.facts["contents"] == 11
    scorer.save(tmp_path / "mine.safetensors")
    loaded = load_scorer(tmp_path / "mine.safetensors")
    assert loaded.facts == scorer.facts
    assert loaded.calibration is not None
    images = torch.stack([torch.from_numpy(np.array(Image.open(p))).permute(2, 0, 1) for p in stimuli[1][:5]])
    said = loaded(images)
    assert said.tolist() == sorted(said.tolist(), reverse=True)
    assert bool((said - stimuli[2][:5]).abs().max() < 1.5)  # in units of the ratings


@LITTLE
def test_what_is_held_out_is_the_agreement_of_whole_contents_that_took_no_part(stimuli):
    scorer = fit_mos(ratings_of(stimuli), **QUIET, seed=3)
    _, files, goodness, contents = stimuli
    numbers = [int(content[1:]) for content in contents]
    held = held_out_contents(numbers, 0.25, 3)
    from scipy.stats import spearmanr

    features = rated_features(create_extractor(EXTRACTOR), files, progress=False)
    said = scorer.score_features(features[held])
    assert scorer.facts["held_out"]["srcc"]["value"] == pytest.approx(spearmanr(said, goodness[held])[0])
    alone = fit_mos(ratings_of(stimuli).select(~held), **QUIET, held_out=0.4)  # other images cannot change it
    assert alone.facts["images"] < scorer.facts["images"]
    moved = goodness.clone()
    moved[held] = moved[held].flip(0)
    again = fit_mos(ratings_of(stimuli, rating=moved), **QUIET, seed=3)
    torch.testing.assert_close(again.weights, scorer.weights, rtol=0, atol=0)


@LITTLE
def test_a_scale_on_which_lower_is_better_stays_so(stimuli):
    scorer = fit_mos(ratings_of(stimuli, rating=10 - stimuli[2], higher=False), **QUIET)
    assert scorer.higher_is_better is False
    assert scorer.facts["held_out"]["srcc"]["value"] > 0.9
    assert scorer.calibrated()(torch.full((1, 3, 32, 32), 0.5)).shape == (1,)


@LITTLE
@pytest.mark.parametrize("link", ["thurstone", "bradley-terry"])
def test_pairs_become_a_scorer(stimuli, link):
    scorer = fit_pairs(pairs_of(stimuli), link=link, **QUIET)
    found = scorer.facts["held_out"]["accuracy"]
    assert found["value"] > 0.9
    assert found["n"] == 50
    assert scorer.facts["kind"] == "pairs"
    assert link in scorer.scale


@LITTLE
def test_pairs_of_several_raters_count_by_majority(stimuli):
    pairs = pairs_of(stimuli)
    three = [pair._replace(rater=rater) for pair in pairs for rater in "ab"]
    wrong = [pair._replace(rater="c", better=-pair.better) for pair in pairs]
    one = fit_pairs(pairs, **QUIET)
    many = fit_pairs(replace(pairs, pairs=three + wrong), **QUIET)
    torch.testing.assert_close(many.weights, one.weights)


@LITTLE
def test_a_hundred_images_without_contents_work_and_say_how_little_they_know(stimuli):
    with pytest.warns(UserWarning, match="which is little.*srcc"), pytest.warns(UserWarning, match="name no contents"):
        fit_mos(ratings_of(stimuli, content=[]), **QUIET)


@LITTLE
def test_several_raters_of_an_image_give_mean_and_spread(stimuli):
    names, files, *_ = stimuli
    said = torch.tensor([1.0, 2.0, 6.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    given = {"rater": list("abcabc"), "images": [files[0]] * 3 + [files[1]] * 3}
    rows = Ratings([names[0]] * 3 + [names[1]] * 3, said, True, "stars", "made", **given)
    one = one_row_an_image(rows)
    assert one.rating.tolist() == [3.0, 4.0]
    assert one.spread.tolist() == pytest.approx([math.sqrt(7), 0.0])
    assert not one.rater


def test_spreads_in_other_units_are_not_used(stimuli):
    ratings = ratings_of(stimuli, spread=torch.ones(80, dtype=torch.float64), spread_scale="1 to 5")
    assert one_row_an_image(ratings).spread is None
    assert one_row_an_image(replace(ratings, spread_scale="the rating's own")).spread is not None
    with pytest.raises(ValueError, match="spreads are negative"):
        one_row_an_image(replace(ratings, spread_scale="", spread=-torch.ones(80, dtype=torch.float64)))


@LITTLE
def test_spreads_are_fitted(stimuli):
    spread = 0.2 + 0.1 * torch.arange(80, dtype=torch.float64).remainder(5)
    scorer = fit_mos(ratings_of(stimuli, spread=spread), **QUIET)
    assert scorer.spread(torch.rand(2, 3, 32, 32)).shape == (2,)


@LITTLE
def test_an_image_that_cannot_be_read_is_left_out(stimuli, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [broken, *stimuli[1][1:]]
    with pytest.warns(UserWarning, match="1 image could not be read"):
        scorer = fit_mos(ratings_of(stimuli, images=files), **QUIET)
    assert scorer.facts["images"] in (54, 55)


def test_work_that_was_stopped_goes_on(stimuli, tmp_path, monkeypatch):
    monkeypatch.setattr(opinion_features_module, "PART", 32)
    extractor, calls = create_extractor(EXTRACTOR), []
    original = opinion_features_module.extract_features

    def counted(*arguments, **options):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(arguments[1]))
        return original(*arguments, **options)

    monkeypatch.setattr(opinion_features_module, "extract_features", counted)
    with pytest.raises(KeyboardInterrupt):
        rated_features(extractor, stimuli[1], cache=tmp_path, progress=False)
    monkeypatch.setattr(
        opinion_features_module, "extract_features", lambda *a, **o: (calls.append(len(a[1])), original(*a, **o))[1]
    )
    found = rated_features(extractor, stimuli[1], cache=tmp_path, progress=False)
    assert calls == [32, 32, 16]
    whole = rated_features(extractor, stimuli[1], progress=False)
    torch.testing.assert_close(found.values, whole.values)
    assert found.indices.tolist() == whole.indices.tolist()
    assert found.size == whole.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": []}, "have no images"),
        ({"images": [None] * 80}, "20 rated images are the least, got 0"),
        ({"content": ["same"] * 80}, "10 different contents"),
        ({"rating": torch.ones(80, dtype=torch.float64)}, "all ratings are 1"),
    ],
)
def test_what_cannot_be_fitted_is_refused(stimuli, change, message):
    with pytest.raises(ValueError, match=message):
        fit_mos(ratings_of(stimuli, **change), **QUIET)


def test_more_of_what_is_refused(stimuli):
    with pytest.raises(ValueError, match="held_out must be a share"):
        fit_mos(ratings_of(stimuli), **QUIET, held_out=25)
    with pytest.raises(ValueError, match="calibration must be"):
        fit_mos(ratings_of(stimuli), **QUIET, calibration="isotonic")
    with pytest.raises(ValueError, match="link must be one of"):
        fit_pairs(pairs_of(stimuli), **QUIET, link="elo")
    with pytest.raises(ValueError, match="have no images"):
        fit_pairs(replace(pairs_of(stimuli), images={}), **QUIET)
    ties = [pair._replace(better=0.0) for pair in pairs_of(stimuli)]
    with pytest.raises(ValueError, match="none of the decided pairs"):
        fit_pairs(replace(pairs_of(stimuli), pairs=ties), **QUIET)


def test_contents_of_pairs_join_where_an_image_is_in_both():
    pairs = [
        Preference("a", "b", 1, "x"),
        Preference("b", "c", 1, "y"),
        Preference("d", "e", 1, "z"),
        Preference("f", "g", 1),
    ]
    found = contents_of_pairs(Preferences(pairs, "pairs"))
    assert found["a"] == found["b"] == found["c"] != found["d"] == found["e"]
    assert len({found["a"], found["d"], found["f"], found["g"]}) == 4


def test_held_out_contents_leave_five_on_both_sides():
    assert int(held_out_contents(range(10), 0.01, 0).sum()) == 5
    assert int(held_out_contents(range(10), 0.99, 0).sum()) == 5
    rows = [row // 7 for row in range(140)]
    held = held_out_contents(rows, 0.25, 0)
    assert all(len(set(held[7 * i : 7 * i + 7].tolist())) == 1 for i in range(20))


def test_pair_agreement_is_the_share_and_its_interval_covers():
    """Contents differ in how often a metric is right; the interval over contents covers the truth."""
    random, covered, runs = np.random.default_rng(0), 0, 120
    for _ in range(runs):
        skill = random.beta(7, 3, 30)  # mean .7
        right = np.concatenate([random.random(12) < share for share in skill])
        contents = np.repeat(np.arange(30), 12)
        labels = torch.ones(360)
        found = pair_agreement(torch.from_numpy(np.where(right, 1.0, -1.0)), labels, contents, contents)
        assert found.value == pytest.approx(right.mean())
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / runs <= 0.995
    tied = pair_agreement(torch.zeros(40), torch.tensor([1.0, 0.0] * 20), range(40), range(40))
    assert (tied.value, tied.n) == (0.5, 20)


def test_right_everywhere_is_no_certainty():
    few = pair_agreement(torch.ones(20), torch.ones(20), [i // 4 for i in range(20)], [i // 4 for i in range(20)])
    many = pair_agreement(torch.ones(400), torch.ones(400), [i // 4 for i in range(400)], [i // 4 for i in range(400)])
    assert few.value == few.high == 1
    assert few.low < 0.6 < 0.95 < many.low < 1


def test_pairs_between_contents_have_wider_intervals_than_independent_ones():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(12, (2, 400), generator=generator).tolist()
    gaps = torch.tensor([1.0 if x > 3 and y > 3 else -1.0 for x, y in zip(a, b, strict=True)])
    within = pair_agreement(gaps, torch.ones(400), a, b)
    independent = 2 * 1.96 * math.sqrt(within.value * (1 - within.value) / 400)
    assert within.high - within.low > 2 * independent
    with pytest.raises(ValueError, match="at least 5 contents"):
        pair_agreement(gaps, torch.ones(400), [0] * 400, [1] * 400)
    with pytest.raises(ValueError, match="decided none"):
        pair_agreement(gaps, torch.zeros(400), a, b)
    with pytest.raises(ValueError, match="not finite"):
        pair_agreement(gaps * float("nan"), torch.ones(400), a, b)


@LITTLE
@pytest.mark.filterwarnings("ignore:opinion was fitted on images of the size")
def test_the_doctor_takes_it(stimuli):
    scorer = fit_mos(ratings_of(stimuli), **QUIET)
    diagnosis = diagnose(scorer, size=32, progress=False)
    assert diagnosis.as_dict()["verdict"]
