"""The process that measures: what its death costs, who shares it, and when it is gone."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time

import pytest
import torch
from brightening import EXTRACTOR, REAL, Bright, distance, settled, step, tone

from qa_hooks.callbacks import (
    BestCheckpoint,
    GenerativeMonitor,
    Hooks,
    with_weights,
)
from qa_hooks.callbacks.measuring import process
from qa_hooks.evaluation import reference
from qa_hooks.features import create_extractor
from qa_hooks.writers import MemoryWriter, read_run_log


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
        hooks = Hooks([monitor, best], writer=MemoryWriter())
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
        hooks = Hooks([monitor], writer=MemoryWriter())
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
        with pytest.warns(UserWarning, match="switched off.*samples: some values are not finite"):
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


SCRIPT = """
import os, signal, sys
import torch
from qa_hooks import GenerativeMonitor, Hooks
print("the script runs", flush=True)
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
        assert done.stdout.count("the script runs") == 1
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
