"""What protects the user's run from us: our own randomness, and a room in which monitors leave no trace."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Applied = TypeVar("Applied", bound=nn.Module)


class OwnRandom:
    """Random numbers that never touch the global state: one fresh CPU generator per draw, keyed (seed, rank, draw).

    The number of draws is the whole state, the same on all ranks, so it is saved without a collective and a resumed run
    goes on with the numbers it would have had.

    Example:
        >>> first = torch.rand(2, generator=OwnRandom(0).generator())
        >>> bool((first == torch.rand(2, generator=OwnRandom(0).generator())).all())
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        self.draws = 0

    def generator(self) -> torch.Generator:
        """The generator of the next draw."""
        from qa_hooks.stats import rank

        key = np.random.SeedSequence((abs(self.seed), rank(), self.draws)).generate_state(2, np.uint32)
        self.draws += 1
        return torch.Generator().manual_seed(int(key[0]) << 31 | int(key[1]) >> 1)


@contextlib.contextmanager
def isolated(*modules: nn.Module) -> Iterator[None]:
    """A room for monitors: inside there is no gradient, no autocast, and `modules` are in eval mode; outside nothing
    moved.

    Python's, NumPy's, the CPU's and the current GPU's random state, grad mode, autocast, the training flag of each
    submodule and each buffer of `modules` are as before when the block ends, also when it ends with an error.

    Args:
        modules: networks that the block calls; `modules_of(function)` finds those that a function uses.

    Example:
        >>> before = torch.get_rng_state()
        >>> with isolated():
        ...     noise = torch.randn(3)
        >>> bool((torch.get_rng_state() == before).all())
        True
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    flags = [(part, part.training) for part in parts]
    buffers = [
        (part, name, buffer, buffer.detach().clone())
        for part in parts
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    device_types = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            for device_type in device_types:
                stack.enter_context(torch.autocast(device_type, enabled=False))
            for part in parts:
                part.training = False
            yield
    finally:
        for part, training in flags:
            part.training = training
        for part, name, buffer, saved in buffers:
            part._buffers[name] = buffer
            buffer.data.copy_(saved)  # through .data: a graph of the user's that saved the buffer stays valid
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """The networks that a callable uses, as far as Python shows them, so that `isolated` can protect them unasked.

    Looks at the callable itself, the object it is bound to, its partial arguments, the variables of its closure and the
    globals it names, and at the attributes of each of these.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> modules_of(lambda n: net(torch.zeros(n, 2))) == [net]
        True
    """
    seen: list[Any] = [function]
    while isinstance(function, functools.partial):
        seen += [*function.args, *function.keywords.values()]
        function = function.func
    seen.append(getattr(function, "__self__", None))
    plain = getattr(function, "__func__", function)
    if inspect.isfunction(plain):
        named = inspect.getclosurevars(plain)
        seen += [*named.nonlocals.values(), *named.globals.values()]
    found = [value for value in seen if isinstance(value, nn.Module)]
    for owner in seen:
        if owner is not None and not isinstance(owner, (nn.Module, type)) and not inspect.ismodule(owner):
            found += [value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return list({id(module): module for module in found}.values())


def moves_only(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What `.to(device)` does without what `.half()` does: for networks that keep their own precision."""

    def move(tensor: Tensor) -> Tensor:
        device = fn(torch.empty(0, device=tensor.device)).device
        nowhere = device.type == "mps" and tensor.dtype == torch.float64  # which MPS does not have
        return tensor if nowhere else tensor.to(device)

    return move


def freeze(module: Applied) -> Applied:
    """Eval mode and no parameter gradients, in place; gradients to the module's *input* still flow."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


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
