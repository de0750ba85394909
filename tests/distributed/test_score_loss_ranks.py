"""A reward with a ceiling and a balance: two ranks with half the batch each are one process with all of it."""

from __future__ import annotations

import pytest
import torch
from ranks import two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import FunctionScorer


def curved(x: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 2, x[0].numel()).view_as(x[0])
    return (torch.sin(3 * x) * weights).mean((1, 2, 3))


def images(step: int, n: int) -> torch.Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def train(part: slice, wrap=lambda net: net) -> dict:
    torch.manual_seed(0)
    net = wrap(nn.Conv2d(3, 3, 3, padding=1))
    scorer = FunctionScorer(curved, name="curved", higher_is_better=True)
    loss = ScoreLoss(scorer, ceiling="real", balance=1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for step in range(4):
        x, real = images(step, 6)[part], images(50 + step, 6)[part]
        pred = net(x)
        fidelity = (pred - x).abs().mean()
        optimizer.zero_grad()
        (fidelity + loss(pred, fidelity=fidelity, real=real)).backward()
        optimizer.step()
    weight = next(net.parameters()).detach()
    return {"weight": weight, "ceiling": torch.tensor(loss.ceiling), "balance": loss.terms["weight"]}


def on_rank(rank: int) -> dict:
    return train(slice(3 * rank, 3 * rank + 3), DistributedDataParallel)


def a_bad_image(rank: int) -> dict:
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)).log(), name="log", higher_is_better=True)
    try:
        ScoreLoss(scorer, ceiling="real")(images(0, 2), real=images(1, 2) * rank)  # black ones on rank 0
    except (ValueError, RuntimeError) as error:
        return {"message": str(error)}
    return {"message": ""}


def lora(rank: int) -> dict:
    from qa_hooks.integrations.peft import inject_lora, without_lora

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    torch.manual_seed(rank)  # the users' own states differ
    base = net(images(0, 2)).detach()
    parameters = inject_lora(net, rank=2, targets=["0", "2"])
    wrapped = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        wrapped(images(10 * step + rank, 2)).square().mean().backward()
        with torch.no_grad(), without_lora(wrapped):
            same = torch.equal(net(images(0, 2)), base)
        optimizer.step()
    try:
        inject_lora(DistributedDataParallel(nn.Sequential(nn.Conv2d(3, 8, 3))))
    except ValueError as error:
        late = str(error)
    return {"parameters": [p.detach() for p in parameters], "same": same, "late": late}


@pytest.mark.filterwarnings("ignore:pred. values lie in")
def test_two_ranks_are_one_process(tmp_path):
    ranks = two_ranks(on_rank, tmp_path)
    alone = train(slice(0, 6))
    for name, expected in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.allclose(ranks[0][name], expected, rtol=1e-5, atol=1e-6), name


def test_a_failure_on_one_rank_is_one_on_all(tmp_path):
    first, second = two_ranks(a_bad_image, tmp_path)
    assert "score of a real image is not finite" in first["message"]
    assert "score of a real image is not finite" in second["message"]


def test_lora_starts_and_stays_the_same_on_all_ranks(tmp_path):
    pytest.importorskip("peft")
    first, second = two_ranks(lora, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first["parameters"], second["parameters"], strict=True))
    assert any(p.abs().sum() > 0 for p in first["parameters"][1::2])
    assert "before DDP, DeepSpeed or accelerator.prepare" in first["late"]
    assert first["same"]
    assert second["same"]
