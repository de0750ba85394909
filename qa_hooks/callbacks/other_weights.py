"""Samples of other weights than the network has now: of an average, or of another step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.checks import arrived, check_call
from qa_hooks._base.sharding import sharded_kind
from qa_hooks.sources.samples import Sample, check_sample

Weights = Mapping[str, Tensor] | Sequence[Tensor]


def with_weights(sample: Sample, network: nn.Module, weights: Weights | Callable[[], Weights]) -> Sample:
    """A sampler that draws as `sample` does while `network` has other weights; afterwards it has its own again.

    Two monitors, one with `sample` and one with this one, measure the weights that train and their average (EMA) at the
    same step, from the same noise. A network that is a copy of its own (`torch.optim.swa_utils.AveragedModel`, timm's
    `ModelEmaV2`) needs none of this: write a `sample` that calls it.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, which uses `network`.
        network: whose weights are exchanged while `sample` runs.
        weights: tensors by the names of `network.state_dict()` (some of them will do), or one tensor for each of
            `network.parameters()`, such as the `shadow_params` of diffusers' `EMAModel`; or a function that gives one
            of these at each measurement. Averages that are kept up in place are read as they are at the measurement;
            for another step pass copies.

    Raises:
        TypeError, ValueError: weights that are no such thing; at the call, weights that do not fit the network.

    Example:
        >>> net = nn.Linear(8, 64)
        >>> sample = lambda n, generator: net(torch.randn(n, 8, generator=generator)).view(n, 1, 8, 8)
        >>> average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        >>> averaged = with_weights(sample, net, average)
        >>> averaged(2, torch.Generator()).shape
        torch.Size([2, 1, 8, 8])
    """
    check_sample(sample)
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    if isinstance(weights, nn.Module):
        raise TypeError("weights is a network: pass its state_dict(), or write a sample that calls it")
    if callable(weights):
        check_call("weights", weights, "weights()")
    else:
        _pairs(network, weights)  # a mistake is told now

    def averaged(n: int, generator: torch.Generator) -> Any:
        with exchanged(network, weights() if callable(weights) else weights):
            return sample(n, generator)

    return averaged


@contextlib.contextmanager
def exchanged(network: nn.Module, weights: Weights) -> Iterator[None]:
    """A block in which a network has other weights; its own are not touched, and are there again at the end."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for own, other in _pairs(network, weights):
            kept.append((own, own.data))
            own.data = other.detach().to(own.device, own.dtype, copy=not isinstance(own, nn.Parameter))
        yield
    finally:
        for own, data in reversed(kept):
            own.data = data


def _pairs(network: nn.Module, weights: Any) -> list[tuple[Tensor, Tensor]]:
    """The network's tensors, each with the one that takes its place."""
    if (kind := sharded_kind(network)) is not None:
        raise ValueError(f"the network is sharded ({kind}): samples of other weights are for networks that are whole")
    if isinstance(weights, Mapping):
        named: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
        named |= dict(network.named_buffers(remove_duplicate=False))
        unknown = [name for name in weights if name not in named]
        if unknown or not weights:
            raise ValueError(
                f"weights has {len(weights)} tensors, of which {len(unknown)} are of no name in the network"
                + (f", such as {unknown[0]!r}; its names are like {next(iter(named), 'none')!r}" if unknown else "")
            )
        pairs = {name: (named[name], weights[name]) for name in weights}
    elif isinstance(weights, Sequence) and not isinstance(weights, (str, bytes)):
        parameters = dict(network.named_parameters())
        if len(weights) != len(parameters):
            raise ValueError(f"weights has {len(weights)} tensors, and the network {len(parameters)} parameters")
        pairs = {name: (own, other) for (name, own), other in zip(parameters.items(), weights, strict=True)}
    else:
        raise TypeError(
            "weights must be tensors by name, a list of tensors, or a function that gives one of these, got "
            f"{type(weights).__name__}"
        )
    for name, (own, other) in pairs.items():
        if not isinstance(other, Tensor) or other.shape != own.shape:
            raise ValueError(f"weights of {name} must be a tensor {tuple(own.shape)}, got {arrived(other)}")
    return list(pairs.values())
