"""What the page of `qa-hooks report` keeps apart, and what it says of values, alarms and settings."""

from __future__ import annotations

import re
import warnings

import pytest
import torch

from qa_hooks import GenerativeMonitor, Hooks, KNNScorer, NaNGuard, RewardGuard, ScoreMonitor, SSIMLoss, create_scorer
from qa_hooks.cli import main
from qa_hooks.folders import report_runs, watch_folder
from qa_hooks.folders.reporting.curves import curve
from qa_hooks.folders.reporting.page import page
from qa_hooks.folders.reporting.series import Run, series_of
from qa_hooks.images import save_image, to_uint8
from qa_hooks.writers import Meaning, TensorBoardWriter, read_run_log
from toy_scorers import brightness

pytest.importorskip("matplotlib")

REAL = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
DOUBT = "the features of random are untrained and see that images differ, not which are better"
BLUE, ORANGE = "#1f77b4", "#ff7f0e"  # matplotlib's first two colours


def sample(n, generator):
    return torch.rand(n, 3, 16, 16, generator=generator)


def knn(extractor):
    return KNNScorer(extractor, k=5).fit(REAL, progress=False)


def stepped(hooks, steps):
    for _ in range(steps):
        hooks.step()
    hooks.close()


def watched(folder, monitor):
    stepped(Hooks([monitor], log_dir=folder), 2)
    return folder


def of(spec, better="lower"):
    return Meaning("mean score", spec, better)


def logged(folder, lines):
    """A run with these (about, value) of one tag, a step each; `about` None where nothing is said."""
    writer = TensorBoardWriter(folder)
    for step, (about, value) in enumerate(lines, 1):
        if about is not None:
            writer.describe("qa_eval/score/mean", about)
        writer.scalar("qa_eval/score/mean", value, step)
    writer.close()
    return folder


def rows(text, name="score/mean"):
    return re.findall(rf"<tr><td>{name}.*?</tr>", text)


def as_run(name, about, values, tag="qa_eval/score/mean"):
    lines = [{"step": step, "value": value} for step, value in enumerate(values, 1)]
    return Run(name, {tag: lines}, {tag: [(1, about)]} if about else {}, {}, "", [], [])


def test_scores_of_two_measures_with_one_name_are_kept_apart(tmp_path, capsys):
    runs = []
    for name, extractor in (("a", {"type": "random", "width": 4}), ("b", "random"), ("c", "random")):
        runs.append(watched(tmp_path / name, ScoreMonitor(knn(extractor), sample=sample, n=8, every=1)))
    assert main(["report", *map(str, runs), "-o", str(tmp_path / "r.html")]) == 0
    said = capsys.readouterr().err
    assert said.count("Values with different specs are not compared") == 1
    assert re.search(r"giqa_knn\[\w{4}\] in features of random \(b, c\)", said)
    text = (tmp_path / "r.html").read_text()
    assert "Values with different specs are not compared" in text
    means = rows(text, "giqa_knn/mean")
    filled = [[bool(cell) for cell in re.findall(r'<td class="number">(.*?)</td>', row)[::2]] for row in means]
    assert sorted(filled) == [[False, True, True], [True, False, False]]
    assert len(rows(text, "giqa_knn/std")) == 2  # it is of the scores beside it
    measured = text.split("<h2>Measured</h2>")[1].split("<h2>")[0]
    assert len(re.findall("<svg", measured)) == len(rows(text, "giqa_knn"))

    assert main(["report", str(runs[1]), str(runs[2]), "-o", str(tmp_path / "r.html")]) == 0
    assert "not compared" not in capsys.readouterr().err
    assert len(rows((tmp_path / "r.html").read_text(), "giqa_knn/mean")) == 1


def test_scores_on_two_validation_sets_are_kept_apart(tmp_path):
    runs = []
    for name, truths in (("a", REAL[:8]), ("b", REAL[8:16]), ("c", [*REAL[8:16]])):
        monitor = ScoreMonitor(create_scorer("psnr"), sample=sample, reference=truths, every=1)
        runs.append(watched(tmp_path / name, monitor))
    with pytest.warns(UserWarning, match=r"psnr\[\w+\] on the ground truths \w{4} \(b, c\)"):
        text = report_runs(runs, tmp_path / "r.html").read_text()
    assert len(rows(text, "psnr/mean")) == 2


def test_a_run_that_goes_on_with_other_real_images_has_two_rows(tmp_path):
    run = logged(tmp_path / "a", [(of("fd[x, ref=aa]"), 5.0), (None, 4.0), (of("fd[x, ref=bb]"), 2.0)])
    with pytest.warns(UserWarning, match=r"score: fd\[x, ref=aa\] \(a\); fd\[x, ref=bb\] \(a\)"):
        text = report_runs([run], tmp_path / "r.html").read_text()
    first, second = rows(text)
    assert '<td class="number">4 <small>(step 2)</small></td>' in first
    assert '<td class="number">2 <small>(step 3)</small></td>' in second


@pytest.mark.parametrize("other", [Meaning("mean score", better="higher"), None, of("score[ab12]", "higher"), "words"])
def test_values_of_which_no_spec_is_known_stand_with_the_others(tmp_path, other):
    runs = [logged(tmp_path / "a", [(of("score[ab12]", "higher"), 1.0)])]
    runs.append(logged(tmp_path / "b", [(None if other == "words" else other, 2.0)]))
    if other == "words":  # what somebody else wrote
        log = tmp_path / "b" / "metrics.jsonl"
        log.write_text(log.read_text().replace("}", ', "about": "words"}'))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = report_runs(runs, tmp_path / "r.html").read_text()
    (row,) = rows(text)
    assert "(higher is better)" in row
    assert row.count("(step 1)") == 4


def test_a_log_without_a_spec_beside_two_specs_stands_alone():
    runs = [as_run("a", of("s[1]"), [1.0]), as_run("b", of("s[2]"), [1.0]), as_run("c", Meaning("mean"), [1.0])]
    found = {series.spec: list(series.runs) for series in series_of(runs, "qa_eval/score/mean")}
    assert found == {"s[1]": ["a"], "s[2]": ["b"], "not known how": ["c"]}


def test_untrained_features_are_named(tmp_path):
    monitor = GenerativeMonitor(sample, REAL, extractor="random", n=60, every=1, metrics=["fd"])
    run = watched(tmp_path / "a", monitor)
    (tag,) = (tag for tag in read_run_log(run) if tag.startswith("qa_eval/"))
    assert read_run_log(run)[tag][0]["about"].doubt == DOUBT
    text = report_runs([run], tmp_path / "r.html").read_text()
    assert f"Untrained features: {DOUBT}." in text
    assert "(untrained features)" in rows(text, "fd_random_n=60")[0]
    assert "ntrained" not in page([as_run("a", of("niqe[ab12]"), [1.0])])


def test_watched_values_know_their_directions(tmp_path):
    for step in (1, 2):
        for number, image in enumerate(sample(24, torch.Generator().manual_seed(step))):
            (tmp_path / f"samples/step_{step}").mkdir(parents=True, exist_ok=True)
            save_image(to_uint8(image), tmp_path / f"samples/step_{step}/{number:02d}.png")
    for number, image in enumerate(REAL):
        (tmp_path / "real").mkdir(exist_ok=True)
        save_image(to_uint8(image), tmp_path / f"real/{number:02d}.png")
    places = {"real": tmp_path / "real", "log_dir": tmp_path / "log", "once": True, "guard": True}
    watch_folder(tmp_path / "samples", scorers=brightness(), metrics=["fd", "pr"], **places)
    text = report_runs([tmp_path / "log"], tmp_path / "r.html").read_text()
    for name, better in (
        ("fd_random_n=24", "lower"),
        ("precision_random_n=24", "higher"),
        ("brightness/mean", "higher"),
    ):
        (row,) = rows(text, name)
        assert f"({better} is better)" in row
        assert re.findall(r'<td class="number">(.*?)</td>', row)[1] or "precision" in name
    assert DOUBT in text
    assert re.search(r"<details><summary>guard: \d numbers of the guard</summary>.*guard/high_frequency", text, re.S)


def test_a_run_has_one_colour_on_the_page_and_charts_of_one_run_a_legend():
    both, own = "qa_eval/a/mean", "qa_eval/b/mean"
    lines = [{"step": 1, "value": 1.0}, {"step": 2, "value": 2.0}]
    runs = [Run("one", {both: lines}, {}, {}, "", [], []), Run("two", {both: lines, own: lines}, {}, {}, "", [], [])]
    charts = re.findall(r"<svg.*?</svg>", page(runs), re.S)
    assert [BLUE in chart for chart in charts] == [True, False]
    assert [ORANGE in chart for chart in charts] == [True, True]
    assert [">two<" in chart for chart in charts] == [True, True]
    (alone,) = re.findall(r"<svg.*?</svg>", page(runs[:1]), re.S)
    assert ">one<" not in alone


def test_more_runs_than_colours_differ_by_their_lines_and_odd_names_are_shown():
    names = [f"run{number}" for number in range(11)] + ["_$x$_"]
    chart = curve({name: [{"step": 1, "value": 1.0}] for name in names}, "t")
    assert chart.count("stroke-dasharray") > curve({"run0": [{"step": 1, "value": 1.0}]}, "t").count("dasharray")
    assert "$x$_" in chart


@pytest.mark.parametrize(
    ("values", "best"), [([0.0, 0.0, 0.0], ""), ([1.0], "(step 1)"), ([1.0, 2.0, 2.0], "(step 2)")]
)
def test_nothing_is_best_where_all_values_are_equal(values, best):
    (row,) = rows(page([as_run("a", of("s[1]", "higher"), values)]))
    cell = re.findall(r'<td class="number">(.*?)</td>', row)[1]
    assert best in cell
    assert bool(cell) == bool(best)


def test_a_guard_puts_its_words_on_the_page_and_its_numbers_below(tmp_path):
    strength = iter([0.0, 0.6, 0.9, 1.0, 1.0, 1.0])

    def hacked(n, generator):
        images, share = sample(n, generator) * 0.5 + 0.25, next(strength)
        return images * (1 - share) + share * (images > 0.5).float()

    guard = RewardGuard(sample=hacked, real=REAL * 0.5 + 0.25, n=32, every=1)
    with pytest.warns(UserWarning, match="have moved away"):
        stepped(Hooks([guard], log_dir=tmp_path / "a"), 6)
    text = report_runs([tmp_path / "a"], tmp_path / "r.html").read_text()
    alarms = re.findall(r'<p class="alarm"><b>(.*?)</b>: (.*?)</p>', text)
    assert re.fullmatch(r"a: alarm of reward_guard at step \d", alarms[0][0])
    assert alarms[0][1].startswith("the samples have moved away from the real images")
    first, folded = text.index('<p class="alarm">'), text.index("<details><summary>reward_guard: ")
    assert first < folded < text.index("<tr><td>reward_guard/severity")
    assert "<h2>Measured" not in text  # there is nothing else


def test_a_guard_of_a_log_without_words():
    values = {"qa_eval/g/severity": [{"step": 1, "value": 0.0}]}
    values["qa_eval/g/alarms"] = [{"step": 1, "value": 0.0}, {"step": 2, "value": 1.0}, {"step": 3, "value": 1.0}]
    assert "a: alarm of g at step 2</b>: the log has no words of it" in page([Run("a", values, {}, {}, "", [], [])])


def test_alarms_that_come_again_are_folded():
    alarms = [{"step": step, "key": key, "message": f"{key} again"} for step in (1, 2, 3) for key in ("fd", "kid")]
    text = page([as_run("a", "", [1.0])._replace(alarms=alarms)])
    shown, folded = text.split("<details><summary>4 further alarms of a</summary>")
    assert re.findall(r"alarm of (\w+) at step (\d)", shown) == [("fd", "1"), ("kid", "1")]
    assert len(re.findall(r"alarm of \w+ at step [23]", folded)) == 4


def test_a_nan_guard_puts_its_words_on_the_page(tmp_path):
    hooks = Hooks([NaNGuard(every=1)], log_dir=tmp_path / "a")
    hooks.record(loss=torch.tensor(torch.nan))
    with pytest.warns(UserWarning, match="not finite"):
        stepped(hooks, 1)
    text = report_runs([tmp_path / "a"], tmp_path / "r.html").read_text()
    assert "a: alarm of nan at step 1</b>: step 1: train/loss is not finite" in text


def test_a_nan_guard_that_stops_is_on_the_page_as_well(tmp_path):
    hooks = Hooks([NaNGuard("stop")], log_dir=tmp_path / "a")
    hooks.record(loss=torch.tensor(torch.nan))
    with pytest.warns(UserWarning, match="not finite"):
        stepped(hooks, 1)
    assert hooks.should_stop
    assert "train/loss is not finite" in report_runs([tmp_path / "a"], tmp_path / "r.html").read_text()


def test_settings_are_read_as_text_and_never_as_html(tmp_path):
    class Part(SSIMLoss):
        def extra_repr(self):
            return "`**<img src=http://x>`"

    with Hooks([], log_dir=tmp_path / "a", track={"odd": Part(), "plain": SSIMLoss(weight=0.5)}) as hooks:
        hooks.record(loss=1.0)
        hooks.step()
    text = report_runs([tmp_path / "a"], tmp_path / "r.html").read_text()
    settings = text.split("<h2>Settings of a</h2>")[1]
    assert "<h3>tracked</h3><ul><li><code>" in settings
    assert "odd: Part(`**&lt;img src=http://x&gt;`)</code></li>" in settings
    assert "plain: SSIMLoss(weight=0.5" in settings
    assert "<img" not in settings
    assert "- `" not in settings


def test_odd_lines_of_a_log_do_no_harm(tmp_path):
    run = logged(tmp_path / "a", [(of("score[<b>]", "higher"), 1.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "tag": "qa_eval/score/mean", "value": 2.0, "about": 7}\n')
        file.write('{"step": 2, "tag": ["x"], "value": 2.0}\n{"step": 2, "value": 2.0}\n[]\n')
    (run / "alarms.jsonl").write_text('3\n{"step": "<i>", "message": ["<u>"]}\n{}\n')
    text = report_runs([run], tmp_path / "r.html").read_text()
    assert "score[&lt;b&gt;]" in text
    assert not re.findall(r"<b>\]|<i>|<u>", text)
    assert rows(text)[0].count("(step 2)") == 2  # the value is there, whatever is said about it
