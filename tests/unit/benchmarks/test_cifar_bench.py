"""Runs of hours: slices that go on to the bit, a table at any moment, and the same command after a stop."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import cifar
from benchmarks.gan_training import Run
from qa_hooks.demo.results import Results


def images(count=80, side=32):
    return (torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255).byte()


@pytest.mark.parametrize("variant", ["plain", "SSIM", "NIQE, hinge"])
def test_a_run_goes_on_to_the_bit(variant):
    def made():
        return Run(variant, 0, images(), batch=8, warmup=60)

    whole, first, second = made(), made(), made()
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    second.load_state(first.state())
    for _ in range(2):
        second.step()
    assert torch.equal(second.images(4), whole.images(4))


@pytest.fixture
def settings(tmp_path):
    torch.save(images(200), tmp_path / "images.pt")
    return cifar.Settings(str(tmp_path), "photos", 32, 200, 8, 1, 2, 40, "random")


class Now:
    """In place of a pool of processes."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        done = Future()
        done.set_result(function(*arguments))
        return done


def test_the_run_that_is_behind_comes_first_and_a_stopped_one_goes_on(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "ProcessPoolExecutor", Now)
    names = ["plain, seed 0", "SSIM, seed 0"]

    def go(slices, until=float("inf")):
        results = Results(tmp_path, {"of": "a test"})
        cifar.work(names, settings, results, until, 1, slices)
        return json.loads((tmp_path / "results.json").read_text())["found"] if results.found else {}

    assert go(1, until=0.0) == {}
    first = go(1)
    assert [row["steps"] for row in first.values()] == [1, 1]
    found = go(2)
    assert cifar.states(names, settings) == dict.fromkeys(names, 2)
    assert {name: found[name] for name in first} == first
    looked = [row for row in found.values() if "fd" in row]
    assert [row["run"] for row in looked] == names
    assert all(row["fd"][1] <= row["fd"][0] <= row["fd"][2] for row in looked)
    text = (tmp_path / "results.md").read_text()
    assert "At equal steps (2)" in text
    assert "| plain | 1 | 2 |" in text


def test_the_tiny_command_ends_with_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cifar, "ProcessPoolExecutor", Now)
    monkeypatch.setattr(cifar, "load_training", lambda _data, count: images(count))
    cifar.main(["--tiny", "--seeds", "0", "--variants", "plain", "--out", str(tmp_path)])
    assert "| plain | 1 | 4 |" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir() if path.name[0] != "."} == {".pt", ".png", ".json", ".md"}


def test_equal_time_takes_the_last_look_within_the_shortest_time(tmp_path):
    results = Results(tmp_path, {})
    for run, speed in (("plain, seed 0", 1.0), ("SSIM, seed 0", 2.0)):
        for steps in (10, 20, 30):
            look = {"fd": [steps * speed, 0.0, 99.0]}
            results.add(f"{run} {steps}", {"run": run, "steps": steps, "cpu s": speed * steps, **look})
    equal_steps, equal_time = cifar.report(results).split("At equal CPU time")
    assert "| plain | 1 | 30 | 30 |" in equal_steps
    assert "| SSIM | 1 | 30 | 60 |" in equal_steps
    assert "| plain | 1 | 30 | 30 |" in equal_time
    assert "| SSIM | 1 | 10 | 20 |" in equal_time
