"""The simulation of intervals: it tells a good interval from a narrow one, and goes on where it was."""

from __future__ import annotations

import json
import math

import pytest
import torch

from benchmarks import coverage
from qa_hooks.functional.intervals import Interval, t_interval


def normal_means(width: float) -> coverage.Case:
    """Student's interval of ten normal values around 0, made narrower or wider."""

    def draw(noise):
        values = torch.randn(10, generator=noise, dtype=torch.float64)
        found = t_interval(float(values.mean()), float(values.std()) / math.sqrt(10), degrees=9)
        half = width * (found.high - found.low) / 2
        return {"mean": Interval(found.value, found.value - half, found.value + half)}

    return coverage.Case(draw, {"mean": 0.0}, {"mean": (-1.0, 1.0)})


def test_a_narrow_interval_is_found_out():
    right, narrow = (coverage.covered(normal_means(width), 600, "")["mean"] for width in (1.0, 0.5))
    assert right["covered"] == pytest.approx(0.95, abs=0.03)
    assert narrow["covered"] < 0.8
    assert narrow["width"] == pytest.approx(right["width"] / 2)
    assert right["outside"] > narrow["outside"] > 0


def test_the_true_values_of_agreement_are_those_of_many_contents():
    case = coverage.opinions(400, images=10)
    found = case.draw(torch.Generator().manual_seed(1))
    assert found.keys() == case.truth.keys()
    for name, interval in found.items():
        assert interval.value == pytest.approx(case.truth[name], abs=0.04), name


def test_a_stopped_run_goes_on_and_every_interval_has_a_row(tmp_path, capsys, monkeypatch):
    every = list(coverage.cases(tiny=True))
    monkeypatch.setattr(coverage, "cases", lambda tiny: iter(every[:3]))
    coverage.main(["--tiny", "--out", str(tmp_path)])
    first = json.loads((tmp_path / "results.json").read_text())["found"]
    monkeypatch.setattr(coverage, "covered", lambda *_: pytest.fail("known already"))
    coverage.main(["--tiny", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "results.json").read_text())["found"] == first
    text = capsys.readouterr().out
    assert "difference, paired" in text
    assert "share of pairs" in text
    assert "outside the range: 0.0 %" in text
