"""Networks that are used and never trained: in no parameters and no state, out of reach of `.train()` and `.half()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Applied = TypeVar("Applied", bound=nn.Module)
Kept = TypeVar("Kept")


def freeze(module: Applied) -> Applied:
    """Eval mode and no parameter gradients, in place; gradients to the module's *input* still flow."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def moves_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `.to(device)` does without what `.half()` does: for networks that keep their own precision."""

    def move(tensor: Tensor) -> Tensor:
        device = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device)).device
        nowhere = device.type == "mps" and tensor.dtype == torch.float64  # which MPS does not have
        return tensor if nowhere else tensor.to(device)

    return move


class KeepsFrozen(nn.Module):
    """A module that uses frozen networks without owning them: `self.network = self.keep(network)`.

    They follow `.to(device)`, but are in no `parameters()` and no `state_dict()`, and `.train()` and `.half()` do not
    reach them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []

    def keep(self, value: Kept) -> Kept:
        """Freeze a network and take it along; anything else is given back as it is."""
        if isinstance(value, nn.Module):
            self._frozen.append(freeze(value))
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module registers every network that becomes an attribute, and what is registered is in the user's
        # checkpoint, optimizer and modes: a network that is kept becomes a plain attribute.
        if isinstance(value, nn.Module) and any(value is kept for kept in self.__dict__.get("_frozen", ())):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsFrozen:
        for module in self._frozen:
            module._apply(moves_only(fn))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
