"""What protects the user's run from us: our own randomness, and a room in which monitors leave no trace."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from qa_hooks.processes import rank

Applied = TypeVar("Applied", bound=nn.Module)


class OwnRandom:
    """Random numbers that never touch the global state: a CPU generator seeded afresh for each draw (seed, rank, draw).

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
        generator = torch.Generator().manual_seed(mixed_key(self.seed, rank(), self.draws))
        self.draws += 1
        return generator


def mixed_key(*parts: int) -> int:
    """A seed of 64 bits from several small numbers (splitmix64, Steele et al. 2014): near keys give unrelated streams.

    Example:
        >>> len({mixed_key(seed, draw) for seed in range(30) for draw in range(30)})
        900
    """
    key = 0
    for part in parts:
        key = (key ^ part) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        key = (key ^ key >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        key = (key ^ key >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        key ^= key >> 31
    return key >> 1


@contextlib.contextmanager
def isolated(*modules: nn.Module) -> Iterator[None]:
    """A room for monitors: no gradient, no autocast, networks in eval mode; and outside nothing has moved.

    When the block ends, also with an error, Python's, NumPy's, the CPU's and the current GPU's random state, grad mode
    and autocast are as before, and so are the training flag and the buffers of each submodule of `modules` and of every
    network that was called inside, however the caller came by it: networks are protected at their first call.

    Args:
        modules: networks to protect from the start, for code that changes them without calling them.

    Example:
        >>> net = nn.BatchNorm1d(3)
        >>> with isolated():
        ...     noise = net(torch.randn(8, 3))
        >>> net.training, int(net.num_batches_tracked)
        (True, 0)
    """
    room = _Room()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    device_types = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    with contextlib.ExitStack() as stack:
        stack.callback(room.restore)
        stack.enter_context(torch.no_grad())
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        handle = register_module_forward_pre_hook(room.before_forward)
        stack.callback(handle.remove)
        try:
            for module in modules:
                room.protect(module)
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
            if cuda_state is not None:
                torch.cuda.set_rng_state(cuda_state)


class _Room:
    """Remembers the flags and buffers of networks, and puts them back."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.flags: dict[nn.Module, bool] = {}
        self.buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def before_forward(self, module: nn.Module, _args: Any) -> None:
        if module not in self.flags and threading.get_ident() == self.thread:
            self.protect(module)

    def protect(self, module: nn.Module) -> None:
        for part in module.modules():
            if part in self.flags:
                continue
            self.flags[part] = part.training
            self.buffers += [(part, n, b, b.detach().clone()) for n, b in part._buffers.items() if b is not None]
            part.training = False

    def restore(self) -> None:
        for part, training in self.flags.items():
            part.training = training
        for part, name, buffer, saved in self.buffers:
            part._buffers[name] = buffer
            buffer.data.copy_(saved)  # through .data: a graph of the user's that saved the buffer stays valid


def modules_of(function: Callable[..., Any]) -> list[nn.Module]:
    """The networks that a callable uses, as far as Python shows them; for warnings, not for guarantees.

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
        with contextlib.suppress(ValueError):  # a closure variable that is assigned later
            named = inspect.getclosurevars(plain)
            seen += [*named.nonlocals.values(), *named.globals.values()]
    found = [value for value in seen if isinstance(value, nn.Module)]
    for owner in seen:
        if owner is not None and not isinstance(owner, (nn.Module, type)) and not inspect.ismodule(owner):
            found += [value for value in getattr(owner, "__dict__", {}).values() if isinstance(value, nn.Module)]
    return list({id(module): module for module in found}.values())


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
