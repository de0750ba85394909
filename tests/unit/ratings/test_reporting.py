"""Several metrics against people: groups, raters, preferences, what is left out, and what the text and JSON say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from qa_hooks.ratings import Preference, Preferences, Ratings
from qa_hooks.ratings.preference_reporting import together
from qa_hooks.ratings.reporting import report_agreement


def rated(contents: int = 10, seed: int = 0, **more):
    """Ratings of two types at three levels of each content, and a good and a bad metric."""
    g = np.random.default_rng(seed)
    names = [f"{c}_{k}_{level}.png" for c in range(contents) for k in "ab" for level in "123"]
    truth = g.normal(size=len(names))
    ratings = Ratings(
        names, torch.from_numpy(truth), True, "made up", "test", content=[name.split("_")[0] for name in names],
        kind=[name.split("_")[1] for name in names], level=[name.split("_")[2][0] for name in names], **more,
    )  # fmt: skip
    noise = g.normal(size=(2, len(names)))
    return ratings, {"good": truth + 0.2 * noise[0], "bad": truth + 3 * noise[1]}


def test_every_statistic_pooled_and_by_group():
    ratings, scores = rated()
    report = report_agreement(ratings, scores, progress=False)
    assert report.metrics == ["good", "bad"]
    assert report.best == ["good"]
    truth = ratings.goodness.numpy()
    assert report.value("bad").value == pytest.approx(stats.spearmanr(scores["bad"], truth).statistic)
    kind = np.array(ratings.kind) == "a"
    found = report.value("bad", "krcc", "kind", "a")
    assert found.value == pytest.approx(stats.kendalltau(scores["bad"][kind], truth[kind]).statistic)
    assert (found.n, found.clusters) == (30, 10)
    each = [report.value("bad", "srcc", "level", level).value for level in "123"]
    assert report.value("bad", "srcc", "level", None).value == pytest.approx(np.mean(each))
    assert {row.statistic for row in report.rows if row.column == ""} == {
        "srcc", "krcc", "plcc", "plcc_logistic", "accuracy"
    }  # fmt: skip
    alone = report.value("bad", "srcc", "content", "3")  # one content has no interval
    assert alone.low != alone.low
    assert alone.value == alone.value
    with pytest.raises(KeyError, match="the report has no"):
        report.value("bad", "srcc", "content", "99")


def test_a_group_named_mean_or_nothing_is_a_group(tmp_path):
    ratings, scores = rated()
    ratings.kind[:] = ["mean" if kind == "a" else "" for kind in ratings.kind]
    report = report_agreement(ratings, scores, by=["kind"], progress=False)
    values = [report.value("bad", "srcc", "kind", group).value for group in ("mean", "", None)]
    assert values[2] == pytest.approx((values[0] + values[1]) / 2)


def test_levels_are_ordered_as_numbers():
    ratings, scores = rated()
    ratings.level[:] = [{"1": "9", "2": "10", "3": "11"}[level] for level in ratings.level]
    report = report_agreement(ratings, scores, by=["level"], statistics=["srcc"], progress=False)
    assert [row.group for row in report.rows if row.metric == "good"] == [None, "9", "10", "11", None]


def test_the_text_and_the_json_say_the_same(tmp_path):
    ratings, scores = rated()
    scores["bad"][4] = float("nan")
    report = report_agreement(ratings, scores, progress=False)
    text = str(report)
    assert "good agrees best with people (srcc)" in text
    assert "bad has no score for 1 images, left out for all: 0_b_2.png" in text
    assert f"{report.value('good').value:.3f}" in text
    assert "agreement on 59 images; 95% intervals over 10 contents" in text
    report.save(tmp_path / "a.json")
    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON
    assert read["best"] == ["good"]
    assert read["lacking"] == {"bad": ["0_b_2.png"]}
    assert len(read["rows"]) == len(report.rows)


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    report_agreement(*rated(), statistics=["srcc"], by=[], progress=False).draw(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_several_raters_are_averaged_unless_they_are_the_clusters():
    ratings, scores = rated()
    twice = ratings.select([*range(60), *range(60)])
    twice.rater.extend(["ann"] * 60 + ["bob"] * 60)
    twice.rating[60:] += 1
    both = {name: np.concatenate([values, values]) for name, values in scores.items()}
    found, once = (report_agreement(*given, progress=False) for given in ((twice, both), (ratings, scores)))
    assert found.images == 60
    assert found.value("bad").value == pytest.approx(once.value("bad").value)
    with pytest.raises(ValueError, match="at least 5 raters, got 2"):
        report_agreement(twice, both, cluster="rater", by=[], progress=False)


def test_ratings_scaled_within_contents_are_never_pooled():
    ratings, scores = rated(across_contents=False)
    report = report_agreement(ratings, scores, progress=False)
    assert {row.statistic for row in report.rows if row.column == ""} == {"accuracy"}
    assert {row.statistic for row in report.rows if row.column == "kind"} == {"accuracy"}
    assert report.statistic == "accuracy"
    inside = report_agreement(ratings, scores, statistics=["srcc"], progress=False)
    assert (inside.column, inside.best) == ("content", ["good"])
    assert "good agrees best" in str(inside)
    with pytest.raises(ValueError, match="ask for accuracy"):
        report_agreement(ratings, scores, statistics=["srcc"], by=["kind"], progress=False)


def test_without_contents_each_image_is_on_its_own():
    ratings, scores = rated()
    bare = Ratings(ratings.names, ratings.rating, True, "made up", "test")
    report = report_agreement(bare, scores, progress=False)
    assert report.value("good").clusters == 60
    assert "intervals over images, each on its own" in str(report)
    assert "accuracy" not in {row.statistic for row in report.rows}
    with pytest.raises(ValueError, match="accuracy compares images of one content"):
        report_agreement(bare, scores, statistics=["accuracy"], progress=False)


def test_preferences_by_naive_count():
    pairs = [
        Preference(f"{c}a", f"{c}b", better, str(c))
        for c in range(12)
        for better in ([1.0, -1.0] if c % 2 else [1.0, 0.0])
    ]
    preferences = Preferences(pairs, "pairs")
    scores = {name: np.array([float(name.endswith("a")) for name in preferences.names]) for name in ("m",)}
    scores["flat"] = np.where(np.arange(24) < 12, scores["m"], 0.0)
    report = report_agreement(preferences, scores, progress=False)
    decided = [p for p in pairs if p.better]
    assert report.value("m", "accuracy").value == pytest.approx(np.mean([p.better > 0 for p in decided]))
    ties = [p for p in decided if int(p.content) >= 6]
    assert report.value("flat", "accuracy").ties == pytest.approx(len(ties) / len(decided))
    assert (report.images, report.value("m", "accuracy").clusters) == (18, 12)
    assert "6 of them ties, which are left out" in str(report)


def test_pairs_that_share_an_image_belong_together():
    chain = [Preference(f"{g}-{i}", f"{g}-{i + 1}", 1.0) for g in range(6) for i in range(5)]
    names = Preferences(chain, "pairs").names
    report = report_agreement(Preferences(chain, "pairs"), {"m": np.arange(len(names)) % 4.0}, progress=False)
    assert report.value("m", "accuracy").clusters == 6


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s.clear(), {}, "there is no metric"),
        (lambda s: s.update(flat=np.ones(60)), {}, "flat: scores is 1 everywhere"),
        (lambda s: s.update(gone=np.full(60, np.nan)), {}, "gone has no score for 60 of 60"),
        (lambda s: None, {"statistics": ["rmse"]}, "statistics must be of"),
        (lambda s: None, {"statistics": []}, "at least one statistic"),
        (lambda s: None, {"cluster": "prompt"}, "have no prompt"),
        (lambda s: None, {"cluster": "contents"}, "cluster must be of content, kind"),
        (lambda s: None, {"cluster": "names"}, "cluster must be of content, kind"),
        (lambda s: None, {"by": ["kinds"]}, "by must be of content, kind, .* got 'kinds'"),
        (lambda s: None, {"by": "kind"}, "by must be of content, kind, .* got 'k'"),
        (lambda s: s.update(short=np.arange(59.0)), {}, r"short has scores of the shape \(59,\) for 60 images"),
        (lambda s: s.update(wide=np.ones((60, 1))), {}, r"wide has scores of the shape \(60, 1\)"),
    ],
)
def test_what_cannot_be_judged_is_refused(change, options, message):
    ratings, scores = rated()
    change(scores)
    with pytest.raises(ValueError, match=message):
        report_agreement(ratings, scores, **options, progress=False)


def test_four_contents_are_too_few():
    with pytest.raises(ValueError, match="at least 5 contents, got 4"):
        report_agreement(*rated(contents=4), progress=False)


def test_an_image_with_a_blank_content_is_on_its_own():
    ratings, scores = rated()
    blank = replace(ratings, content=["" if int(c) >= 8 else c for c in ratings.content])
    alone = replace(
        ratings, content=[n if int(c) >= 8 else c for n, c in zip(ratings.names, ratings.content, strict=True)]
    )
    for options in ({"by": ("kind",)}, {"by": ("kind",), "statistics": ["accuracy"]}, {"by": ()}):
        found, expected = (report_agreement(some, scores, progress=False, **options) for some in (blank, alone))
        assert found.value("good") == expected.value("good")
        assert found.value("good").clusters == 8 + 12
    by_content = report_agreement(blank, scores, progress=False)
    assert "" not in {row.group for row in by_content.rows}
    assert {pair.content for pair in blank.as_pairs()} == {str(c) for c in range(8)}
    nothing = replace(ratings, content=[" "] * len(ratings))
    assert report_agreement(nothing, scores, by=(), progress=False).value("good").clusters == len(ratings)


def test_one_blank_content_of_pairs_leaves_the_others_known():
    pairs = [
        Preference("a", "b", 1, "x"),
        Preference("c", "d", 1, "x"),
        Preference("e", "f", 1),
        Preference("g", "h", 1),
    ]
    labels = together(pairs)
    assert labels[0] == labels[1]
    assert len({labels[0], labels[2], labels[3]}) == 3
    linked = together([*pairs, Preference("d", "e", 1)])
    assert linked[0] == linked[2] == linked[4] != linked[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "rater"}, r"no use for cluster \(rater\)"),
        ({"cluster": ""}, r"no use for cluster \(none\)"),
        ({"by": ["kind"]}, r"no use for by \(kind\)"),
        ({"by": ["kind", "level", "content"]}, r"no use for by \(kind, level, content\)"),
        ({"statistics": ["srcc", "accuracy"]}, r"no use for statistics \(srcc\)"),
        ({"statistics": ["srcc"]}, r"no use for statistics \(srcc\): their one statistic is accuracy"),
    ],
)
def test_preferences_refuse_what_they_have_no_use_for(options, message):
    preferences = Preferences([Preference(f"{c}a", f"{c}b", 1.0, str(c)) for c in range(6)], "pairs")
    scores = {"m": np.tile([1.0, 0.0], 6)}
    with pytest.raises(ValueError, match=message):
        report_agreement(preferences, scores, **options, progress=False)
    report_agreement(preferences, scores, statistics=["accuracy"], by=(), progress=False)
    with pytest.raises(ValueError, match=r"shape \(3,\) for 12 images"):
        report_agreement(preferences, {"m": np.ones(3)}, progress=False)
