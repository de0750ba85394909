"""Networks that a monitor uses are put back as they were: modes, buffers, and weights that a call moves.

What a network moves in a call is learnt at its first call: all its buffers and plain tensors, and the weights of parts
that train or have forward hooks, are kept aside, compared afterwards and put back; later calls keep aside what was seen
to move alone. A network that a hook reaches, such as an average that it updates, is protected with the hook's own.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import check_initialised, warn
from qa_hooks._base.reach import modules_of

# The tensors of a part of a network that its calls move, by name; a part that is not in it has not been called yet.
_MOVES: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()


class _Kept(NamedTuple):
    """A tensor of a network, its version, and its values where they are kept aside."""

    part: nn.Module
    name: str
    tensor: Tensor
    version: int
    values: Tensor | None


class Snapshot:
    """Modes and tensors of networks, remembered before they are used.

    Args:
        outer: of rooms around this one: a network that they put into eval mode, and that trains now, has been switched
            by the user's own function, and stays as it wants.
    """

    def __init__(self, outer: Sequence[Snapshot] = ()) -> None:
        self.outer = outer
        self.flags: dict[nn.Module, bool] = {}
        self.kept: list[_Kept] = []

    def protect(self, module: nn.Module, *, called: bool = False) -> None:
        """Remember all parts of a network, then put them into eval mode.

        Args:
            module: the network.
            called: it is about to be called: what the call moves shall be put back. Otherwise only the buffers of parts
                that train are remembered.
        """
        if called:
            check_initialised(module)
        hooked = _hooked_parts(module) if called else set()
        new = [part for part in dict.fromkeys((*module.modules(), *hooked)) if part not in self.flags]
        # All flags are read before any is set: a compiled module mirrors the one inside it.
        self.flags.update({part: part.training for part in new})
        for part in new:
            self._keep(part, called=called, hooked=part in hooked)
        for part in new:
            part.training = part.training and any(part in room.flags for room in self.outer)

    def restore(self) -> None:
        for part, training in self.flags.items():
            part.training = training
        for kept in self.kept:
            if kept.name in kept.part._buffers:
                kept.part._buffers[kept.name] = kept.tensor
            try:
                self._put_back(kept)
            except RuntimeError as error:
                warn(f"the tensor {kept.name!r} of {type(kept.part).__name__} could not be put back: {error}")

    def _keep(self, part: nn.Module, *, called: bool, hooked: bool) -> None:
        first = called and part not in _MOVES
        moves = _MOVES.setdefault(part, set()) if called else set()
        plain = {name: value for name, value in part.__dict__.items() if isinstance(value, Tensor)}
        weights_move = first and (hooked or part.training)
        for tensors, learning in ((part._buffers, first), (plain, first), (part._parameters, weights_move)):
            for name, tensor in tensors.items():
                if tensor is None or torch.nn.parameter.is_lazy(tensor):
                    continue
                aside = learning or name in moves or (tensors is part._buffers and part.training)
                if called or aside:
                    values = tensor.detach().clone() if aside else None
                    self.kept.append(_Kept(part, name, tensor, version_of(tensor), values))

    def _put_back(self, kept: _Kept) -> None:
        moved = version_of(kept.tensor) != kept.version
        if kept.values is not None and not torch.equal(kept.tensor, kept.values):
            kept.tensor.data.copy_(kept.values)  # through .data: a graph of the user's that saved it stays valid
            moved = True
        elif kept.values is None and moved:
            warn(
                f"a monitor's call moved {kept.name!r} of {type(kept.part).__name__}, which has changed in no call "
                "before and is not put back this time; it will be from now on"
            )
        if moved and kept.part in _MOVES:
            _MOVES[kept.part].add(kept.name)


class ProtectedCalls:
    """Protects each network for the length of a call, from this thread and not from within another network's call.

    `before` and `after` are hooks of every module. Those run before a module's own forward hooks, so one more goes to
    the end of these, where there are any, and puts back what they have changed.
    """

    def __init__(self, rooms: Sequence[Snapshot]) -> None:
        self.thread = threading.get_ident()
        self.rooms = rooms
        self.outermost: nn.Module | None = None
        self.depth = 0
        self.snapshot = Snapshot(rooms)
        self._done: Snapshot | None = None
        self._last: Any = None

    def before(self, module: nn.Module, _args: Any) -> None:
        if threading.get_ident() != self.thread:
            return
        if self.outermost is None:
            self._forget_last()
            self.outermost = module
            if module._forward_hooks:
                self._last = module.register_forward_hook(self._after_own_hooks)
        if module is self.outermost:
            self.depth += 1
        if module not in self.snapshot.flags:
            self.snapshot.protect(module, called=True)

    def after(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if module is self.outermost and threading.get_ident() == self.thread:
            self.depth -= 1
            if not self.depth:
                self._done = self.snapshot
                self._put_back()

    def end(self) -> None:
        """Put everything back when the block ends, also by an error."""
        self._put_back()
        self._forget_last()

    def _put_back(self) -> None:
        self.snapshot.restore()
        self.outermost, self.depth, self.snapshot = None, 0, Snapshot(self.rooms)

    def _after_own_hooks(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._done is not None and threading.get_ident() == self.thread:
            self._done.restore()
            self._forget_last()

    def _forget_last(self) -> None:
        if self._last is not None:
            self._last.remove()
        self._last = self._done = None


def _hooked_parts(module: nn.Module) -> set[nn.Module]:
    """All parts whose weights the user's forward hooks may change: below a hook's module, or what the hook reaches."""
    hooked: set[nn.Module] = set()
    for part in module.modules():
        for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values()):
            if not type(hook).__module__.startswith("qa_hooks."):
                for reached in (part, *modules_of(hook)):
                    if reached not in hooked:
                        hooked.update(reached.modules())
    return hooked


def version_of(tensor: Tensor) -> int:
    """How often autograd has seen a tensor change in place; -1 for one made in inference mode, which nobody counts."""
    return -1 if tensor.is_inference() else tensor._version
