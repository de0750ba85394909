"""The forward hook behind `Hooks.capture`: it keeps nothing alive, and copies and pickles of the module lose it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from qa_hooks.callbacks.hooks import Hooks


class Capture:
    """Gives the outputs of one module, and of no copy of it, to one Hooks."""

    def __init__(self, hooks: Hooks, name: str, module: nn.Module) -> None:
        self.name = name
        self._hooks: Callable[[], Hooks | None] = weakref.ref(hooks)
        self._module = weakref.ref(module)

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        hooks = self._hooks()
        if hooks is not None and module is self._module() and not hooks.keep_captured(self.name, output):
            self._hooks = _nobody

    def __reduce__(self) -> Any:
        return _Silent, ()


class _Silent:
    """What is left of a capture in a copied or saved module."""

    def __call__(self, *_: Any) -> None:
        return None


def _nobody() -> None:
    return None
