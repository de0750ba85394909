"""The state of hooks: what a saved run holds, and that files of before still load."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import pytest
import torch

from qa_hooks.callbacks import RewardGuard
from qa_hooks.integrations.hook_state import load_state

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def golden():
    """What makes the run, and the state that it saved then."""
    return runpy.run_path(str(GOLDEN / "make_hooks.py"))["make_run"], load_state(GOLDEN / "hooks.safetensors")


def test_a_saved_state_still_loads():
    make_run, state = golden()
    hooks, step = make_run()
    hooks.load_state_dict(state)
    assert hooks.step_count == 4
    _, score, panel, histogram, guard, nan = hooks.callbacks
    saved = state["callbacks"]
    assert score.last == saved["ScoreMonitor(brightness)"]["last"]
    assert panel.last == saved["ScorePanel(brightness)"]["last"]
    assert histogram.last == saved["ScoreHistogram(brightness)"]["last"]
    assert guard.last == saved["RewardGuard(reward_guard)"]["last"]
    assert (guard.alarms, nan.found, nan.skips) == (1, 0, 0)
    assert (hooks.track["qagan"].calls, hooks.track["ssim"].calls, hooks.track["ohem"].calls) == (4, 4, 4)
    assert hooks.track["qagan"].random.draws == 4
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            step()
    assert {callback.last["step"] for callback in (score, panel, histogram, guard)} == {6}
    change = saved["ScoreMonitor(brightness)"]["last"]["change"]  # from step 2 to step 4, and the network is new
    assert score.last["change"] == pytest.approx(-change, rel=1e-3)
    losses = hooks._writer._writer.scalars["qa_train/loss/mean"]
    assert losses[0][0] == 6  # with the pending value of step 4


def test_a_run_of_now_has_the_numbers_of_then():
    """Of everything that both states hold."""
    make_run, state = golden()
    hooks, step = make_run()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(4):
            step()

    def check(own, saved, where="state"):
        assert isinstance(own, dict) == isinstance(saved, dict), where
        if isinstance(saved, dict):
            for key in saved.keys() & own.keys():
                check(own[key], saved[key], f"{where}/{key}")
        elif isinstance(saved, torch.Tensor):
            assert own.shape == saved.shape, where
            assert own.dtype == saved.dtype, where
        elif isinstance(saved, float):
            assert own == pytest.approx(saved, rel=1e-3, abs=1e-6), where

    own = hooks.state_dict()
    assert own.keys() == state.keys()
    assert own["callbacks"].keys() == state["callbacks"].keys()
    (guard,) = [callback for callback in hooks.callbacks if isinstance(callback, RewardGuard)]
    last = own["callbacks"][guard.state_key]["last"]
    assert 0 < last["severity"] <= guard.found[0].severity
    last["severity"] = guard.found[0].severity  # the severity of then was the largest one of all measurements
    check(own, state)
