"""The file that keeps the state of hooks."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from qa_hooks.integrations.hook_state import load_state, save_state


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


def test_keys_with_slashes_stay_apart(tmp_path):
    state = {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}, "list": ["tensor", torch.full((1,), 2.0)]}
    save_state(state, tmp_path / "state.safetensors")
    loaded = load_state(tmp_path / "state.safetensors")
    assert torch.equal(loaded["a/b"], torch.ones(1))
    assert torch.equal(loaded["a"]["b"], torch.zeros(2))
    assert loaded["list"] == ["tensor", torch.tensor([2.0])]


def test_what_is_no_state_is_refused(tmp_path):
    with pytest.raises(TypeError, match="got Linear in /net"):
        save_state({"net": nn.Linear(1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(TypeError, match="keys of a state must be strings"):
        save_state({"net": {1: 2}}, tmp_path / "a.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"missing\.safetensors does not exist"):
        load_state(tmp_path / "missing.safetensors")
    for name in ("other", "broken"):
        with pytest.raises(ValueError, match=f"{name}.safetensors does not hold the state"):
            load_state(tmp_path / f"{name}.safetensors")
