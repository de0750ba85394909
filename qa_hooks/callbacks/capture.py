"""The forward hook behind `Hooks.capture`: it keeps nothing alive, and copies and pickles of the module lose it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import nn


class Capture:
    """Gives the outputs of one module, and of no copy of it, to the method `keep(name, output)` of one Hooks."""

    def __init__(self, keep: Callable[[str, Any], bool], name: str, module: nn.Module) -> None:
        self.name = name
        self._keep: Callable[[], Callable[[str, Any], bool] | None] = weakref.WeakMethod(keep)
        self._module = weakref.ref(module)

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        keep = self._keep()
        if keep is not None and module is self._module() and not keep(self.name, output):
            self._keep = _nobody

    def __reduce__(self) -> Any:
        return _Silent, ()


class _Silent:
    """What is left of a capture in a copied or saved module."""

    def __call__(self, *_: Any) -> None:
        return None


def _nobody() -> None:
    return None
