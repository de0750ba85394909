"""What a function of the user's reaches, as far as Python shows it: networks, and state that cannot be put back."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """The networks that a callable uses, as far as Python shows them; for warnings, not for guarantees.

    Looks at the callable itself, the object it is bound to, its partial arguments, the variables of its closure and the
    globals it names, and at the attributes of each of these.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> modules_of(lambda n: net(torch.zeros(n, 2))) == [net]
        True
    """
    found = [value for _, value in _reached(function) if isinstance(value, nn.Module)]
    return list({id(module): module for module in found}.values())


class Traces:
    """Notices what a function moves and `isolated` cannot put back: random generators and plain counters of the user's.

    Example:
        >>> class Sampler:
        ...     def __init__(self):
        ...         self.calls = 0
        ...     def __call__(self, n, generator):
        ...         self.calls += 1
        >>> sampler = Sampler()
        >>> traces = Traces(sampler)
        >>> sampler(1, None)
        >>> traces.moved()
        ['calls of Sampler']
    """

    def __init__(self, *functions: Callable[..., Any]) -> None:
        self._functions = functions
        self._before = self._versions()

    def moved(self) -> list[str]:
        """The names of what is not as it was when this object was made."""
        now = self._versions()
        kept = now.keys() & self._before.keys()
        return sorted({now[key][0] for key in kept if now[key] != self._before[key]})

    def _versions(self) -> dict[tuple[int, str], tuple[str, Any]]:
        """What may move, by owner and name: words for a message, and a value that differs once it has moved."""
        found = {}
        for function in self._functions:
            for name, owner in _reached(function):
                parts = list(owner.modules()) if isinstance(owner, nn.Module) else [owner]
                values = [(id(function), name, name, owner)]
                values += [(id(p), key, f"{key} of {type(p).__name__}", v) for p in parts for key, v in _attributes(p)]
                for number, key, words, value in values:
                    version = _version(value)
                    if version is not None:
                        found[number, key] = words, version
        return found


def _reached(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names and values: the callable, what it is bound to, its arguments, closure and globals, and their attributes."""
    near: list[tuple[str, Any]] = [("the callable", function)]
    while isinstance(function, functools.partial):
        near += [(f"argument {number}", value) for number, value in enumerate(function.args)]
        near += list(function.keywords.items())
        function = function.func
    near.append(("self", getattr(function, "__self__", None)))
    plain = getattr(function, "__func__", function)
    if not inspect.isfunction(plain) and not isinstance(plain, (nn.Module, type)):
        plain = getattr(type(plain), "__call__", None)  # noqa: B004  # of an object, for the globals that it names
    if inspect.isfunction(plain):
        with contextlib.suppress(ValueError):  # a closure variable that is assigned later
            named = inspect.getclosurevars(plain)
            near += [*named.nonlocals.items(), *named.globals.items()]
    far = [
        (f"{key} of {type(owner).__name__}", value)
        for _, owner in near
        if not isinstance(owner, nn.Module)
        for key, value in _attributes(owner)
    ]
    return [(name, value) for name, value in [*near, *far] if value is not None and not inspect.ismodule(value)]


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    if owner is None or isinstance(owner, type) or inspect.ismodule(owner) or inspect.isroutine(owner):
        return
    for key, value in list(getattr(owner, "__dict__", {}).items()):
        if key not in ("training", "__wrapped__"):
            yield key, value


def _version(value: Any) -> Any:
    """What is another one when a counter or a generator has moved; None for everything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    if isinstance(value, torch.Generator):
        return bytes(value.get_state().tolist())
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state(legacy=False))
    if isinstance(value, random.Random):
        return value.getstate()
    return None
