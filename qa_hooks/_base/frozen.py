"""Networks that are used and never trained: in no parameters and no state, out of reach of `.train()` and `.half()`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Applied = TypeVar("Applied", bound=nn.Module)


def freeze(module: Applied) -> Applied:
    """Eval mode and no parameter gradients, in place; gradients to the module's *input* still flow."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def moves_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `.to(device)` does without what `.half()` does: for networks that keep their own precision."""

    def move(tensor: Tensor) -> Tensor:
        device = fn(torch.empty(0, device=tensor.device)).device
        nowhere = device.type == "mps" and tensor.dtype == torch.float64  # which MPS does not have
        return tensor if nowhere else tensor.to(device)

    return move


class KeepsFrozen(nn.Module):
    """A module that uses frozen networks without owning them.

    They follow `.to(device)`, but are in no `parameters()` and no `state_dict()`, and `.train()` and `.half()` do not
    reach them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._frozen: list[nn.Module] = []  # a list hides them from nn.Module's registry

    def keep(self, module: Applied) -> Applied:
        """Freeze `module` and take it along."""
        self._frozen.append(freeze(module))
        return module

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsFrozen:
        for module in self._frozen:
            module._apply(moves_only(fn))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
