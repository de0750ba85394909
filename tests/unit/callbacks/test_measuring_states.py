"""States and checkpoints while values are computed elsewhere: nothing is lost, and a copy waits for its value."""

from __future__ import annotations

import pytest
from brightening import Bright, distance, settled, step, tone

from qa_hooks.callbacks import (
    BestCheckpoint,
    Hooks,
)
from qa_hooks.integrations.hook_state import load_state, save_state
from qa_hooks.writers import MemoryWriter


@pytest.mark.filterwarnings("error")
class TestStates:
    def test_a_state_waits_and_keeps_what_has_not_been_taken_in(self, inline, tmp_path):
        net = Bright()
        monitor = tone("process", net, every=1)
        save = lambda path: path.write_text(f"{net.level.item():.1f}")  # noqa: E731
        hooks = Hooks(
            [monitor, BestCheckpoint(monitor, "mean", mode="max", save=save, folder=tmp_path)], writer=MemoryWriter()
        )
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
        hooks = Hooks([monitor], writer=MemoryWriter())
        step(hooks, net)
        save_state(hooks.state_dict(), tmp_path / "state.safetensors")
        resumed = Hooks([again], writer=MemoryWriter())
        resumed.load_state_dict(load_state(tmp_path / "state.safetensors"))
        step(resumed, other)
        hooks.close()
        assert again.last == monitor.last

    def test_a_value_without_its_weights_is_no_checkpoint(self, inline, tmp_path):
        net = Bright()
        monitor = tone("process", net, every=2)
        hooks = Hooks([monitor], writer=MemoryWriter())
        step(hooks, net)
        state = hooks.state_dict()
        again = tone(None, net, every=2)
        best = BestCheckpoint(again, "mean", mode="max", save=lambda path: path.touch(), folder=tmp_path)
        resumed = Hooks([again, best], writer=MemoryWriter(), strict=False)
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
        hooks = Hooks([monitor, best], writer=MemoryWriter())
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
