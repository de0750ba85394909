"""FSDP2 (`fully_shard`) on two gloo ranks: the gradients of one process, or a refusal by name."""

from __future__ import annotations

import pytest
import torch
from ranks import two_ranks
from torch import nn

from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import FunctionScorer

fsdp = pytest.importorskip("torch.distributed.fsdp")
pytestmark = [
    pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="torch before 2.6 has no fully_shard there"),
    pytest.mark.filterwarnings("ignore"),
]


def curved(x: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 2, x[0].numel()).view_as(x[0])
    return (torch.sin(3 * x) * weights).mean((1, 2, 3))


def images(step: int) -> torch.Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1))


def sharded(net: nn.Module) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2,))
    for layer in net:
        if isinstance(layer, nn.Conv2d) or hasattr(layer, "base_layer"):
            fsdp.fully_shard(layer, mesh=mesh)
    return fsdp.fully_shard(net, mesh=mesh)


def whole(parameter: torch.Tensor) -> torch.Tensor:
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()


def train(part: slice, wrap, *, adapter: bool, **options) -> dict:
    net = network()
    if adapter:
        from qa_hooks.integrations.peft import inject_lora

        inject_lora(net, rank=2, targets=["0", "2"])
        for number, parameter in enumerate(p for p in net.parameters() if p.requires_grad):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    wrap(net)
    trained = [p for p in net.parameters() if p.requires_grad]
    loss = ScoreLoss(FunctionScorer(curved, name="curved", higher_is_better=True), **options)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    first = []
    for step in range(3):
        x = images(step)[part]
        pred = net(x)
        fidelity = (pred - x).abs().mean()
        optimizer.zero_grad()
        given = {"fidelity": fidelity} if "balance" in options else {}
        given |= {"real": images(50 + step)[part]} if "ceiling" in options else {}
        (fidelity + loss(pred, **given)).backward()
        first = first or [whole(p.grad) for p in trained]
        optimizer.step()
    return {"gradients": first, "weights": [whole(p) for p in trained]}


def on_rank(rank: int) -> dict:
    part = slice(3 * rank, 3 * rank + 3)
    return {
        "plain": train(part, sharded, adapter=False, ceiling=10.0),
        "balanced": train(part, sharded, adapter=False, ceiling="real", balance=1.0),
        "lora": train(part, sharded, adapter=True, ceiling=10.0),
    }


def test_rewards_on_sharded_networks_have_the_gradient_of_one_process(tmp_path):
    ranks = two_ranks(on_rank, tmp_path)
    options = {"plain": {"ceiling": 10.0}, "balanced": {"ceiling": "real", "balance": 1.0}, "lora": {"ceiling": 10.0}}
    for name, given in options.items():
        alone = train(slice(0, 6), lambda net: net, adapter=name == "lora", **given)
        for rank in ranks:
            for what in ("gradients", "weights"):
                assert len(rank[name][what]) == len(alone[what])
                for found, expected in zip(rank[name][what], alone[what], strict=True):
                    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), (name, what)
        assert any(bool(gradient.any()) for gradient in alone["gradients"])


def told(function) -> str:
    try:
        function()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def refusals(rank: int) -> dict:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    from qa_hooks import SSIMPenalty
    from qa_hooks.integrations import peft
    from qa_hooks.integrations.training_checks import check_model

    def with_lora() -> nn.Module:
        net = network()
        for number, parameter in enumerate(peft.inject_lora(net, rank=2, targets=["0", "2"])):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
        return net

    net = with_lora()
    with peft.without_lora(net):
        base = net(images(0)).detach()
    full = net(images(0)).detach()
    sharded(net)
    trained = peft.lora_parameters(net)
    with peft.without_lora(net):
        switched_off = torch.allclose(net(images(0)), base, atol=1e-6)
    net(images(0)).square().mean().backward()
    found = {
        "inject": told(lambda: peft.inject_lora(sharded(network()), rank=2)),
        "save": told(lambda: peft.save_lora(net, "nowhere")),
        "load": told(lambda: peft.load_lora(net, "nowhere")),
        "merge": told(lambda: peft.merge_lora(net)),
        "reduce": told(lambda: peft.reduce_gradients(trained)),
        "sync": told(lambda: peft.sync_adapter(torch.optim.SGD(trained, lr=0.1))),
        "compare": told(lambda: peft.check_same_weights(trained)),
        "pipelines": told(lambda: check_model(net)),
        "penalty": told(lambda: SSIMPenalty(value_range=(0, 1))(sharded(network()), images(0), images(1))),
    }
    state = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))
    copy = with_lora()
    copy.load_state_dict(state)
    same = torch.allclose(copy(images(0)), full, atol=1e-6)
    peft.scale_lora(net, 0.0)
    scaled = torch.allclose(net(images(0)), base, atol=1e-6)
    return {**found, "switched off": switched_off, "gathered": same, "scaled": scaled}


def test_what_needs_whole_weights_is_refused_by_name(tmp_path):
    for rank in two_ranks(refusals, tmp_path):
        assert [rank[what] for what in ("switched off", "scaled", "gathered")] == [True] * 3
        for what, name, remedy in (
            ("inject", "inject_lora needs whole weights", "inject the adapter first"),
            ("save", "save_lora needs whole weights", "get_model_state_dict"),
            ("load", "load_lora needs whole weights", "load the adapter first"),
            ("merge", "merge_lora needs whole weights", "get_model_state_dict"),
            ("reduce", "shards of fully_shard", "leave reduce_gradients and sync_adapter out"),
            ("sync", "shards of fully_shard", "leave reduce_gradients and sync_adapter out"),
            ("compare", "shards of fully_shard", "nothing to compare"),
            ("pipelines", "FSDPModule shards the weights", "use DDP"),
            ("penalty", "no double backward", "use DDP"),
        ):
            assert rank[what].startswith("ValueError"), (what, rank[what])
            assert name in rank[what], (what, rank[what])
            assert remedy in rank[what], (what, rank[what])


def monitors_of(wrap) -> tuple[dict, list[int]]:
    """Every monitor that draws samples, over a generator that `wrap` has cut up or left whole, and its calls."""
    from qa_hooks.callbacks import (
        GenerativeMonitor,
        Hooks,
        PerceptionDistortion,
        RewardGuard,
        SampleGrid,
        ScoreHistogram,
        ScoreMonitor,
        ScorePanel,
    )
    from qa_hooks.scorers import PSNR
    from qa_hooks.writers import MemoryWriter

    generator = nn.Sequential(*network(), nn.Sigmoid())
    wrap(generator)
    scorer = FunctionScorer(curved, name="curved", higher_is_better=True)
    real = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    calls = []

    def sample(n, noise):
        calls.append(n)
        return generator(torch.rand(n, 3, 8, 8, generator=noise))

    monitors = [
        SampleGrid(sample, n=4, every=1),
        ScorePanel(sample, scorer=scorer, n=9, every=1),
        ScoreHistogram(
            sample, real=real, scorer=scorer, n=40, batch_size=16, every=1
        ),  # three blocks for two processes
        ScoreMonitor(scorer, sample=sample, n=40, batch_size=16, every=1),
        GenerativeMonitor(
            sample,
            real,
            extractor={"type": "random", "width": 4},
            n=40,
            batch_size=16,
            every=1,
            groups=5,
            metrics=("fd",),
        ),
        PerceptionDistortion(scorer, PSNR(), images=sample, reference=real[:6], every=1),
        RewardGuard(scorer, sample=sample, real=real, n=24, batch_size=16, every=1),
    ]
    writer = MemoryWriter()
    with Hooks(monitors, writer=writer) as hooks:
        hooks.step()
    return {tag: found[0][1] for tag, found in writer.scalars.items() if "perf" not in tag}, calls


def sharded_monitors(rank: int) -> tuple[dict, list[int]]:
    return monitors_of(sharded)


def test_monitors_of_a_sharded_generator_give_the_numbers_of_a_whole_one(tmp_path):
    alone, calls = monitors_of(lambda generator: None)
    (first, first_calls), (second, second_calls) = two_ranks(sharded_monitors, tmp_path)
    assert first_calls == second_calls == calls == [4, 9, 16, 16, 8, 6, 8]  # three monitors share the blocks of 40
    assert any("fd" in tag for tag in alone)
    assert first.keys() == alone.keys()
    assert first == pytest.approx(alone, rel=1e-4, abs=1e-5)
    assert second == {}
