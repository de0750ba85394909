"""Images of the user's loop for the callbacks: what it hands over, and what a network puts out (`Hooks.capture`)."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.checks import arrived, channel_hint, warn
from qa_hooks._base.protection import version_of

Handed = Tensor | list[Tensor]  # images of one size, or of several


def detached(name: str, images: Any) -> Handed:
    """What the loop hands over under this name, without its graph; `TypeError` for what are no images."""
    if isinstance(images, Tensor):
        return images.detach()
    got = type(images).__name__
    if isinstance(images, (list, tuple)):
        other = next((type(image).__name__ for image in images if not isinstance(image, Tensor)), None)
        if other is None:
            return [image.detach() for image in images]
        got = f"a {got} with {other}"
    raise TypeError(
        f"hooks.step({name}=...) takes a tensor (N, C, H, W), or a list of tensors (C, H, W) where sizes differ, got "
        f"{got}"
    )


class Captures:
    """The last output of each captured module, by the name that the user gave it.

    Attributes:
        images: `(N, C, H, W)`, detached.

    Args:
        on_output: called at each output of the user's loop.
    """

    def __init__(self, on_output: Callable[[], None]) -> None:
        self._kept: dict[str, tuple[Tensor, int]] = {}
        self._told: set[str] = set()
        self._paused = False
        self._on_output = on_output
        self._handles: list[Any] = []

    def add(self, name: str, module: nn.Module) -> None:
        """Keep this module's outputs from now on."""
        if not isinstance(module, nn.Module):
            raise TypeError(f"capture needs a module whose outputs are images, got {type(module).__name__}")
        self._handles.append(module.register_forward_hook(_Capture(self, name, module)))

    @property
    def images(self) -> dict[str, Tensor]:
        for name, (image, version) in self._kept.items():
            if version_of(image) != version and name not in self._told:
                self._told.add(name)
                warn(
                    f"capture({name!r}): the loop changes the module's output in place, and callbacks see what it has "
                    "made of it: write image = image * 2 for image *= 2 if they should see the output"
                )
        return {name: image for name, (image, _) in self._kept.items()}

    def keep(self, name: str, output: Any) -> bool:
        """Keep one output. If it is not a batch of images, warn and return False, so that it is not tried again."""
        if self._paused:
            return True
        self._on_output()
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] in (1, 3):
            self._kept[name] = output.detach(), version_of(output)
            return True
        what = f"capture({name!r}): the output is no batch of images (N, 1 or 3, H, W)"
        hint = channel_hint(output) if isinstance(output, Tensor) else ""
        warn(f"{what} but {arrived(output)}; not captured{hint}")
        return False

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Inside it nothing is kept: what monitors make a module put out does not count."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def end(self) -> None:
        """Remove the hooks from the modules, and forget the images."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._kept = [], {}


class _Capture:
    """The forward hook: it keeps nothing alive, and copies and pickles of the module lose it."""

    def __init__(self, captures: Captures, name: str, module: nn.Module) -> None:
        self.name = name
        self._captures: Callable[[], Captures | None] = weakref.ref(captures)
        self._module = weakref.ref(module)

    def __call__(self, module: nn.Module, _args: Any, output: Any) -> None:
        captures = self._captures()
        if captures is not None and module is self._module() and not captures.keep(self.name, output):
            self._captures = _nobody

    def __reduce__(self) -> Any:
        return _Silent, ()


class _Silent:
    """What is left of a capture in a copied or saved module."""

    def __call__(self, *_: Any) -> None:
        return None


def _nobody() -> None:
    return None
