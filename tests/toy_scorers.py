"""A scorer that tests can do sums with."""

from __future__ import annotations

from typing import Any

from qa_hooks.scorers import FunctionScorer


def brightness(name: str = "brightness", *, higher_is_better: bool = True, **options: Any) -> FunctionScorer:
    """The mean of all numbers of an image."""
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name=name, higher_is_better=higher_is_better, **options)
