"""Scorers tried on rated images: scored once, by content; failures told; a recommendation for each use."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from qa_hooks.ratings import Preference, Preferences, Ratings, read_ratings, report_agreement, select_metrics
from qa_hooks.scorers import FunctionScorer

CONTENTS, LEVELS = 6, 4


class Counting:
    """A metric that counts the images it sees, and may stop or refuse."""

    def __init__(self, of, *, stop_after=10**9):
        self.of, self.seen, self.stop_after = of, 0, stop_after

    def __call__(self, images, **inputs):
        if self.seen + len(images) > self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        return self.of(images, **inputs)


def metric(name, of, **options):
    counting = Counting(of, stop_after=options.pop("stop_after", 10**9))
    return counting, FunctionScorer(counting, name=name, higher_is_better=options.pop("higher", True), **options)


def smooth(images):
    return -(images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))


def dark(images):
    return -images.mean((1, 2, 3))


@pytest.fixture
def rated(tmp_path):
    """Grey pictures with noise of four levels, rated by their noise; `I01.png` and so on are the references."""
    g = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    lines = ["file,stars,scene,type,ref,text"]
    for c in range(CONTENTS):
        clean = np.full((24, 24, 3), 60 + 20 * c, dtype=np.float64) + 10 * np.arange(24)[:, None, None] / 24
        Image.fromarray(clean.astype(np.uint8)).save(folder / f"I0{c}.png")
        for level in range(LEVELS):
            noisy = clean + 4 * (level + 1) * g.normal(size=clean.shape)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"I0{c}_{level}.png")
            stars = 5 - level + 0.1 * g.normal()
            lines.append(f"I0{c}_{level}.png,{stars:.3f},{c},{'ab'[level % 2]},I0{c}.png,scene {c}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    columns = {"name": "file", "rating": "stars", "content": "scene", "kind": "type", "reference": "ref"}
    columns["prompt"] = "text"
    return read_ratings(tmp_path / "mine.csv", columns=columns, higher_is_better=True, images=folder)


def folder_of(rated):
    return rated.images[0].parent


def test_the_best_and_the_cheap(rated, tmp_path):
    _, good = metric("smooth", smooth)
    _, bad = metric("dark", dark)
    found = select_metrics(
        rated,
        ["psnr", good, bad],
        tmp_path / "c",
        references=folder_of(rated),
        uses=["monitor", "cheap"],
        progress=False,
    )
    assert found.report.metrics[-1] == "dark"
    assert found.recommended["monitor"] in ("psnr", "smooth")
    assert found.recommended["cheap"] in found.report.best
    assert all(value > 0 for value in found.milliseconds.values())
    found.save(tmp_path / "out")
    assert "monitor: " in (tmp_path / "out" / "report.txt").read_text()
    read = json.loads((tmp_path / "out" / "report.json").read_text(), parse_constant=pytest.fail)
    assert read["recommended"] == found.recommended
    assert read["scorings"] == read["everything"] == 3 * CONTENTS * LEVELS


def test_nothing_is_scored_twice(rated, tmp_path):
    counting, scorer = metric("smooth", smooth)
    options = {"uses": ["monitor"], "progress": False, "statistics": ["srcc"], "by": []}
    select_metrics(rated, scorer, tmp_path / "c", **options)
    first = counting.seen
    select_metrics(rated, scorer, tmp_path / "c", **options)
    timing = 4 * 4  # the speed is measured on four images, four times
    assert first == CONTENTS * LEVELS + timing
    assert counting.seen == first + timing
    for path in sorted(folder_of(rated).glob("I00_*.png")):  # a renamed file keeps its score, a changed one does not
        path.rename(path.with_suffix(".PNG"))
    Image.fromarray(np.zeros((24, 24, 3), np.uint8)).save(folder_of(rated) / "I01_0.png")
    again = read_ratings(
        tmp_path / "mine.csv", columns={"name": "file", "rating": "stars", "content": "scene"}, higher_is_better=True,
        images=folder_of(rated),
    )  # fmt: skip
    select_metrics(again, scorer, tmp_path / "c", **options)
    assert counting.seen == first + 2 * timing + 1


def test_fewer_images_do_not_make_the_table_forget_the_others(rated, tmp_path):
    counting, scorer = metric("smooth", smooth)
    options = {"uses": [], "progress": False, "statistics": ["srcc"], "by": []}
    for rows in (range(len(rated)), range(CONTENTS * LEVELS - 4), range(len(rated))):
        select_metrics(rated.select(list(rows)), scorer, tmp_path / "c", **options)
    assert counting.seen == CONTENTS * LEVELS + 3 * 16


def test_a_stopped_run_goes_on(rated, tmp_path):
    options = {"uses": [], "progress": False, "statistics": ["srcc"], "by": [], "batch_size": 4}
    stopped, scorer = metric("smooth", smooth, stop_after=12)
    with pytest.raises(KeyboardInterrupt):
        select_metrics(rated, scorer, tmp_path / "c", **options)
    counting, scorer = metric("smooth", smooth)
    select_metrics(rated, scorer, tmp_path / "c", **options)
    assert stopped.seen == 12
    assert counting.seen == CONTENTS * LEVELS - 12 + 16


def test_failures_are_told_and_left_out_for_all(rated, tmp_path):
    def picky(images):
        if (images.mean((1, 2, 3)) > 0.62).any():  # the brightest content
            raise ValueError("too bright")
        return smooth(images)

    scorers = [metric("picky", picky)[1], metric("dark", dark)[1]]
    found = select_metrics(rated, scorers, tmp_path / "c", uses=["monitor"], progress=False)
    failed = found.problems["picky"]
    assert 0 < len(failed) <= LEVELS
    assert all("too bright" in message for message in failed.values())
    assert found.report.images == CONTENTS * LEVELS - len(failed)
    assert f"picky failed on {len(failed)} images" in str(found)


def test_halving_does_not_score_what_has_fallen_behind(rated, tmp_path):
    made = {name: metric(name, of) for name, of in {"smooth": smooth, "dark": dark}.items()}
    for seed in range(2):
        noise = np.random.default_rng(seed)
        made[f"noise{seed}"] = metric(
            f"noise{seed}", lambda x, g=noise: torch.from_numpy(g.normal(size=len(x))).float()
        )
    found = select_metrics(
        rated, [scorer for _, scorer in made.values()], tmp_path / "c", uses=[], phases=2, progress=False, by=[]
    )
    assert [len(phase.dropped) for phase in found.phases] == [2]
    assert found.report.metrics[0] == "smooth"
    assert found.scorings == 4 * 5 * LEVELS + 2 * LEVELS < found.everything
    assert f"{found.scorings} of {found.everything} scorings were made" in str(found)


def test_a_scorer_of_prompts_gets_each_images_own(rated, tmp_path):
    asked = []

    def align(images, prompt):
        asked.extend(prompt)
        return smooth(images)

    _, scorer = metric("align", align, inputs={"prompt"})
    select_metrics(rated, scorer, tmp_path / "c", uses=["reward"], progress=False, statistics=["srcc"], by=[])
    assert set(asked) == {f"scene {c}" for c in range(CONTENTS)}
    bare = Ratings(rated.names, rated.rating, True, "x", "x", content=rated.content, images=rated.images)
    with pytest.raises(ValueError, match="align needs a prompt for each image"):
        select_metrics(bare, scorer, tmp_path / "d", progress=False)


def test_the_reward_is_one_that_the_doctor_lets_pass(rated, tmp_path):
    _, blind = metric("blind", smooth, differentiable=False)
    found = select_metrics(
        rated, ["psnr", blind], tmp_path / "c", references=folder_of(rated), uses=["reward"], progress=False, by=[]
    )
    assert found.recommended == {"reward": "psnr"}
    none = select_metrics(rated, blind, tmp_path / "c", uses=["reward"], progress=False, by=[])
    assert none.recommended == {"reward": None}
    assert "calls no metric usable as a reward" in str(none)


def test_preferences_with_images(rated, tmp_path):
    pairs = [
        Preference(f"I0{c}_{a}.png", f"I0{c}_{b}.png", 1.0, str(c))
        for c in range(CONTENTS) for a in range(LEVELS) for b in range(a + 1, LEVELS)
    ]  # fmt: skip
    images = dict(zip(rated.names, rated.images, strict=True))
    scorers = [metric("smooth", smooth)[1], metric("dark", dark)[1]]
    found = select_metrics(Preferences(pairs, "pairs", images), scorers, tmp_path / "c", uses=[], progress=False)
    assert found.report.best == ["smooth"]
    assert found.report.value("smooth", "accuracy").value > 0.9


@pytest.mark.parametrize(
    ("scorers", "options", "message"),
    [
        (["psnr"], {}, "psnr compares with references"),
        (["psnr", "psnr"], {}, "two scorers are called"),
        (["nonsense"], {}, "unknown scorer 'nonsense'"),
        ([], {}, "scorers is empty"),
        (["niqe_bsd100"], {"uses": ["fun"]}, "uses must be of monitor, reward, cheap"),
        (["niqe_bsd100"], {"phases": 0}, "phases"),
        (["niqe_bsd100"], {}, "none of 24 images could be scored; the first, .*I0._..png: niqe_bsd100: .*too small"),
    ],
)
def test_what_cannot_be_selected_is_refused(scorers, options, message, rated, tmp_path):
    with pytest.raises(ValueError, match=message):
        select_metrics(rated, scorers, tmp_path / "c", **options, progress=False)


def test_opinions_without_images_are_refused(rated, tmp_path):
    with pytest.raises(ValueError, match="read them with images=FOLDER"):
        select_metrics(Ratings(rated.names, rated.rating, True, "x", "x"), "niqe_bsd100", tmp_path / "c")


@pytest.mark.parametrize(
    ("ratings", "contents", "message"),
    [
        ([3.0] * 40, [str(n // 4) for n in range(40)], "all 40 ratings are 3: no metric can agree"),
        (list(range(40)), [str(n // 10) for n in range(40)], "at least 5 contents, got 4"),
    ],
)
def test_what_no_metric_can_be_judged_by_is_told_before_the_scoring(tmp_path, ratings, contents, message):
    names = [f"{n}.png" for n in range(40)]
    rated = torch.tensor(ratings, dtype=torch.float64)
    opinions = Ratings(names, rated, True, "stars", "mine", content=contents, images=[tmp_path / n for n in names])
    scorer = FunctionScorer(lambda x: 1 / 0, name="never", higher_is_better=True)
    with pytest.raises(ValueError, match=message):
        select_metrics(opinions, scorer, tmp_path / "cache", progress=False)
    with pytest.raises(ValueError, match=message):
        report_agreement(opinions, {"any": np.arange(40.0)})
