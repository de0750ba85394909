"""What protects the user's run from us: our own randomness, and a room in which monitors leave no trace."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from qa_hooks._base.protection import ProtectedCalls, Snapshot


@contextlib.contextmanager
def isolated(*modules: nn.Module) -> Iterator[None]:
    """A block for monitors: no gradient, no autocast, networks in eval mode. On exit the user's state is restored.

    When the block ends, also with an error, these are as before:

    - Python's, NumPy's, the CPU's and the current GPU's random state, grad mode and autocast;
    - the modes and the buffers of training parts of `modules`;
    - of any network that is called inside, however the caller came by it, right after each call: its modes, its buffers
      (also those that move in eval mode) and other tensors among its attributes, and the weights that its forward hooks
      or its training parts change, also those of a network that a hook updates. So code which itself switches modes or
      swaps weights works as it would outside.

    A network is in eval mode during its calls. One of `modules` that the code inside switches to train mode itself is
    called in train mode, and is put back as well. Compiled networks run uncompiled (before torch 2.6 they are protected
    only when named). Other threads are left alone.

    Not protected: random generators of the user's own and plain Python counters, which a monitor notices at its first
    measurement and says (`qa_hooks._base.reach.Traces`); weights of a part in eval mode that its own `forward` changes
    (their version tells: it is said, and from then on they are put back); weights that change only at a later call, by
    `.data`; a plain tensor of a network that a call replaces by another; lists, files and anything else that the
    user's code keeps.

    Args:
        modules: networks to protect from the start, for code that changes them without calling them.

    Example:
        >>> net = nn.BatchNorm1d(3)
        >>> with isolated():
        ...     noise = net(torch.randn(8, 3))
        >>> net.training, int(net.num_batches_tracked)
        (True, 0)
    """
    room = Snapshot()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    device_types = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    with contextlib.ExitStack() as stack:
        stack.callback(room.restore)
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled())
        for device_type in device_types:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_protected_calls(room))
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


_THREAD = threading.local()


@contextlib.contextmanager
def _protected_calls(room: Snapshot) -> Iterator[None]:
    """Protect each network during its calls; the rooms of one thread share what does so."""
    rooms = getattr(_THREAD, "rooms", [])
    if rooms:
        rooms.append(room)
        try:
            yield
        finally:
            rooms.remove(room)
        return
    _THREAD.rooms = rooms = [room]
    calls = ProtectedCalls(rooms)
    hooks = register_module_forward_pre_hook(calls.before), register_module_forward_hook(calls.after, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        calls.end()
        _THREAD.rooms = []


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
