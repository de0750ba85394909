"""What a watcher remembers is what is on the disk."""

from __future__ import annotations

import json

import pytest

from qa_hooks.folders.watching.state import Goal, State


def test_a_step_that_could_not_be_written_is_not_remembered(tmp_path, monkeypatch):
    def new() -> State:
        return State(tmp_path, {"scorer": "a"}, Goal("a", higher=True, of_a_set=False), print)

    state = new()
    state.add(100, {"a": 1.0, "n": 2}, ["100.png"])
    known, best = dict(state.steps), state.best

    def full(path, text) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("qa_hooks.folders.watching.state.write_text", full)
        with pytest.raises(OSError, match="No space left"):
            state.add(200, {"a": 2.0, "n": 2}, ["200.png"])
    assert (state.steps, state.best) == (known, best)
    assert new().steps == known
    state.add(200, {"a": 2.0, "n": 2}, ["200.png"])
    assert new().steps == state.steps
    assert json.loads((tmp_path / "best.json").read_text())["step"] == 200
