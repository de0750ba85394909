"""The numbers of a run that are logged as means: the terms of losses and the like, and what the user records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qa_hooks._base.terms import listen, stop_listening
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
        self._tracked = [_Tracked(name, part, means) for name, part in self.track.items()]
        self._recorded: dict[str, Tensor | float] = {}

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
        """What is new since the last step, `{track: {term: mean of the calls}}`, with what was recorded as "train"."""
        terms: Terms = {"train": self._recorded}
        self._recorded = {}
        for tracked in self._tracked:
            new = tracked.take()
            if new:
                terms[tracked.name] = new
        return terms

    def end(self) -> None:
        """Let go of the values, and hear of no more."""
        self._recorded = {}
        for tracked in self._tracked:
            tracked.end()


class _Tracked:
    """The terms of one part: of each of its calls, where it tells them; otherwise of its last call before a step."""

    def __init__(self, name: str, part: Any, means: Means) -> None:
        self.name, self.part, self._means = name, part, means
        self._new = Means()
        self._heard: Any = None
        listen(part, self.hear)

    def hear(self, terms: Mapping[str, Tensor | float]) -> None:
        """The terms of a call; a new dictionary each time they are computed."""
        self._heard = terms
        for term, value in terms.items():
            self._means.add(make_tag(getattr(self.part, "kind", "loss"), self.name, term), value)
            self._new.add(term, value)

    def take(self) -> dict[str, Tensor | float]:
        if self.part.terms is not self._heard:  # a part of the user's own, or one that runs compiled
            self.hear(self.part.terms)
        return self._new.take()

    def end(self) -> None:
        stop_listening(self.part, self.hear)
        self._new, self._heard = Means(), None
