"""What an adapter adds to `state_dict`: which scores it is of, in which units, and how much was drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qa_hooks.integrations.diffusers.quality.scores import QualityScores

SHAPES = ("form", "init", "tokens", "hidden", "encoding")  # the options that decide the shapes of the weights


def pack_state(facts: Mapping[str, Any], draws: int) -> Tensor:
    """Facts and draws as a tensor of bytes, which every kind of checkpoint can hold."""
    text = json.dumps({**facts, "draws": draws})
    return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")


def resumed_draws(state: Tensor, scores: QualityScores, options: Mapping[str, Any]) -> int:
    """How much the saved run had drawn.

    Args:
        state: of `pack_state`.
        scores, options: of the run that goes on.

    Raises:
        ValueError: the saved run had other scorers, other units of them, or options of weights of another shape.
    """
    saved = json.loads(bytes(state.cpu().tolist()).decode())
    scores.check_resumed(QualityScores.from_facts(saved["scores"]))
    other = [name for name in SHAPES if saved["options"].get(name) != options.get(name)]
    if other:
        told = ", ".join(f"{name}={saved['options'].get(name)!r}, not {options.get(name)!r}" for name in other)
        raise ValueError(f"the run to be resumed had an adapter with {told}: make this one with the same options")
    return int(saved["draws"])
