"""The file that keeps the state of hooks, and stopping without an exception."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qa_hooks.callbacks import Callback, Hooks, NaNGuard, TrainingStopped
from qa_hooks.integrations.wiring import attach_gently, load_state, save_state


def test_a_state_comes_back_bit_for_bit(tmp_path):
    shared = torch.arange(6.0)
    state = {
        "step": 3,
        "nested": {"a": shared[:3], "b": shared, "empty": {}, "list": [1, 2.5, torch.tensor(7), None], "yes": True},
        "tuple": (0.1 + 0.2, 2),
        "half": torch.randn(2, 2).to(torch.bfloat16),
    }
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert loaded["step"] == 3
    assert loaded["tuple"] == [0.1 + 0.2, 2]
    assert torch.equal(loaded["nested"]["a"], shared[:3])
    assert torch.equal(loaded["nested"]["b"], shared)
    assert loaded["nested"]["empty"] == {}
    assert [float(value) for value in loaded["nested"]["list"][:3]] == [1, 2.5, 7]
    assert loaded["nested"]["list"][3] is None
    assert loaded["nested"]["yes"] is True
    assert torch.equal(loaded["half"], state["half"])
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_what_is_no_state_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got Linear in /net"):
        save_state({"net": nn.Linear(1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="keys of a state must be strings"):
        save_state({"net": {1: 2}}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    for name in ("other", "broken", "missing"):
        with pytest.raises(ValueError, match=f"{name}.safetensors does not hold the state"):
            load_state(tmp_path / f"{name}.safetensors")


class StopsAt(Callback):
    """Stops training at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, ctx) -> None:
        if ctx.step == self.step:
            raise TrainingStopped("enough")


def test_stopping_is_told_and_not_raised():
    parameter, stops = nn.Parameter(torch.zeros(1)), []
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    hooks = Hooks([StopsAt(2), NaNGuard("skip")])
    attach_gently(hooks, optimizer, lambda: stops.append(hooks.step_count))
    for step in range(4):
        parameter.grad = torch.ones(1) * (float("nan") if step == 0 else 1.0)
        if step == 0:
            with pytest.warns(UserWarning, match="skipped"):
                optimizer.step()
        else:
            optimizer.step()
    assert hooks.step_count == 3
    assert hooks.should_stop
    assert stops == [2, 3]
    hooks.close()
    optimizer.step()
    assert hooks.step_count == 3
