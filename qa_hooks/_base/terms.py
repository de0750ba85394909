"""`.terms`: the values that a loss, penalty or weighter publishes with its result, and how to listen to them."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Hear = Callable[[Mapping[str, Tensor]], None]

# Weak, and beside the objects: copies and pickles of a loss lose what listens to it.
_LISTENERS: weakref.WeakKeyDictionary[Any, list[weakref.WeakMethod[Hear]]] = weakref.WeakKeyDictionary()


def publish(owner: Any, terms: dict[str, Tensor]) -> None:
    """Set `owner.terms` to the terms of a call, and tell those who listen."""
    owner.terms = terms
    if torch.compiler.is_compiling():
        return
    for listener in _LISTENERS.get(owner, ()):
        hear = listener()
        if hear is not None:
            hear(terms)


def listen(owner: Any, hear: Hear) -> None:
    """Call the bound method `hear(terms)` at each `publish(owner, terms)`, as long as its object lives.

    An object that takes no weak reference is not listened to.
    """
    with contextlib.suppress(TypeError):
        _LISTENERS.setdefault(owner, []).append(weakref.WeakMethod(hear))


def stop_listening(owner: Any, hear: Hear) -> None:
    """The end of `listen`."""
    with contextlib.suppress(TypeError):
        _LISTENERS[owner] = [listener for listener in _LISTENERS.get(owner, ()) if listener() not in (None, hear)]
