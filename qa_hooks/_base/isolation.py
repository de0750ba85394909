"""What protects the user's run from us: our own randomness, and a room in which monitors leave no trace."""

from __future__ import annotations

import contextlib
import functools
import inspect
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


@contextlib.contextmanager
def isolated(*modules: nn.Module) -> Iterator[None]:
    """A room for monitors: no gradient, no autocast, networks in eval mode; and outside nothing has moved.

    When the block ends, also with an error, Python's, NumPy's, the CPU's and the current GPU's random state, grad mode
    and autocast are as before. Networks are protected in two ways: the training flags and buffers of `modules` are put
    back at the end of the block; and any network that is called inside, however the caller came by it, is in eval mode
    during the call and has its flags and buffers put back right after it, so that code which itself switches modes or
    swaps weights works as it would outside. Compiled networks run uncompiled (before torch 2.6 they are protected only
    when named). Other threads are left alone.

    Args:
        modules: networks to protect from the start, for code that changes them without calling them.

    Example:
        >>> net = nn.BatchNorm1d(3)
        >>> with isolated():
        ...     noise = net(torch.randn(8, 3))
        >>> net.training, int(net.num_batches_tracked)
        (True, 0)
    """
    room = _Snapshot()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    device_types = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    with contextlib.ExitStack() as stack:
        stack.callback(room.restore)
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled())
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_protected_calls())
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


class _Snapshot:
    """The training flags of networks, and the buffers of those parts that train: the others do not move theirs."""

    def __init__(self) -> None:
        self.flags: dict[nn.Module, bool] = {}
        self.buffers: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def protect(self, module: nn.Module) -> None:
        """Remember all parts of a network, then put them into eval mode."""
        new = [part for part in module.modules() if part not in self.flags]
        # All flags are read before any is set: a compiled module mirrors the one inside it.
        self.flags.update({part: part.training for part in new})
        for part in new:
            if part.training:
                named = ((name, buffer) for name, buffer in part._buffers.items() if buffer is not None)
                self.buffers += [(part, name, buffer, buffer.detach().clone()) for name, buffer in named]
        for part in new:
            part.training = False

    def restore(self) -> None:
        for part, training in self.flags.items():
            part.training = training
        for part, name, buffer, saved in self.buffers:
            part._buffers[name] = buffer
            try:
                if not torch.equal(buffer, saved):
                    buffer.data.copy_(saved)  # through .data: a graph of the user's that saved the buffer stays valid
            except RuntimeError as error:
                warnings.warn(f"the buffer {name!r} of {type(part).__name__} could not be put back: {error}")


_THREAD = threading.local()


@contextlib.contextmanager
def _protected_calls() -> Iterator[None]:
    """Protect each network during its calls; once, when rooms are nested."""
    if getattr(_THREAD, "protected", False):
        yield
        return
    calls = _Calls()
    _THREAD.protected = True
    hooks = register_module_forward_pre_hook(calls.before), register_module_forward_hook(calls.after, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        calls.end()
        _THREAD.protected = False


class _Calls:
    """Protects each network for the length of a call, from this thread and not from within another network's call."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.outermost: nn.Module | None = None
        self.depth = 0
        self.snapshot = _Snapshot()

    def before(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        if self.outermost is None:
            self.outermost = module
        if module is self.outermost:
            self.depth += 1
        if module not in self.snapshot.flags:
            self.snapshot.protect(module)

    def after(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if module is self.outermost and threading.get_ident() == self.thread:
            self.depth -= 1
            if not self.depth:
                self.end()

    def end(self) -> None:
        self.snapshot.restore()
        self.outermost, self.depth, self.snapshot = None, 0, _Snapshot()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled modules and functions run as plain Python inside, where torch can do that (2.6).

    Raises:
        RuntimeError: inside a region that is being compiled.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)
    if set_stance is None or "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(set_stance("force_eager"))
        except RuntimeError as error:
            raise RuntimeError(
                "weighters, penalties and monitors cannot be part of a function that is compiled by torch.compile: "
                "compile the networks, not the function that calls them, or hand the call to it as "
                "torch.compiler.disable(call)"
            ) from error
        yield


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
