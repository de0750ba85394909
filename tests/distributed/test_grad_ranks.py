"""Two processes that back-propagate through a pipeline end with the weights of one that has the joint batch."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from ranks import WORLD, two_ranks
from torch import nn

from qa_hooks.integrations.peft.sync import check_same_weights, reduce_gradients, sync_adapter

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ROWS = 8
NORM = 0.5  # small enough that clipping acts in each step


def data() -> torch.Tensor:
    return torch.randn(3, ROWS, 4, generator=torch.Generator().manual_seed(1))  # of three steps


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1))


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return (model(rows) * rows.sum(1, keepdim=True)).mean() * 5


def own(rows: torch.Tensor, rank: int) -> torch.Tensor:
    return rows.chunk(WORLD)[rank]


def train(way: str, rank: int | None = None) -> list[torch.Tensor]:
    """Three steps on this rank's rows (all of them for None), with clipping."""
    model = network()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    if way == "hook":
        sync_adapter(optimizer, max_norm=NORM)
    for rows in data():
        loss_of(model, rows if rank is None else own(rows, rank)).backward()
        if way == "explicit":
            reduce_gradients(parameters)
        if way != "hook":
            nn.utils.clip_grad_norm_(parameters, NORM)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() for p in parameters]


def edges(rank: int) -> dict:
    """Gradients that are None, bf16, buckets, and what must raise on all ranks."""
    result = {}
    a, b, c = (nn.Parameter(torch.ones(2)) for _ in range(3))
    a.grad = torch.full((2,), float(rank + 1))
    if rank == 0:
        b.grad = torch.tensor([4.0, 6.0])
    reduce_gradients([a, nn.Parameter(torch.ones(1), requires_grad=False), b, c])
    result["some"] = torch.stack([a.grad, b.grad])
    result["none"] = c.grad is None
    low = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    low.grad = torch.tensor([1.0 if rank else 1 / 128], dtype=torch.bfloat16)
    reduce_gradients([low])
    result["bfloat16"] = low.grad.float()
    from qa_hooks.integrations.peft import sync as adapter_sync

    adapter_sync.BUCKET = 5
    many = [nn.Parameter(torch.zeros(n)) for n in (4, 4, 1, 20, 1)]
    for p in many:
        p.grad = torch.arange(p.numel(), dtype=torch.float32) * (rank + 1)
    reduce_gradients(many)
    result["buckets"] = torch.cat([p.grad for p in many])
    for name, act in {
        "no gradient": lambda: reduce_gradients([c]),
        "other weights": lambda: check_same_weights(network(seed=rank).parameters()),
        "other number": lambda: check_same_weights(list(network().parameters())[rank:]),
    }.items():
        try:
            act()
        except ValueError as error:
            result[name] = str(error)
    optimizer = torch.optim.SGD(network(seed=rank).parameters(), lr=1.0)
    sync_adapter(optimizer)
    try:
        optimizer.step()
    except ValueError as error:
        result["first step"] = str(error)
    check_same_weights(network().parameters())
    return result


def rank_of_all(rank: int) -> dict:
    return {"explicit": train("explicit", rank), "hook": train("hook", rank), "apart": train("", rank), **edges(rank)}


def test_two_ranks_make_the_steps_of_one_with_the_joint_batch(tmp_path):
    results, alone = two_ranks(rank_of_all, tmp_path), train("")
    for way in ("explicit", "hook"):
        for first, second, expected in zip(results[0][way], results[1][way], alone, strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, expected, rtol=1e-6, atol=1e-6)
    assert not torch.equal(results[0]["apart"][0], results[1]["apart"][0])  # what happens without us
    for result in results:
        assert result["some"].tolist() == [[1.5, 1.5], [2.0, 3.0]]
        assert result["none"]
        assert result["bfloat16"].item() == pytest.approx((1 + 1 / 128) / 2, rel=4e-3)
        assert torch.equal(result["buckets"], torch.cat([torch.arange(n) * 1.5 for n in (4, 4, 1, 20, 1)]))
        assert "none of 1 trainable parameters has a gradient on any rank" in result["no gradient"]
        assert result["other weights"].startswith("4 of 4 adapter parameters differ between ranks")
        assert "[4, 3] adapter parameters" in result["other number"]
        assert result["first step"] == result["other weights"]


def through_pipeline(rank: int | None) -> list[torch.Tensor]:
    """Two steps on the adapter of a Stable Diffusion pipeline, with the prompts of this rank."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
    from peft import LoraConfig, inject_adapter_in_model
    from tiny_pipelines import SIDE, stable_diffusion

    from qa_hooks.integrations.diffusers import grad_last_steps

    pipe, call = stable_diffusion()
    pipe.unet.requires_grad_(False)
    torch.manual_seed(2)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), pipe.unet)
    parameters = [p for p in pipe.unet.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in parameters]
    if rank is not None:  # what accelerator.prepare leaves in the pipeline
        pipe.unet = nn.parallel.DistributedDataParallel(pipe.unet)
    optimizer = torch.optim.SGD(parameters, lr=100.0, momentum=0.9)
    noise = torch.randn(2, 2, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(7))
    sizes = {"height": SIDE, "width": SIDE, "num_inference_steps": 3, "output_type": "pt"}
    for latents in noise:
        own_call = {**call, "latents": latents}
        if rank is not None:
            own_call = {k: v[rank : rank + 1] if torch.is_tensor(v) else v for k, v in own_call.items()}
        with grad_last_steps(pipe, k=2):
            images = pipe(**own_call, **sizes).images
        images.square().mean(dim=(1, 2, 3)).mean().backward()
        reduce_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach() - before for p, before in zip(parameters, start, strict=True)]


def test_an_adapter_in_a_pipeline_in_ddp_learns_as_on_one_process(tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("diffusers")
    first, second = two_ranks(through_pipeline, tmp_path)
    alone = through_pipeline(None)
    assert max(float(update.abs().max()) for update in alone) > 1e-3
    for a, b, expected in zip(first, second, alone, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, expected, rtol=0, atol=1e-6)


def accumulating(rank: int | None) -> dict:
    """Accelerate: two micro-steps to a step, bf16 off or on, clipping; the whole loop as users write it."""
    import os

    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    if rank is not None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), ACCELERATE_USE_CPU="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577")
    result = {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state()  # a script has one precision
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        assert accelerator.num_processes == (WORLD if rank is not None else 1)
        model = network()
        parameters = list(model.parameters())
        optimizer = accelerator.prepare(torch.optim.SGD(parameters, lr=0.1))
        steps = 0
        for rows in data()[:2]:
            for micro in rows.chunk(2):
                with accelerator.accumulate(model):
                    with accelerator.autocast():
                        loss = loss_of(model, micro if rank is None else own(micro, rank))
                    accelerator.backward(loss)
                    steps += accelerator.sync_gradients
                    reduce_gradients(parameters, accelerator=accelerator)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(parameters, NORM)
                    optimizer.step()
                    optimizer.zero_grad()
        assert steps == 2
        result[precision] = [p.detach() for p in parameters]
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return result


def test_accelerate_with_accumulation_and_bfloat16(tmp_path):
    pytest.importorskip("accelerate")
    results, alone = two_ranks(accumulating, tmp_path), accumulating(None)
    for precision, tolerance in (("no", 1e-6), ("bf16", 2e-3)):
        for first, second, expected in zip(results[0][precision], results[1][precision], alone[precision], strict=True):
            assert torch.equal(first, second)
            torch.testing.assert_close(first, expected, rtol=tolerance, atol=tolerance)


# One process


def test_one_process_needs_no_group_and_says_what_is_wrong():
    model = network()
    with pytest.raises(ValueError, match="has a gradient on any rank"):
        reduce_gradients(model.parameters())
    with pytest.raises(TypeError, match="not the module"):
        reduce_gradients(model)
    with pytest.raises(ValueError, match="no parameter requires"):
        reduce_gradients([torch.ones(2)])
    loss_of(model, data()[0]).backward()
    before = [p.grad.clone() for p in model.parameters()]
    reduce_gradients(model.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    waiting = SimpleNamespace(sync_gradients=False, distributed_type="MULTI_CPU")
    reduce_gradients(copy.deepcopy(model).parameters(), accelerator=waiting)  # a micro-step is no step


def test_the_hook_can_be_removed_and_refuses_a_grad_scaler_and_sharding():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = sync_adapter(optimizer)
    with pytest.raises(ValueError, match="has a gradient on any rank"):
        optimizer.step()
    handle.remove()
    optimizer.step()
    with pytest.raises(ValueError, match="GradScaler"):
        sync_adapter(SimpleNamespace(optimizer=optimizer, scaler=object()))
    with pytest.raises(TypeError, match="torch optimizer"):
        sync_adapter(model)
    for name in ("FSDP", "DEEPSPEED"):
        accelerator = SimpleNamespace(sync_gradients=True, distributed_type=SimpleNamespace(value=name))
        for act in (lambda a: reduce_gradients([], accelerator=a), lambda a: sync_adapter(optimizer, accelerator=a)):
            with pytest.raises(ValueError, match=f"{name} shards"):
                act(accelerator)
