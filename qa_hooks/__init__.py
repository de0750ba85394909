"""Image-quality feedback for training loops that somebody else wrote.

A scorer gives each image a number, and every hook is a use of that number: losses (`qa_hooks.losses`), critic penalties
(`qa_hooks.penalties`), per-sample weights (`qa_hooks.weighting`), the picker (`qa_hooks.picker`), monitors
(`qa_hooks.callbacks`), on top of pure functions (`qa_hooks.functional`), features (`qa_hooks.features`) and scorers
(`qa_hooks.scorers`). The names below are resolved when they are first used, so importing the package costs next to
nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "FunctionScorer": "qa_hooks.scorers",
    "GMMScorer": "qa_hooks.scorers",
    "GenerativeMonitor": "qa_hooks.callbacks",
    "GradientPenalty": "qa_hooks.penalties",
    "Hooks": "qa_hooks.callbacks",
    "NIQEPenalty": "qa_hooks.penalties",
    "NaNGuard": "qa_hooks.callbacks",
    "OHEM": "qa_hooks.weighting",
    "QAGANPenalty": "qa_hooks.penalties",
    "SSIMLoss": "qa_hooks.losses",
    "SSIMPenalty": "qa_hooks.penalties",
    "SampleGrid": "qa_hooks.callbacks",
    "ScoreLoss": "qa_hooks.losses",
    "ScoreMonitor": "qa_hooks.callbacks",
    "Scorer": "qa_hooks.scorers",
    "TrainingStopped": "qa_hooks.callbacks",
    "create_scorer": "qa_hooks.scorers",
    "fit_gradient_model": "qa_hooks.penalties",
}

__all__ = [
    *_NAMES,
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'qa_hooks' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
