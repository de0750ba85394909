"""The state of a run: its step, the states of callbacks and tracked parts, and the pending means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qa_hooks.callbacks.callback import Callback
from qa_hooks.callbacks.means import Means


class RunState:
    """Gathers and restores the state of what belongs to one run.

    Args:
        callbacks: by their `state_key`.
        track: losses, penalties and weighters by their names; parts without a state are left out.
        means: the means that are not written yet.
    """

    def __init__(self, callbacks: Iterable[Callback], track: Mapping[str, Any], means: Means) -> None:
        self.callbacks = {callback.state_key: callback for callback in callbacks}
        self.track = {name: part for name, part in track.items() if _is_stateful(part)}
        self.means = means

    def gather(self, step: int) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {
            "step": step,
            "callbacks": {key: callback.state_dict() for key, callback in self.callbacks.items()},
            "track": {name: _state_of(part) for name, part in self.track.items()},
            "means": self.means.state_dict(),
        }

    def restore(self, state: Mapping[str, Any], *, strict: bool) -> int:
        """Load what `gather` gave; returns the step.

        Raises:
            TypeError: not a mapping.
            ValueError: with `strict`, when callbacks or tracked parts are missing or unknown.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be what state_dict() gave, got {type(state).__name__}")
        parts: dict[str, dict[str, Any]] = {"callbacks": self.callbacks, "track": self.track}
        for kind, own in parts.items():
            saved = set(state.get(kind, {}))
            if strict and saved != set(own):
                raise ValueError(
                    f"the saved state does not fit these hooks: {kind} missing {sorted(set(own) - saved)}, unknown "
                    f"{sorted(saved - set(own))}; Hooks(..., strict=False) loads what fits"
                )
        for kind, own in parts.items():
            for name, part in own.items():
                if name in state.get(kind, {}):
                    _load(part, state[kind][name])
        self.means.load_state_dict(state.get("means", {}))
        return int(state.get("step", 0))


def _is_stateful(part: Any) -> bool:
    return hasattr(part, "run_state") or hasattr(part, "state_dict")


def _state_of(part: Any) -> dict[str, Any]:
    return dict(part.run_state() if hasattr(part, "run_state") else part.state_dict())


def _load(part: Any, state: Any) -> None:
    (part.load_run_state if hasattr(part, "load_run_state") else part.load_state_dict)(state)
