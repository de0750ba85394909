"""Measurement beside the training: the same numbers and the same run, at their own steps, whatever the process does."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from brightening import EXTRACTOR, REAL, Bright, brightness, distance, settled, step, tone
from torch import nn

from qa_hooks.callbacks import (
    BestCheckpoint,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    ScoreMonitor,
    TrainingStopped,
)
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.measuring import process
from qa_hooks.features import create_extractor
from qa_hooks.scorers import FunctionScorer, GMMScorer, create_scorer
from qa_hooks.writers import MemoryWriter, TensorBoardWriter, read_run_log


def trained(where: str | None, folder) -> tuple[Hooks, dict]:
    """A loop with its own noise; each measurement is awaited by a state, so that none is left out."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.Dropout(0.2), nn.Unflatten(1, (1, 8, 8)), nn.Sigmoid())
    optimizer = torch.optim.Adam(net.parameters())
    sample = lambda n, generator: net(torch.randn(n, 8, generator=generator))  # noqa: E731
    scorer = brightness()
    held = scorer.fit_calibration(scorer.goodness(REAL))
    monitors = [
        GenerativeMonitor(sample, REAL, extractor=EXTRACTOR, n=80, batch_size=32, every=3, where=where),
        GenerativeMonitor(
            sample, REAL, extractor=held.extractor, n=60, every=3, metrics=("qs",), scorer=held, where=where,
            name="giqa",
        ),
        ScoreMonitor(held, sample=sample, n=32, every=3, where=where),
    ]  # fmt: skip
    best = BestCheckpoint(
        monitors[0], "fd", mode="min", save=lambda path: torch.save(net.state_dict(), path), folder=folder / "best"
    )
    with Hooks([*monitors, best], writer=TensorBoardWriter(folder)) as hooks:
        for _ in range(6):
            loss = (net(torch.randn(16, 8)) - 0.3).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hooks.step()
            hooks.state_dict()
    return hooks, {**net.state_dict(), "random": torch.rand(3)}


def one_under_way(inline) -> tuple[Bright, MemoryWriter, GenerativeMonitor, Hooks]:
    """A loop after its first step, whose value is held back."""
    inline.gate.clear()
    net, writer = Bright(), MemoryWriter()
    monitor = distance("process", net)
    hooks = Hooks([monitor], writer=writer)
    step(hooks, net)
    return net, writer, monitor, hooks


def closed_after(hooks: Hooks, error: Exception) -> None:
    try:
        raise error
    finally:
        hooks.close()


def test_the_run_and_its_numbers_are_those_without_it(tmp_path):
    """A process of its own, with nothing replaced: the same weights, the same lines at their steps."""
    (here, alone), (there, beside) = trained(None, tmp_path / "here"), trained("process", tmp_path / "there")
    assert all(torch.equal(alone[name], beside[name]) for name in alone)
    logs = [read_run_log(tmp_path / name) for name in ("here", "there")]
    own = [{tag: lines for tag, lines in log.items() if tag.startswith("qa_eval/")} for log in logs]
    assert own[0] == own[1]
    assert [line["step"] for line in own[1]["qa_eval/fd_random4-0_n=80/value"]] == [1, 3, 6]
    assert "qa_eval/qs_giqa_sgm_random4-0_n=60,giqa/value" in own[1]
    states = [hooks.state_dict()["callbacks"] for hooks in (here, there)]
    assert str(states[0]) == str(states[1])
    found = [json.loads((tmp_path / name / "best" / "best.json").read_text()) for name in ("here", "there")]
    assert found[0] == found[1]
    weights = [torch.load(tmp_path / name / "best" / found[0]["path"]) for name in ("here", "there")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not process._SHARED


@pytest.mark.filterwarnings("error")
class TestLateValues:
    def test_they_land_in_order_at_the_steps_of_their_samples(self, inline):
        inline.gate.clear()
        net, writer = Bright(), MemoryWriter()
        monitor = distance("process", net, every=2)
        hooks = Hooks([monitor], writer=writer)
        for _ in range(3):
            step(hooks, net)
        assert monitor.last == {}
        assert [job.step for job in monitor.pending] == [1, 2]
        assert monitor.awaits(2)
        assert not monitor.awaits(3)
        inline.gate.set()
        settled(monitor)
        step(hooks, net)
        tag = "qa_eval/fd_random4-0_n=50/value"
        assert [at for at, _ in writer.scalars[tag]] == [1, 2]
        assert monitor.last["step"] == 2
        hooks.close()
        assert [at for at, _ in writer.scalars[tag]] == [1, 2, 4]
        plain, other = MemoryWriter(), Bright()
        with Hooks([distance(None, other, every=2)], writer=plain) as hooks:
            for _ in range(4):
                step(hooks, other)
        assert writer.scalars[tag] == plain.scalars[tag]

    def test_the_best_checkpoint_has_the_weights_of_its_step(self, inline, tmp_path):
        """Step 2 is the best; its value comes at step 4, when the weights are others."""
        inline.gate.clear()
        net = Bright()
        monitor = ScoreMonitor(create_scorer("psnr"), images="fake", reference="real", every=2, where="cpu")
        save = lambda path: path.write_text(f"{net.level.item():.1f}")  # noqa: E731
        best = BestCheckpoint(monitor, "mean", mode="max", save=save, folder=tmp_path)
        hooks = Hooks([monitor, best], writer=MemoryWriter())
        for _ in range(3):
            step(hooks, net)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["partial_step_00000001", "partial_step_00000002"]
        assert best.best == {}
        inline.gate.set()
        settled(monitor)
        step(hooks, net)
        assert best.best["step"] == 2
        assert (tmp_path / "step_00000002").read_text() == "0.2"
        net.level.data.zero_()  # from here on it is worse
        for _ in range(2):
            step(hooks, net)
        hooks.close()
        assert best.best["step"] == 4
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "step_00000004"]
        assert (tmp_path / "step_00000004").read_text() == "0.4"

    def test_early_stop_counts_each_value_and_stops_late(self, inline):
        net = Bright()
        net.level.data.fill_(0.9)  # step 1 reaches the real images, and nothing is better
        monitor = tone("process", net, every=1)
        stop = EarlyStop(monitor, "mean", patience=2)
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        hooks = Hooks([monitor, stop], writer=MemoryWriter())
        at = 0
        while not hooks.should_stop:
            settled(monitor)
            at += 1
            if at == 4:
                with pytest.warns(UserWarning, match="2 measurements without an improvement; the best was"):
                    step(hooks, net)
            else:
                step(hooks, net)
        assert at == 4  # of step 3, the second that is no better than step 1
        assert stop.waited == 2
        optimizer.zero_grad()

    def test_attached_hooks_end_training_by_it(self, inline):
        net = Bright()
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        monitor = distance("process", net)
        told = []
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)], writer=MemoryWriter()).attach(
            optimizer, on_stop=lambda: told.append(hooks.step_count)
        )
        optimizer.step()
        settled(monitor)
        optimizer.step()
        settled(monitor)
        with pytest.warns(UserWarning, match="1 measurements without an improvement"):
            optimizer.step()  # takes in the value of step 2, at a step at which no callback asks to stop
        assert told == [3]
        hooks.close()
        other = Bright()
        optimizer = torch.optim.SGD(other.parameters(), 0.0)
        monitor = distance("process", other)
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)], writer=MemoryWriter()).attach(
            optimizer
        )
        optimizer.step()
        for _ in range(2):
            settled(monitor)
            if hooks.step_count == 2:
                with pytest.raises(TrainingStopped):
                    optimizer.step()
            else:
                optimizer.step()
        hooks.close()

    def test_one_that_is_due_while_two_are_under_way_is_left_out(self, inline):
        net, writer, monitor, hooks = one_under_way(inline)
        step(hooks, net)
        with pytest.warns(UserWarning, match=r"step 3 is not measured, since steps 1 and 2 are.*larger every="):
            step(hooks, net)
        for _ in range(2):  # said once
            step(hooks, net)
        inline.gate.set()
        settled(monitor)
        monitor.every = 4
        step(hooks, net)  # takes both in, and is not due
        hooks.close()
        assert [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]] == [1, 2]

    @pytest.mark.parametrize("make", [distance, tone])
    def test_close_measures_a_last_step_that_was_left_out(self, inline, tmp_path, make):
        """The log and the checkpoint are those of a run that computes in the step."""
        logs, found, net = [], [], Bright()
        for where in ("process", None):
            inline.gate.clear()
            net, writer, folder = Bright(), MemoryWriter(), tmp_path / str(where)
            net.level.data.fill_(-0.5)
            monitor = make(where, net, every=3)
            metric = monitor.measures[0]
            save = lambda path: path.write_text(f"{net.level.item():.1f}")  # noqa: E731, B023
            best = BestCheckpoint(monitor, metric, save=save, folder=folder)
            stop = EarlyStop(monitor, metric, patience=9)
            hooks = Hooks([monitor, best, stop], writer=writer)
            for _ in range(5):
                step(hooks, net)
            if where is None:
                step(hooks, net)
            else:
                with pytest.warns(
                    UserWarning, match=r"step 6 is not measured.*hooks.close\(\) measures the run's last"
                ):
                    step(hooks, net)
                assert [job.step for job in monitor.pending] == [1, 3]
            inline.gate.set()
            hooks.close()
            logs.append({tag: rows for tag, rows in writer.scalars.items() if tag.startswith("qa_eval/")})
            found.append((best.best, monitor.last, stop.state_dict(), sorted(path.name for path in folder.iterdir())))
            assert (folder / "step_00000006").read_text() == "0.1"
        assert logs[0] == logs[1]
        assert found[0] == found[1]
        assert found[0][0]["step"] == 6

    @pytest.mark.parametrize("end", ["exit", "finally", "stopped", "later"])
    def test_a_last_step_is_measured_where_the_run_ends_well_and_with_it(self, inline, end):
        net, writer, monitor, hooks = one_under_way(inline)
        step(hooks, net)
        with pytest.warns(UserWarning, match="step 3 is not measured"):
            step(hooks, net)
        if end == "later":
            monitor.every = 5
            step(hooks, net)
        inline.gate.set()
        if end == "exit":
            settled(monitor)
            hooks.__exit__(KeyError, KeyError("of the user's"), None)
        elif end in ("finally", "stopped"):
            error = TrainingStopped("as a guard does") if end == "stopped" else KeyError("of the user's")
            with pytest.raises(type(error)):
                closed_after(hooks, error)
        else:
            hooks.close()
        steps = [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]]
        assert steps == ([1, 2, 3] if end == "stopped" else [1, 2])

    def test_what_close_measures_may_fail_as_in_the_step(self, inline):
        net, writer, monitor, hooks = one_under_way(inline)
        step(hooks, net)
        with pytest.warns(UserWarning, match="step 3 is not measured"):
            step(hooks, net)
        monitor.sample = lambda n, generator: torch.full((n, 1, 8, 8), float("nan"))
        inline.gate.set()
        with pytest.warns(UserWarning, match="switched off.*not finite"):
            hooks.close()
        assert [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]] == [1, 2]

    def test_monitors_share_the_samples_that_close_makes(self, inline):
        inline.gate.clear()
        net, calls = Bright(), []
        sample, plain = lambda n, generator: calls.append(n) or plain(n, generator), net.sample
        net.sample = sample
        hooks = Hooks([distance("process", net, name="a"), distance("process", net, name="b")], writer=MemoryWriter())
        for _ in range(2):
            step(hooks, net)
        with pytest.warns(UserWarning, match="step 3 is not measured"):
            step(hooks, net)
        before = len(calls)
        inline.gate.set()
        hooks.close()
        assert [monitor.last["step"] for monitor in hooks.callbacks] == [3, 3]
        assert len(calls) == before + 1

    def test_after_an_error_nobody_waits(self, inline):
        _, _, monitor, hooks = one_under_way(inline)
        hooks.__exit__(KeyError, KeyError("of the user's"), None)
        assert monitor.last == {}
        assert not process._SHARED

    def test_the_budget_counts_what_training_lost(self, inline):
        """Drawing and taking in are counted; what the other process works is not."""
        net, writer = Bright(), MemoryWriter()
        slow = net.sample
        net.sample = lambda n, generator: (time.sleep(0.05), slow(n, generator))[1]
        monitor = distance("process", net)
        with Hooks([monitor], writer=writer, budget=0.9) as hooks:
            inline.gate.clear()
            step(hooks, net)
            time.sleep(0.3)
            inline.gate.set()
            settled(monitor)
        lost = hooks._callbacks.budget._spent
        (_, drawn), (_, elsewhere) = (
            writer.scalars[f"qa_perf/GenerativeMonitor_random4-0/{name}"][0]
            for name in ("seconds", "elsewhere_seconds")
        )
        assert 0.05 <= drawn <= lost
        assert elsewhere > 0
        assert hooks._callbacks.budget._cost[monitor.state_key] == drawn


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"extractor": create_extractor(nn.Sequential(nn.Conv2d(3, 4, 3)), name="mine")},
            "mine is a network of your own",
        ),
        ({"extractor": {**EXTRACTOR, "size": np.int64(8)}}, "cannot be told another process.*write paths as text"),
        ({"metrics": ("is",), "classifier": lambda images: images.mean((2, 3))}, 'leave "is" out'),
        ({"where": "cuda:99"}, "neither .process. nor a device"),
        ({"where": "meta"}, "neither .process. nor a device"),
        ({"where": "threads"}, "neither .process. nor a device"),
        ({"where": ""}, "where must be"),
        ({"where": 3}, "where must be"),
    ],
)
def test_what_cannot_be_computed_elsewhere_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        distance(**{"where": "process", "net": Bright(), **options})


def test_scorers_of_ones_own_are_refused():
    own = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="mean", higher_is_better=True)
    with pytest.raises(ValueError, match=r"mean cannot be made again in another process.*leave where= out"):
        ScoreMonitor(own, images="fake", where="process")
    fitted = GMMScorer(create_extractor(nn.Sequential(nn.Conv2d(3, 4, 3)), name="mine"), 1, pca=2)
    with pytest.raises(ValueError, match="a network of your own"):
        ScoreMonitor(fitted.fit(REAL, progress=False), images="fake", where="cpu")


def test_several_processes_are_refused_by_name(monkeypatch):
    monitor = distance("process", Bright())
    ctx = Context(1, {}, {}, MemoryWriter(), 0, 2)
    monitor.on_train_start(ctx)
    with pytest.raises(RuntimeError, match="where='process' is for training in one process: on several ones leave it"):
        monitor.on_step_end(ctx)
    assert not monitor.pending
    monkeypatch.setattr("qa_hooks.callbacks.measuring.monitor.is_distributed", lambda: True)
    with pytest.raises(ValueError, match="where='cpu' is for training in one process"):
        tone("cpu", Bright())


def test_a_dry_run_says_where_it_computes():
    net = Bright()
    said = Hooks([distance("process", net, name="a"), distance("cpu", net, name="b"), distance(None, net)]).check()
    assert said.count("computes in a process of its own, on the device of the images, while training goes on") == 1
    assert said.count("computes in a process of its own, on cpu,") == 1
