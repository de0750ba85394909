"""The numbers of a run that are logged as means: the terms of losses and the like, and what the user records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qa_hooks.callbacks.means import Means
from qa_hooks.writers import make_tag

Terms = dict[str, dict[str, Tensor | float]]


class Tracking:
    """Adds new terms to the means that are written, and hands them to the callbacks of the step.

    Args:
        track: losses, penalties and weighters by their names.
        means: to be written.

    Raises:
        ValueError: one of them has no `.terms`.
    """

    def __init__(self, track: Mapping[str, Any], means: Means) -> None:
        self.track, self._means = dict(track), means
        for name, part in self.track.items():
            if not hasattr(part, "terms"):
                raise ValueError(
                    f"track[{name!r}] has no .terms: losses, penalties and weighters of qa_hooks have, "
                    f"{type(part).__name__} not"
                )
        self._recorded: dict[str, Tensor | float] = {}
        self._seen: dict[str, Any] = {}

    def record(self, name: str, value: Any) -> None:
        """A value of the user's own; `TypeError` when it is no number."""
        if isinstance(value, Tensor):
            value = value.detach()
        else:
            try:
                value = float(value)
            except (TypeError, ValueError):
                raise TypeError(f"hooks.record({name}=...) takes a number or a tensor, got {value!r}") from None
        self._recorded[name] = value
        self._means.add(make_tag("train", name, "mean"), value)

    def take(self) -> Terms:
        """What is new since the last step, `{track: {term: value}}`, with what was recorded under "train"."""
        terms: Terms = {"train": self._recorded}
        self._recorded = {}
        for name, part in self.track.items():
            if part.terms is not self._seen.get(name):  # a new dictionary each time they are computed
                self._seen[name] = part.terms
                terms[name] = dict(part.terms)
                for term, value in part.terms.items():
                    self._means.add(make_tag(getattr(part, "kind", "loss"), name, term), value)
        return terms

    def end(self) -> None:
        """Let go of the values."""
        self._recorded, self._seen = {}, {}
