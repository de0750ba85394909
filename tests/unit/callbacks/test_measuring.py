"""Measurement beside the training: the same numbers and the same run, at their own steps, whatever the process does."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from inline_process import InlineProcess
from torch import nn

from qa_hooks.callbacks import (
    BestCheckpoint,
    EarlyStop,
    GenerativeMonitor,
    Hooks,
    ScoreMonitor,
    TrainingStopped,
    with_weights,
)
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.measuring import process
from qa_hooks.evaluation import reference
from qa_hooks.features import create_extractor
from qa_hooks.integrations.hook_state import load_state, save_state
from qa_hooks.scorers import FunctionScorer, GMMScorer, create_scorer
from qa_hooks.writers import MemoryWriter, TensorBoardWriter, read_run_log

REAL = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))
EXTRACTOR = {"type": "random", "width": 4}


class Bright(nn.Module):
    """A generator whose images get brighter by one level a step; the step can be read off its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        return (torch.rand(n, 1, 8, 8, generator=generator) + self.level).clamp(0, 1)


def brightness() -> GMMScorer:
    return GMMScorer(EXTRACTOR, 1, pca=2).fit(REAL, progress=False)


def tone(where: str | None, net: Bright, **options) -> ScoreMonitor:
    return ScoreMonitor(create_scorer("psnr"), images="fake", reference="real", where=where, **options)


def distance(where: str | None, net: Bright, **options) -> GenerativeMonitor:
    options = {"extractor": EXTRACTOR, "n": 50, "every": 1, "metrics": ("fd",), **options}
    return GenerativeMonitor(net.sample, REAL, where=where, **options)


def step(hooks: Hooks, net: Bright) -> None:
    with torch.no_grad():
        net.level += 0.1
    hooks.step(fake=torch.full((2, 1, 16, 16), net.level.item()).clamp(0, 1), real=torch.ones(2, 1, 16, 16))


def settled(monitor) -> None:
    """Wait until what is under way is known; it lands at the next step."""
    for job in monitor.pending:
        assert job.done.wait(300)  # however busy the machine is


@pytest.fixture(autouse=True)
def nothing_is_left():
    """A process of one test is in no other one."""
    yield
    for shared, _ in list(process._SHARED.values()):
        shared.close()
    process._SHARED.clear()


@pytest.fixture
def inline(monkeypatch):
    """The process is a thread of this one, which answers at once."""
    monkeypatch.setattr(process.subprocess, "Popen", InlineProcess)
    monkeypatch.setattr(InlineProcess, "started", [])
    InlineProcess.gate = threading.Event()
    InlineProcess.gate.set()
    return InlineProcess


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
        hooks = Hooks([monitor, best])
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
        monitor = tone("process", net, every=1)
        stop = EarlyStop(monitor, "mean", mode="min", patience=2)
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        hooks = Hooks([monitor, stop])
        at = 0
        while not hooks.should_stop:
            settled(monitor)
            at += 1
            if at == 4:
                with pytest.warns(UserWarning, match="2 measurements without an improvement; the best was"):
                    step(hooks, net)
            else:
                step(hooks, net)
        assert at == 4  # of step 3, the second that is worse than step 1
        assert stop.waited == 2
        optimizer.zero_grad()

    def test_attached_hooks_end_training_by_it(self, inline):
        net = Bright()
        optimizer = torch.optim.SGD(net.parameters(), 0.0)
        monitor = distance("process", net)
        told = []
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)]).attach(
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
        hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)]).attach(optimizer)
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
        inline.gate.clear()
        net, writer = Bright(), MemoryWriter()
        monitor = distance("process", net)
        hooks = Hooks([monitor], writer=writer)
        step(hooks, net)
        step(hooks, net)
        with pytest.warns(UserWarning, match=r"step 3 is not measured, since those of 1 and 2 are.*larger every="):
            step(hooks, net)
        step(hooks, net)  # said once
        inline.gate.set()
        hooks.close()
        assert [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]] == [1, 2]

    def test_after_an_error_nobody_waits(self, inline):
        inline.gate.clear()
        net, writer = Bright(), MemoryWriter()
        monitor = distance("process", net)
        hooks = Hooks([monitor], writer=writer)
        step(hooks, net)
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


@pytest.mark.filterwarnings("error")
class TestStates:
    def test_a_state_waits_and_keeps_what_has_not_been_taken_in(self, inline, tmp_path):
        net = Bright()
        monitor = tone("process", net, every=1)
        save = lambda path: path.write_text(f"{net.level.item():.1f}")  # noqa: E731
        hooks = Hooks([monitor, BestCheckpoint(monitor, "mean", mode="max", save=save, folder=tmp_path)])
        step(hooks, net)
        state = hooks.state_dict()
        (late,) = state["callbacks"][monitor.state_key]["late"]
        assert late["step"] == 1
        assert late["found"]["scores"].shape == (2,)
        best_key = next(key for key in state["callbacks"] if key.startswith("Best"))
        assert state["callbacks"][best_key]["aside"] == {"1": "partial_step_00000001"}
        # The run is killed, and goes on in another process, which may also compute in the step.
        for where in ("process", None):
            writer, other, folder = MemoryWriter(), Bright(), tmp_path
            again = tone(where, other, every=2)
            best = BestCheckpoint(again, "mean", mode="max", save=save, folder=folder)
            resumed = Hooks([again, best], writer=writer)
            resumed.load_state_dict(state)
            net.level.data.fill_(0.9)
            step(resumed, other)
            assert best.best["step"] == 1 or where is None
            assert (folder / "step_00000001").read_text() == "0.1"
            assert writer.scalars["qa_eval/psnr/mean"][0][0] == 1
            resumed._end()

    @pytest.mark.parametrize("make", [tone, distance])
    def test_a_late_value_survives_a_file_that_holds_no_pickles(self, inline, tmp_path, make):
        net, other = Bright(), Bright()
        monitor, again = make("process", net, every=1), make("process", other, every=9)
        hooks = Hooks([monitor])
        step(hooks, net)
        save_state(hooks.state_dict(), tmp_path / "state.safetensors")
        resumed = Hooks([again])
        resumed.load_state_dict(load_state(tmp_path / "state.safetensors"))
        step(resumed, other)
        hooks.close()
        assert again.last == monitor.last

    def test_a_value_without_its_weights_is_no_checkpoint(self, inline, tmp_path):
        net = Bright()
        monitor = tone("process", net, every=2)
        hooks = Hooks([monitor])
        step(hooks, net)
        state = hooks.state_dict()
        again = tone(None, net, every=2)
        best = BestCheckpoint(again, "mean", mode="max", save=lambda path: path.touch(), folder=tmp_path)
        resumed = Hooks([again, best], strict=False)
        resumed.load_state_dict(state)
        resumed.step_count = 4
        with pytest.warns(UserWarning, match="no checkpoint was saved at that step: it is left out"):
            step(resumed, net)
        assert best.best == {}
        assert list(tmp_path.iterdir()) == []

    def test_a_saver_that_fails_is_told_once_and_nothing_else_is_saved(self, inline, tmp_path):
        net = Bright()

        def save(path):
            raise OSError(28, "No space left on device")

        monitor = tone("process", net, every=1)
        best = BestCheckpoint(monitor, "mean", mode="max", save=save, folder=tmp_path)
        hooks = Hooks([monitor, best])
        with pytest.warns(UserWarning, match="checkpoint of step 1 was not saved.*No space left"):
            step(hooks, net)
        settled(monitor)
        step(hooks, net)
        hooks.close()
        assert best.failures == 2
        assert list(tmp_path.iterdir()) == []

    def test_names_of_a_state_that_are_no_checkpoints_are_not_touched(self, tmp_path):
        monitor = tone(None, Bright())
        best = BestCheckpoint(monitor, "mean", mode="max", save=lambda path: path.touch(), folder=tmp_path)
        best.load_state_dict({"kept": [], "aside": {"1": "../../etc", "2": "partial_step_00000002"}})
        assert best.state_dict()["aside"] == {"2": "partial_step_00000002"}


@pytest.mark.filterwarnings("error")
class TestDeaths:
    def test_a_killed_process_costs_one_point_and_one_warning(self):
        """The process is a real one, and is killed as the system kills one that needs too much memory."""
        net, writer = Bright(), MemoryWriter()
        monitor = distance("cpu", net)
        with Hooks([monitor], writer=writer) as hooks:
            step(hooks, net)
            settled(monitor)
            step(hooks, net)
            settled(monitor)
            step(hooks, net)  # takes in step 2
            settled(monitor)
            first = monitor._process._process
            assert isinstance(first, subprocess.Popen)
            first.send_signal(signal.SIGSTOP)  # so that it is in the middle of step 4
            step(hooks, net)  # takes in step 3
            first.send_signal(signal.SIGKILL)
            settled(monitor)
            with pytest.warns(UserWarning, match="died while it was at step 4.*SIGKILL.*new process") as caught:
                step(hooks, net)
            assert len(caught) == 1
            settled(monitor)
            assert monitor._process._process is not first
        assert [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]] == [1, 2, 3, 5]

    def test_one_that_dies_with_nothing_to_do_costs_nothing(self, inline):
        net, writer = Bright(), MemoryWriter()
        monitor = distance("process", net)
        with Hooks([monitor], writer=writer) as hooks:
            step(hooks, net)
            settled(monitor)
            inline.started[0].kill()
            step(hooks, net)
        assert [at for at, _ in writer.scalars["qa_eval/fd_random4-0_n=50/value"]] == [1, 2]
        assert len(inline.started) == 2

    def test_one_that_dies_again_and_again_is_switched_off(self, monkeypatch, tmp_path):
        monkeypatch.setattr(process, "PROGRAM", "import sys; sys.exit(3)")
        net = Bright()
        monitor = distance("process", net)
        best = BestCheckpoint(monitor, "fd", mode="min", save=lambda path: path.touch(), folder=tmp_path)
        hooks = Hooks([monitor, best])
        step(hooks, net)
        for at in (1, 2):
            settled(monitor)
            with pytest.warns(UserWarning, match=f"died while it was at step {at}: it ended with code 3"):
                step(hooks, net)
            assert [path.name for path in tmp_path.iterdir()] == [f"partial_step_{at + 1:08d}"]
        settled(monitor)
        with pytest.warns(UserWarning, match="switched off for the rest of the run.*3 times in a row"):
            step(hooks, net)
        step(hooks, net)
        hooks.close()
        assert list(tmp_path.iterdir()) == []

    def test_an_error_in_the_measurement_switches_it_off(self, inline, monkeypatch):
        net = Bright()
        monitor = distance("process", net, extractor=create_extractor(EXTRACTOR))
        hooks = Hooks([monitor])
        step(hooks, net)
        settled(monitor)
        from qa_hooks.callbacks.measuring.instruments import SetInstrument

        def broken(self, block):
            raise ValueError("features that are not finite")

        monkeypatch.setattr(SetInstrument, "rows", broken)
        step(hooks, net)
        settled(monitor)
        with pytest.warns(UserWarning, match="switched off.*step 2 could not be measured: ValueError: features that"):
            step(hooks, net)
        hooks.close()

    def test_what_was_drawn_before_a_failure_still_lands(self, inline, tmp_path):
        inline.gate.clear()
        net, writer = Bright(), MemoryWriter()
        monitor = tone("process", net, every=1)
        best = BestCheckpoint(monitor, "mean", mode="max", save=lambda path: path.touch(), folder=tmp_path)
        hooks = Hooks([monitor, best], writer=writer)
        step(hooks, net)
        with pytest.warns(UserWarning, match="switched off.*no images named 'fake'"):
            hooks.step()
        inline.gate.set()
        hooks.close()
        assert [at for at, _ in writer.scalars["qa_eval/psnr/mean"]] == [1]
        assert best.best["step"] == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "step_00000001"]

    def test_samples_that_are_not_finite_end_it_in_their_step(self, inline):
        net = Bright()
        net.sample = lambda n, generator: torch.full((n, 1, 8, 8), float("nan"))
        monitor = distance("process", net)
        with pytest.warns(UserWarning, match="switched off.*samples holds non-finite values"):
            step(Hooks([monitor]), net)
        assert not inline.started


class TestSharing:
    def test_monitors_of_one_device_share_a_process_and_its_networks(self, inline, monkeypatch):
        made = []
        from qa_hooks.callbacks.measuring import instruments

        plain = instruments.saved_extractor
        monkeypatch.setattr(instruments, "saved_extractor", lambda *a: made.append(1) or plain(*a))
        net = Bright()
        average = {"level": torch.tensor(0.5)}
        gc.collect()
        others = set(reference._KNOWN)  # of monitors that somebody else keeps
        raw = distance("process", net, name="raw")
        ema = GenerativeMonitor(
            with_weights(net.sample, net, average), REAL, extractor=EXTRACTOR, n=50, every=1, metrics=("fd",),
            where="process", name="ema",
        )  # fmt: skip
        writer = MemoryWriter()
        with Hooks([raw, ema], writer=writer) as hooks:
            step(hooks, net)
        assert len(inline.started) == 1
        assert len(made) == 1
        assert raw._made is ema._made  # the real images were looked at once
        assert len(set(reference._KNOWN) - others) == 1
        assert writer.scalars["qa_eval/fd_random4-0_n=50,raw/value"][0][1] < ema.last["fd"]
        assert writer.scalars["qa_eval/fd_random4-0_n=50,ema/value"] == [(1, ema.last["fd"])]
        assert not process._SHARED
        del raw, ema, hooks
        gc.collect()
        assert not set(reference._KNOWN) - others  # nothing is kept for nobody

    def test_hooks_that_are_forgotten_leave_no_process(self, inline):
        net = Bright()
        hooks = Hooks([distance("process", net)])
        step(hooks, net)
        settled(hooks.callbacks[0])
        assert process._SHARED
        del hooks
        gc.collect()
        assert not process._SHARED

    def test_one_that_has_left_does_not_end_it_for_the_others(self, inline):
        net = Bright()
        one, other = distance("process", net), distance("process", net)
        first, second = Hooks([one]), Hooks([other])
        step(first, net)
        step(second, net)
        first.close()
        step(second, net)
        second.close()
        assert other.last["step"] == 2
        assert len(inline.started) == 1


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
    with pytest.raises(ValueError, match="where='process' is for training in one process"):
        monitor.on_train_start(Context(1, {}, {}, MemoryWriter(), 0, 2))
    monkeypatch.setattr("qa_hooks.callbacks.measuring.monitor.is_distributed", lambda: True)
    with pytest.raises(ValueError, match="where='cpu' is for training in one process"):
        tone("cpu", Bright())


def test_a_dry_run_says_where_it_computes():
    net = Bright()
    said = Hooks([distance("process", net, name="a"), distance("cpu", net, name="b"), distance(None, net)]).check()
    assert said.count("computes in a process of its own, on the device of the images, while training goes on") == 1
    assert said.count("computes in a process of its own, on cpu,") == 1


SCRIPT = """
import os, signal, sys
import torch
from qa_hooks import GenerativeMonitor, Hooks
real = torch.rand(60, 1, 8, 8)
monitor = GenerativeMonitor(lambda n, g: torch.rand(n, 1, 8, 8, generator=g), real, extractor="random", n=50, every=1,
                            metrics=("fd",), where="process")
hooks = Hooks([monitor], log_dir=sys.argv[1])
hooks.step()
if sys.argv[2] == "kill":
    hooks.state_dict()
    print("pid", monitor._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "forget"])
def test_scripts_without_a_main_guard_and_without_an_end(tmp_path, end):
    """The script runs once; hooks that nobody closes write the last value; a killed script leaves no process behind."""
    import sys

    (tmp_path / "train.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "log"), end]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if end == "forget":
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("knows 60 real images") == 1
        assert [line["step"] for line in read_run_log(tmp_path / "log")["qa_eval/fd_random_n=50/value"]] == [1]
        return
    pid = int(done.stdout.split("pid ")[1].split()[0])
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the process that measures lives on")
