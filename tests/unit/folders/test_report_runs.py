"""`qa-hooks report`: one page about one run or several, which holds all that it shows."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import torch

from qa_hooks import (
    FunctionScorer,
    GenerativeMonitor,
    Hooks,
    PerceptionDistortion,
    SampleGrid,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
    create_scorer,
)
from qa_hooks.cli import main
from qa_hooks.folders import report_runs
from qa_hooks.writers import Meaning, TensorBoardWriter
from toy_scorers import brightness

pytest.importorskip("matplotlib")


def sample(n, generator):
    return torch.rand(n, 3, 16, 16, generator=generator)


def sampler():
    """One whose samples become brighter with each call."""
    calls = itertools.count(1)
    return lambda n, generator: sample(n, generator) ** (1 / next(calls))


def cells(page, row):
    """The last and the best value of each run."""
    return re.findall(r"<td class=\"number\">(.*?)</td>", page.split(f"<td>{row}")[1].split("</tr>")[0])


@pytest.fixture
def run(tmp_path):
    hooks = Hooks([ScoreMonitor(brightness(), sample=sampler(), n=8, every=1), SampleGrid(sample, every=1, n=4)],
                  log_dir=tmp_path / "a")  # fmt: skip
    for _ in range(6):
        hooks.step()
    hooks.close()
    (tmp_path / "a" / "best").mkdir()
    best = {"metric": "mean", "value": 0.5, "low": 0.25, "high": 0.75, "step": 3}
    (tmp_path / "a" / "best" / "best.json").write_text(json.dumps(best))
    (tmp_path / "a" / "alarms.jsonl").write_text('{"step": 4, "alarm": "<script>fd</script> above 80"}\n')
    return tmp_path / "a"


def test_the_page_holds_everything(run, tmp_path):
    page = report_runs([run], tmp_path / "report.html").read_text()
    assert "best mean at step 3: 0.5 [0.25, 0.75]" in page
    assert "alarm &lt;script&gt;fd&lt;/script&gt; above 80" in page
    assert "<script" not in page
    assert re.search(
        r"brightness/mean <small>\(higher is better\)</small></td><td class=\"number\">0\.\d* \[0\.\d+, 0\.\d+\]", page
    )
    assert "no verdict between the runs" not in page  # of one
    assert cells(page, "brightness_change/mean")[0].endswith("<small>(step 6)</small>")
    assert cells(page, "brightness_change/mean")[1] == ""  # the largest step is not the best one
    assert cells(page, "brightness/mean")[1] != ""
    assert len(re.findall("<svg", page)) >= 2
    assert len(re.findall("<details><summary><img", page)) == 4  # each in its own pixels at a click
    assert [int(step) for step in re.findall("<figcaption>step (\\d+)", page)] == [1, 3, 4, 6]
    assert "SampleGrid(samples, every=1)" in page
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*\"", page.replace('xlink:href="#', 'href="#'))


def test_the_best_value_stands_beside_the_last(tmp_path):
    writer = TensorBoardWriter(tmp_path / "a")
    for name, better in (("fd", "lower"), ("score", "higher"), ("std", "")):
        writer.describe(f"qa_eval/{name}/value", Meaning(name, better=better))
        for step, value in enumerate((3.0, 1.0, torch.nan, 5.0, 1.0, 5.0, 4.0), 1):
            writer.scalar(f"qa_eval/{name}/value", value, step)
    writer.close()
    page = report_runs([tmp_path / "a"], tmp_path / "report.html").read_text()
    last = "4 <small>(step 7)</small>"
    assert {row: cells(page, row) for row in ("fd", "score", "std")} == {
        "fd": [last, "1 <small>(step 2)</small>"],
        "score": [last, "5 <small>(step 4)</small>"],
        "std": [last, ""],
    }


def test_every_monitor_says_which_direction_is_better(tmp_path):
    dark, real = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="dark", higher_is_better=False), sample(60, None)
    monitors = [
        GenerativeMonitor(sample, real, extractor="random", n=60, every=1, metrics=["fd"]),
        ScorePanel(sample, dark, n=8, every=1),
        ScoreHistogram(sampler(), real, dark, n=8, every=1),
        PerceptionDistortion(dark, create_scorer("psnr"), images=sample, reference=real[:8], every=1),
    ]
    with Hooks(monitors, log_dir=tmp_path / "a") as hooks:
        hooks.step()
        hooks.step()
    page = report_runs([tmp_path / "a"], tmp_path / "report.html").read_text()
    assert cells(page, "dark/fell")[1] == ""  # a change between two measurements has no best
    assert cells(page, "dark/overlap")[1] != ""
    found = dict(re.findall(r"<td>([^<]*?) <small>\((\w+) is better\)</small>", page))
    assert {tag: better for tag, better in found.items() if not tag.startswith("fd")} == {
        "dark/fell": "lower", "dark/overlap": "higher", "dark/ks": "lower",
        "perception_distortion_dark/mean": "lower", "perception_distortion_psnr/mean": "higher",
    }  # fmt: skip
    assert [better for tag, better in found.items() if tag.startswith("fd")] == ["lower"]


def test_two_runs_are_one_curve_each(run, tmp_path):
    writer = TensorBoardWriter(tmp_path / "b" / "a")  # the same name in another folder
    for step in (1, 2, 3):
        writer.scalar("qa_eval/brightness/mean", torch.nan if step == 2 else 0.1, step)
    writer.close()
    page = report_runs([run, tmp_path / "b" / "a"], tmp_path / "report.html").read_text()
    assert f"<h1>{tmp_path.name}/a, b/a</h1>" in page
    assert re.findall("<th>(.*?)</th>", page) == ["value", f"{tmp_path.name}/a: last", "best", "b/a: last", "best"]
    assert page == report_runs([run, tmp_path / "b" / "a"], tmp_path / "again.html").read_text()


def test_of_two_runs_with_intervals_it_is_said_where_a_verdict_comes_from(run, tmp_path):
    with Hooks([ScoreMonitor(brightness(), sample=sample, n=8, every=1)], log_dir=tmp_path / "b") as hooks:
        hooks.step()
    page = report_runs([run, tmp_path / "b"], tmp_path / "report.html").read_text()
    assert "no verdict between the runs" in page
    assert "qa-hooks compare REAL A B --scorer SCORER --paired" in page
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "metrics.jsonl").write_text('{"step": 1, "tag": "qa_train/loss/mean", "value": 1.0}\n')
    assert "no verdict" not in report_runs([run, tmp_path / "c"], tmp_path / "report.html").read_text()


def test_the_command(run, tmp_path, capsys):
    assert main(["report", str(run), "-o", str(tmp_path / "r.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "r.html")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    said = capsys.readouterr().err
    assert "holds no values and no pictures" in said
    assert f"runs below it: {run}" in said


def test_the_page_goes_into_a_pipe(run, tmp_path, capsys):
    assert main(["report", str(run), "-o", "-"]) == 0
    assert capsys.readouterr().out.strip() == report_runs([run], tmp_path / "r.html").read_text().strip()


def test_a_run_that_was_started_again_is_read_without_a_word(run, capfd):
    hooks = Hooks([ScoreMonitor(brightness(), sample=sample, n=8, every=1)], log_dir=run)
    with pytest.warns(UserWarning, match=r"metrics.jsonl holds the values of an earlier run"):
        hooks.step()
    hooks.close()
    assert main(["report", str(run), "-o", str(run / "r.html")]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("names", "output", "message"),
    [
        ([], "r.html", "runs must be folders that differ"),
        (["a", "a"], "r.html", "runs must be folders that differ"),
        (["a"], "r.pdf", r"must be a file ending in \.html"),
        (["none"], "r.html", r"none is not a folder"),
    ],
)
def test_bad_arguments(run, tmp_path, names, output, message):
    with pytest.raises(ValueError, match=message):
        report_runs([tmp_path / name for name in names], tmp_path / output)
    assert not (tmp_path / output).exists()


def test_a_run_that_logged_nothing_is_told_by_its_name(run, tmp_path, capsys):
    empty = tmp_path / "empty"
    Hooks([], log_dir=empty).close()  # made, and never a step
    empty.mkdir(exist_ok=True)
    told = tmp_path / "told"
    told.mkdir()
    (told / "metrics.jsonl").write_text("")
    page = tmp_path / "report.html"
    for runs in ([empty], [run, told]):
        assert main(["report", *map(str, runs), "-o", str(page)]) == 1
        assert f"{runs[-1]} holds no values and no pictures" in capsys.readouterr().err
        assert not page.exists()
    assert main(["report", str(run), str(empty), "-o", str(page)]) == 0
    assert f"left out, no log of a run: {empty}" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "missing"), "-o", str(page)]) == 1
    assert "missing is not a folder" in capsys.readouterr().err


def test_a_run_of_pictures_alone_has_a_page(tmp_path):
    writer = TensorBoardWriter(tmp_path / "a")
    writer.image("qa_images/samples/grid", torch.zeros(3, 8, 8, dtype=torch.uint8), 7)
    writer.close()
    assert "<figcaption>step 7" in report_runs([tmp_path / "a"], tmp_path / "report.html").read_text()


def test_files_beside_the_runs_are_left_out(run, tmp_path, capsys):
    (tmp_path / "strip.png").write_bytes(b"")
    (tmp_path / "pictures").mkdir()
    beside = [str(tmp_path / "strip.png"), str(tmp_path / "pictures")]
    assert main(["report", str(run), *beside, "-o", str(tmp_path / "r.html")]) == 0
    assert re.search(r"left out, no log of a run: .*strip.png, .*pictures", capsys.readouterr().err)
    assert main(["report", str(run), str(tmp_path / "missing"), "-o", str(tmp_path / "r.html")]) == 1
    assert "missing is not a folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "strip.png"), "-o", str(tmp_path / "r.html")]) == 1
    assert "strip.png is not a folder" in capsys.readouterr().err
