"""Does an adapter take part in what the network computes, and does merging it give what was trained? Tried on copies.

Some networks read a layer's weight past the module (`F.linear(x, self.qkv.weight)`), or only in eval mode, when they
fold several convolutions into one. peft's layer hands out the base weight there, so the adapter is never asked, and
nothing says so. Here a copy gets adapters whose B is random; one input goes through it in train and in eval mode; and
the same input goes through a copy with the adapters merged. Where both give the same, training does what it says.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from qa_hooks._base.adapters import import_peft, parameters_of, parts_of
from qa_hooks.integrations.peft.first_call import tensors_in
from qa_hooks.integrations.peft.layers import exactly, put_in, take_out
from qa_hooks.integrations.peft.plain import candidates, is_quantised

TRIAL = "qa_hooks_self_test"
TOLERANCE = 0.01  # of what the adapters change; a layer that is past the adapter is off by 1
SIDES = (32, 64)  # of a drawn image
MODES = {"train": True, "eval": False}


class Example:
    """The arguments of one call of a network."""

    def __init__(self, given: Any) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        if isinstance(given, Mapping):
            self.kwargs = dict(given)
        else:
            self.args = tuple(given) if isinstance(given, (tuple, list)) else (given,)


def failing_layers(network: nn.Module, names: Sequence[str], given: Any) -> dict[str, str] | None:
    """The layers among these whose adapter would not do what it says, with the reason; None when it was not tried.

    Args:
        network: without the new adapter; it is not changed, and neither is any random state.
        names: the layers that are to get LoRA.
        given: an input of the network: a tensor, a tuple of arguments or a dictionary of keywords. None draws one for
            networks that take an image or rows of features as their only argument, and tries nothing for others.

    Raises:
        ValueError: the network does not take the input that was given.
    """
    if any(is_quantised(layer) for layer in candidates(network).values()):
        return None
    examples = list(_drawn(network)) if given is None else [Example(given)]
    if not examples:
        return None
    with _nothing_moves():
        try:
            trial = copy.deepcopy(network).float()
            _put_random_in(trial, names)
        except Exception:  # a network that cannot be copied: tensors of a graph, locks, handles
            return None
        error: Exception | None = None
        for example in examples:
            try:
                return _failing(trial, names, _on(example, network))
            except Exception as problem:  # not the input that this network takes
                error = problem
    if given is not None:
        raise ValueError(f"{type(network).__name__} does not take the example: {error}") from error
    return None


def _failing(trial: nn.Module, names: Sequence[str], example: Example) -> dict[str, str]:
    asked = {mode: _asked(trial, example, training) for mode, training in MODES.items()}
    silent = {name: [mode for mode in MODES if name not in asked[mode]] for name in names}
    unused = "the network reads its weight past the module, or does not use it: it would get no gradient"
    failing = {name: unused for name in names if len(silent[name]) == len(MODES)}
    # An expert that was not chosen is no fault; a convolution that is folded into another one is.
    suspects = {name: modes[0] for name, modes in silent.items() if len(modes) == 1}
    if suspects and not _merges(trial, list(suspects), example):
        failing |= {n: f"the network reads its weight past the module in {mode} mode" for n, mode in suspects.items()}
    rest = [name for name in names if name not in failing]
    for name in _not_merging(trial, rest, example):
        failing[name] = "the network gives something else once the adapter is merged into the weights"
    rest = [name for name in rest if name not in failing]
    for name in _without_gradient(trial, rest, example):
        failing[name] = "it gets no gradient from the network's output"
    return failing


def _asked(trial: nn.Module, example: Example, training: bool) -> set[str]:
    """The adapters' layers that are called in one pass."""
    found: set[str] = set()
    handles = [
        part.lora_B[TRIAL].register_forward_hook(lambda *_, name=name: found.add(name))
        for name, part in parts_of(trial, TRIAL).items()
    ]
    try:
        _outputs(trial, example, training)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _not_merging(trial: nn.Module, names: list[str], example: Example) -> list[str]:
    """The layers whose merged adapter is not what the adapter was; found by halving."""
    if not names or _merges(trial, names, example):
        return []
    if len(names) == 1:
        return names
    half = len(names) // 2
    return [*_not_merging(trial, names[:half], example), *_not_merging(trial, names[half:], example)]


def _merges(trial: nn.Module, names: Sequence[str], example: Example) -> bool:
    adapted = copy.deepcopy(trial)
    for name, part in parts_of(adapted, TRIAL).items():
        if name not in names:
            part.set_adapter([other for other in part.active_adapters if other != TRIAL])
    merged = copy.deepcopy(adapted)
    base = copy.deepcopy(adapted)
    for name, part in parts_of(merged, TRIAL).items():
        if name in names:
            part.merge(adapter_names=[TRIAL])
    take_out(merged, TRIAL)
    for part in parts_of(base, TRIAL).values():
        part.set_adapter([other for other in part.active_adapters if other != TRIAL])
    for training in MODES.values():
        one, two, none = (_outputs(network, example, training) for network in (adapted, merged, base))
        effect = float((one - none).norm())
        if not float((one - two).norm()) <= TOLERANCE * effect + 1e-5 * float(one.norm()):
            return False
    return True


def _without_gradient(trial: nn.Module, names: Sequence[str], example: Example) -> list[str]:
    """The layers that a backward pass in train mode does not reach."""
    trial.requires_grad_(False)
    for parameter in parameters_of(trial, TRIAL):
        parameter.requires_grad_(True)
    with torch.enable_grad():
        output = _outputs(trial, example, True)
        if output.requires_grad:
            output.sum().backward()
    parts = parts_of(trial, TRIAL)
    return [name for name in names if parts[name].lora_B[TRIAL].weight.grad is None]


def _outputs(network: nn.Module, example: Example, training: bool) -> Tensor:
    """All numbers that the network gives, in a row; the same noise at every call."""
    torch.manual_seed(0)
    args, kwargs = tree_map(_cloned, (example.args, example.kwargs))  # some networks write into their input
    output = network.train(training)(*args, **kwargs)
    tensors = [tensor.flatten() for tensor in tensors_in(output) if tensor.is_floating_point()]
    if not tensors:
        raise ValueError("the network's output holds no tensor of numbers")
    return torch.cat(tensors)


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _put_random_in(trial: nn.Module, names: Sequence[str]) -> None:
    config = import_peft().LoraConfig(r=2, lora_alpha=2, target_modules=exactly(names))
    put_in(trial, config, TRIAL)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters_of(trial, TRIAL):
        size = parameter[0].numel() ** -0.5
        noise = torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32)
        parameter.data.copy_(size * noise)


def _drawn(network: nn.Module) -> Iterator[Example]:
    """Random inputs that the network might take, if it takes one and nothing that might be a condition."""
    first = next(iter(candidates(network).values()), None)
    parameters = list(inspect.signature(network.forward).parameters.values())
    single = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:1]
    rest = [p for p in parameters if p not in single]
    if not single or any(not isinstance(p.default, (bool, int, float, str)) for p in rest):
        return
    generator = torch.Generator().manual_seed(0)
    if isinstance(first, nn.Conv2d):
        for channels in dict.fromkeys([first.in_channels, 3, 1]):
            for side in SIDES:
                yield Example(
                    torch.rand(2, channels, side, side, generator=generator, device="cpu", dtype=torch.float32)
                )
    elif isinstance(first, nn.Linear):
        for shape in ((2, 5, first.in_features), (2, first.in_features)):
            yield Example(torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32))


def _on(example: Example, network: nn.Module) -> Example:
    """The example where the network is, in the precision of the copies."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))

    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.detach().to(device, torch.float32 if leaf.is_floating_point() else leaf.dtype)

    example.args, example.kwargs = tree_map(moved, example.args), tree_map(moved, example.kwargs)
    return example


@contextlib.contextmanager
def _nothing_moves() -> Iterator[None]:
    """Random states as before, and no gradient; unlike `isolated`, networks may be in train mode."""
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
