"""A call that is made again in the backward pass, in the state in which it was made the first time.

    output = recomputed(unet, unet.forward, latents, t, embeddings)

Checkpointing (Chen et al., 2016) drops the activations of a call and computes them again during backward. By then the
network may be another one: a pipeline has put its attention processors back, a callback has set another adapter weight,
a cache has been emptied, an average has lent its weights. So the attributes of the network, of all its parts and of
what these hold (processors, hooks, caches) are remembered, and put back while the call is made again. Weights and
tensors are not copied: when these have changed, the backward pass raises.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.checkpoint import checkpoint

from qa_hooks.integrations.diffusers.gradient_checks import parts

PLAIN = (bool, int, float, complex, str, bytes, type(None))
FOREIGN = ("torch", "numpy", "builtins", "functools", "types", "accelerate", "lightning", "pytorch_lightning")
DEPTH = 5  # attributes of attributes: a hook's state manager keeps the states of a cache, which hold tensors


def recomputed(module: nn.Module, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function(*args, **kwargs)` returns; its activations are computed again in the backward pass.

    Args:
        module: the network that the function calls, whose state is remembered.
        function: `module.forward`, or a function around it.
        args, kwargs: of the function.

    Raises:
        RuntimeError: from the backward pass: weights or inputs have changed since, or the call cannot be made again.
    """
    # Dynamo must not trace this bookkeeping, only the function.
    state, first = torch.compiler.disable(CallState)(module, (args, kwargs)), True
    check = torch.compiler.disable(state.check)
    again = _copied((args, kwargs))  # networks take things out of lists that they are given

    def run() -> Any:
        nonlocal first
        if first:
            first = False
            return function(*args, **kwargs)
        check()
        with state.restored():
            try:
                positional, named = _copied(again)
                return function(*positional, **named)
            except (AttributeError, LookupError, TypeError, ValueError, AssertionError) as error:
                raise RuntimeError(
                    f"{state.name} could not be called again in the backward pass ({error}): "
                    "use checkpoint=False, which keeps the activations instead"
                ) from error

    return checkpoint(run, use_reentrant=False)


def check_recomputable(module: nn.Module) -> None:
    """Raise a `ValueError` for a network whose calls cannot be made again in the backward pass.

    Diffusers' layerwise casting lends each layer its weights in a wider type for the length of its call. A convolution
    saves the parameter itself for its gradient, which by then is narrow again.
    """
    for name, part in module.named_modules():
        hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
        if "layerwise_casting" in hooks and isinstance(part, _ConvNd):
            raise ValueError(
                f"{type(module).__name__} uses enable_layerwise_casting, under which a convolution such as {name!r} "
                "cannot be called again in the backward pass: use checkpoint=False (with a compute_dtype of bfloat16), "
                "or load the model in bfloat16 as a whole"
            )


def _same(before: Tensor, now: Tensor) -> bool:
    """Equal to the bit; a NaN, which memory that nobody has set may hold, equals a NaN."""
    return torch.equal(before, now) or bool(((before == now) | (before.isnan() & now.isnan())).all())


class CallState:
    """What a call of a network depends on besides its arguments' values: attributes, weights, versions of inputs.

    Args:
        module: the network. Its own hooks and an exchanged `forward` are not part of it: they belong to the caller.
        inputs: of the call; what they hold in attributes (a cache of keys and values) is part of the state.
    """

    def __init__(self, module: nn.Module, inputs: Any = ()) -> None:
        self.module, self.name = module, type(module).__name__
        owners = list(_owners(module, inputs))
        self.attributes = [(owner, _copied(self._attributes(owner))) for owner in owners]
        objects = [vars(owner) for owner in owners if not isinstance(owner, nn.Module)]
        self.inputs = [(tensor, tensor._version) for tensor in parts((inputs, objects)) if isinstance(tensor, Tensor)]
        self.weights = list(module.parameters())
        self.flags = [(p, p.requires_grad) for p in self.weights]
        self.trained = [(p, p._version) for p in self.weights if p.requires_grad]
        self.values = self._values()

    def check(self) -> None:
        """Raise a `RuntimeError` when weights or inputs have changed since the call."""
        changed = any(p._version != version for p, version in self.trained)
        if changed or not all(map(_same, self.values, self._values())):
            raise RuntimeError(
                f"weights of {self.name} have changed between sampling and backward, so the gradient would be that of "
                "neither: call backward before optimizer.step(), and put back weights that an average has lent"
            )
        if any(tensor._version != version for tensor, version in self.inputs):
            raise RuntimeError(
                f"an input of {self.name} was changed in place between sampling and backward (by a callback, or the "
                "pipeline): use checkpoint=False, or make a new tensor instead"
            )

    @torch.no_grad()
    def _values(self) -> list[Tensor]:
        """Numbers that tell the weights' values: norms, and the sums of trained weights, which know the sign.

        `.data` writes past autograd's count of versions. Weights of one byte (quantised, float8) are left out.
        """
        known = [
            (p, trained) for p, trained in self.flags
            if p.is_floating_point() and p.itemsize > 1 and p.numel() and not p.is_meta
        ]  # fmt: skip
        groups: dict[Any, list[Tensor]] = {}
        for p, _ in known:
            groups.setdefault((p.device, p.dtype), []).append(p.detach())
        found = [torch.stack(torch._foreach_norm(group)) for group in groups.values()]
        return found + [p.sum() for p, trained in known if trained]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Inside this block, all attributes have the values that they had when this object was made."""
        now = [(p, p.requires_grad) for p in self.weights]
        replaced = torch.compiler.disable(self._put_back)()
        _set_flags(self.flags)  # a parameter that is frozen by now saved something for its gradient
        try:
            yield
        finally:
            _set_flags(now)
            torch.compiler.disable(self._undo)(replaced)

    def _put_back(self) -> list[tuple[Any, dict[str, Any]]]:
        replaced = []
        for owner, held in self.attributes:
            now = self._attributes(owner)
            if not _alike(now, held):
                replaced.append((owner, now))
                _replace(vars(owner), now, _copied(held))
        return replaced

    def _undo(self, replaced: list[tuple[Any, dict[str, Any]]]) -> None:
        for owner, before in replaced:
            _replace(vars(owner), self._attributes(owner), before)

    def _attributes(self, owner: Any) -> dict[str, Any]:
        own = vars(owner)
        return {name: value for name, value in own.items() if not (owner is self.module and _callers(name))}


def _set_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for p, required in flags:
        if p.requires_grad != required:
            p.requires_grad_(required)


def _callers(name: str) -> bool:
    return name == "forward" or "_hooks" in name


def _replace(own: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in old:
        own.pop(name, None)
    own.update(new)


def _owners(module: nn.Module, inputs: Any) -> Iterator[Any]:
    """The network's parts, and the objects that these and the inputs lead to."""
    seen: set[int] = set()
    found: list[tuple[Any, int]] = [(part, 0) for part in module.modules()]
    found += [(part, 1) for part in parts(inputs) if _is_object(part)]
    while found:
        owner, depth = found.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        yield owner
        if depth < DEPTH:
            found += [(part, depth + 1) for part in parts(vars(owner)) if _is_object(part)]


def _is_object(value: Any) -> bool:
    """True for an object with attributes of its own that is no network, tensor, function or class."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, (Tensor, nn.Module, type)) or not hasattr(value, "__dict__"):
        return False
    return kind.__module__.partition(".")[0] not in FOREIGN


def _copied(value: Any) -> Any:
    """Nested containers anew, with the same things in them."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        return kind((key, _copied(part)) for key, part in value.items())
    return kind(map(_copied, value)) if kind in (list, tuple, set) else value


def _alike(a: Any, b: Any) -> bool:
    """The same things, or equal plain values, in nested containers."""
    kind = type(a)
    if a is b or kind is not type(b):
        return a is b
    if kind in PLAIN:
        return bool(a == b)
    if kind in (dict, OrderedDict):
        return a.keys() == b.keys() and all(_alike(part, b[key]) for key, part in a.items())
    if kind in (list, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return kind is set and bool(a == b)
