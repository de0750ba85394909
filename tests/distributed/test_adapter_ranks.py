"""LoRA under DDP on two gloo processes: an adapter without a gradient is named before the reducer finds out."""

from __future__ import annotations

import warnings

import pytest
import torch
from ranks import two_ranks
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

pytest.importorskip("peft")

from qa_hooks.integrations.peft import inject_lora, lora_parameters


class ReadsPast(nn.Module):
    """Two arguments, so that no example can be drawn; `qkv` is read past its module."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.qkv, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x, shift):
        return self.last(F.linear(self.first(x), self.qkv.weight) + shift)


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(4, 8, generator=generator), torch.randn(4, 16, generator=generator)


def told_in_time(rank: int) -> dict:
    torch.manual_seed(0)
    network = ReadsPast()
    parameters = inject_lora(network, rank=2)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        output = wrapped(*batch(rank, 0))
    told = [str(w.message) for w in caught if "had no part in the first output" in str(w.message)]
    output.square().mean().backward()
    optimizer.step()
    try:
        wrapped(*batch(rank, 1))
        ended = "went on"
    except RuntimeError as error:
        ended = str(error)
    return {"told": told, "ended": ended}


def left_out(rank: int) -> dict:
    torch.manual_seed(0)
    network = ReadsPast()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parameters = inject_lora(network, rank=2, example=batch(rank, 0))
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        wrapped(*batch(rank, step)).square().mean().backward()
        optimizer.step()
    return {"weights": torch.cat([p.detach().flatten() for p in lora_parameters(network)])}


def test_an_adapter_without_a_gradient_is_named_before_the_backward_pass(tmp_path):
    for result in two_ranks(told_in_time, tmp_path):
        assert len(result["told"]) == 1
        assert "1 of 3 adapters" in result["told"][0]
        assert "qkv" in result["told"][0]
        assert "Expected to have finished reduction" in result["ended"]  # what torch says, a step later


def test_left_out_by_an_example_it_trains_alike_on_both(tmp_path):
    first, second = two_ranks(left_out, tmp_path)
    assert torch.equal(first["weights"], second["weights"])
    assert len(first["weights"]) == 2 * (8 + 16) * 2
    assert first["weights"].abs().sum() > 0
