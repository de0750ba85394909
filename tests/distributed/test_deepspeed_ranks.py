"""DeepSpeed (ZeRO-1 and ZeRO-2) on two gloo ranks: the weights of one process, or a refusal by name."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from ranks import two_ranks
from test_sharded_ranks import curved, images, network, told

from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import FunctionScorer

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = {"plain": {"ceiling": 10.0}, "balanced": {"ceiling": "real", "balance": 1.0}, "lora": {"ceiling": 10.0}}


def prepared(name: str) -> torch.nn.Module:
    net = network()
    if name == "lora":
        from qa_hooks.integrations.peft import inject_lora

        inject_lora(net, rank=2, targets=["0", "2"])
        for number, parameter in enumerate(p for p in net.parameters() if p.requires_grad):
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    return net


def engine_of(net: torch.nn.Module, stage: int):
    import deepspeed

    trained = [p for p in net.parameters() if p.requires_grad]
    config = {"train_micro_batch_size_per_gpu": 3, "zero_optimization": {"stage": stage}}
    config |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False, "gradient_clipping": 0.0}
    os.environ["LOCAL_RANK"] = str(torch.distributed.get_rank())
    optimizer = torch.optim.SGD(trained, lr=0.5)
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def train(name: str, part: slice, stage: int | None) -> list[torch.Tensor]:
    """The trained weights after three steps, in an engine of DeepSpeed or (`stage=None`) by hand."""
    net, options = prepared(name), OPTIONS[name]
    trained = [p for p in net.parameters() if p.requires_grad]
    loss = ScoreLoss(FunctionScorer(curved, name="curved", higher_is_better=True), **options)
    engine = net if stage is None else engine_of(net, stage)
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for step in range(3):
        x = images(step)[part]
        pred = engine(x)
        fidelity = (pred - x).abs().mean()
        given = {"fidelity": fidelity} if "balance" in options else {}
        given |= {"real": images(50 + step)[part]} if "ceiling" in options else {}
        total = fidelity + loss(pred, **given)
        if stage is None:
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        else:
            engine.backward(total)
            engine.step()
    return [p.detach().clone() for p in trained]


def on_rank(rank: int) -> dict:
    part = slice(3 * rank, 3 * rank + 3)
    return {f"{name} {stage}": train(name, part, stage) for name in OPTIONS for stage in (1, 2)}


def test_rewards_have_the_weights_of_one_process(tmp_path):
    ranks = two_ranks(on_rank, tmp_path)
    for name in OPTIONS:
        alone = train(name, slice(0, 6), None)
        for rank in ranks:
            for stage in (1, 2):
                for found, expected in zip(rank[f"{name} {stage}"], alone, strict=True):
                    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6), (name, stage)


def refusals(rank: int) -> dict:
    from qa_hooks import SSIMPenalty
    from qa_hooks.integrations import peft
    from qa_hooks.integrations.training_checks import check_model

    whole, parts, engine = (
        engine_of(prepared(name), stage) for name, stage in (("lora", 2), ("lora", 3), ("plain", 2))
    )
    folder = tempfile.mkdtemp()
    peft.save_lora(whole, folder)
    copy = network()
    peft.load_lora(copy, folder)
    return {
        "same": torch.equal(copy(images(0)), whole.module(images(0))),
        "inject": told(lambda: peft.inject_lora(engine, rank=2)),
        "save": told(lambda: peft.save_lora(parts, folder)),
        "merge": told(lambda: peft.merge_lora(parts)),
        "pipelines": told(lambda: check_model(engine)),
        "penalty": told(lambda: SSIMPenalty(value_range=(0, 1))(engine, images(0)[:3], images(1)[:3])),
    }


def test_adapters_are_saved_whole_and_what_cannot_be_right_is_refused_by_name(tmp_path):
    for found in two_ranks(refusals, tmp_path):
        assert found["same"]
        for what, name in (
            ("inject", "LoRA must be put in before DDP, DeepSpeed"),
            ("save", "save_lora needs whole weights, and this network's are sharded (ZeRO-3)"),
            ("merge", "merge_lora needs whole weights, and this network's are sharded (ZeRO-3)"),
            ("pipelines", "DeepSpeedEngine shards the weights"),
            ("penalty", "a critic sharded by DeepSpeedEngine has no double backward"),
        ):
            assert found[what].startswith(f"ValueError: {name}"), (what, found[what])
