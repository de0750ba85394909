"""Accelerate and attached penalties on two gloo processes: the numbers of one, and nobody waits."""

from __future__ import annotations

import copy
import os
import warnings

import torch
from ranks import two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qa_hooks.callbacks import Callback, Hooks, SampleGrid, ScoreMonitor, TrainingStopped
from qa_hooks.demo import load_digits_images
from qa_hooks.integrations.accelerate import attach, without_padding
from qa_hooks.penalties import DriftPenalty, SSIMPenalty, attach_penalty
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness


class StopsOnOneRank(Callback):
    """One rank alone asks for the end, at a step."""

    def on_step_end(self, ctx) -> None:
        if ctx.rank == 1 and ctx.step == 5:
            raise TrainingStopped("enough")


def accelerated(rank: int) -> dict:
    """Eleven images in batches of two on two ranks, accumulated over two: the last batch of an epoch is padded."""
    from accelerate import Accelerator

    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="localhost", MASTER_PORT="29511"
    )
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == 2
    images = torch.arange(11.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8) / 11
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 3, padding=1)
    loader = torch.utils.data.DataLoader(images, batch_size=2)
    model, optimizer, loader = accelerator.prepare(net, torch.optim.SGD(net.parameters(), lr=0.01), loader)
    score = brightness()
    sample = lambda n, rng: accelerator.unwrap_model(model)(torch.rand(n, 1, 8, 8, generator=rng))  # noqa: E731
    writer = MemoryWriter()
    callbacks = [
        SampleGrid(sample, every=2, n=4),
        ScoreMonitor(score, every=2, sample=sample, n=20, batch_size=8),
        StopsOnOneRank(),
    ]
    hooks = attach(accelerator, Hooks(callbacks, writer=writer, log_every=2), optimizer=optimizer)
    with warnings.catch_warnings(record=True) as caught:  # a grid that would call a DDP module on one rank
        warnings.simplefilter("always")
        attach(accelerator, Hooks([SampleGrid(lambda n, rng: model(torch.rand(n, 1, 8, 8, generator=rng)))]))
    seen, kept = 0, []
    for epoch in range(9):
        for batch in loader:
            if epoch == 0:
                kept.append(accelerator.gather(torch.tensor([len(without_padding(accelerator, batch))])))
            with accelerator.accumulate(model):
                loss = (model(batch) - batch).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            seen += 1
            if accelerator.check_trigger():
                break
        if hooks.should_stop:
            break
    steps = hooks.step_count
    hooks.close()
    return {
        "warned": any("sample from accelerator.unwrap_model" in str(w.message) for w in caught),
        "micro-steps": seen,
        "steps": steps,
        "kept": int(torch.cat(kept).sum()),
        "stop": hooks.should_stop,
        "points": [step for step, _ in writer.scalars.get("qa_eval/brightness/mean", [])],
        "weights": net.weight.detach().clone(),
    }


def test_accelerate(tmp_path):
    first, second = two_ranks(accelerated, tmp_path)
    for result in (first, second):
        assert result["warned"]
        assert result["steps"] == 5
        assert result["stop"]
        assert result["kept"] == 11
    assert first["micro-steps"] == second["micro-steps"]
    assert first["points"] == [1, 2, 4]
    assert second["points"] == []
    assert torch.equal(first["weights"], second["weights"])


def make_critic() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(196, 1)).double()


def critic_steps(critic: nn.Module, mine: slice, *, closure: bool = False) -> torch.Tensor:
    """Three steps of a trainer that clips, with an attached penalty that does not reach the last bias (SSIM's)."""
    images = load_digits_images().train[:96].double()
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.05)
    state: dict = {}
    call = (lambda x: critic(x)) if closure else critic
    for penalty in (SSIMPenalty(value_range=(-1, 1)), DriftPenalty(value_range=(-1, 1), weight=0.1)):
        attach_penalty(optimizer, call, penalty, batch=lambda: (state["real"], state["fake"]))
    for step in range(3):
        state["real"] = images[32 * step : 32 * step + 32][mine]
        state["fake"] = state["real"].flip(-1)
        optimizer.zero_grad()
        (critic(state["fake"]).mean() - critic(state["real"]).mean()).backward()
        nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in critic.parameters()])


def penalised(rank: int) -> dict:
    mine = slice(16 * rank, 16 * rank + 16)
    return {
        "module": critic_steps(DistributedDataParallel(make_critic()), mine),
        "closure": critic_steps(DistributedDataParallel(make_critic()), mine, closure=True),
    }


def test_an_attached_penalty_adds_up_under_ddp(tmp_path):
    start = torch.cat([p.detach().flatten() for p in copy.deepcopy(make_critic()).parameters()])
    alone = critic_steps(make_critic(), slice(None))
    assert (alone - start).abs().max() > 1e-3
    for result in two_ranks(penalised, tmp_path):
        for name in ("module", "closure"):
            assert torch.allclose(result[name], alone, rtol=0, atol=1e-9), name


def one_rank_fails(rank: int) -> dict:
    """On rank 1 the batch, then the penalty fails, then it alone has no gradient; the run goes on after each."""

    class Uneven(DriftPenalty):
        trouble = ""

        def forward(self, critic, real, fake):
            value = super().forward(critic, real, fake)
            if rank == 1 and self.trouble == "penalty":
                raise MemoryError("no room for the penalty")
            return value.detach() if rank == 1 and self.trouble == "gradient" else value

    critic, said = make_critic(), {}
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.05)
    images = load_digits_images().train[:16].double()
    penalty = Uneven(value_range=(-1, 1), weight=0.1)

    def batch():
        if rank == 1 and penalty.trouble == "batch":
            raise LookupError("no batch")
        return images, images.flip(-1)

    attach_penalty(optimizer, critic, penalty, batch=batch)
    for trouble in ("batch", "penalty", "gradient", ""):
        penalty.trouble = trouble
        optimizer.zero_grad()
        try:
            optimizer.step()
        except Exception as error:
            said[trouble] = f"{type(error).__name__}: {error}"
        said[f"gradient after {trouble!r}"] = critic[-1].weight.grad is not None
    return said


def test_a_penalty_that_fails_on_one_rank_fails_on_all(tmp_path):
    first, second = two_ranks(one_rank_fails, tmp_path)
    assert second["batch"] == "LookupError: no batch"
    assert first["batch"] == "RuntimeError: LookupError: no batch (on rank 1)"
    assert second["penalty"] == "MemoryError: no room for the penalty"
    assert first["penalty"] == "RuntimeError: MemoryError: no room for the penalty (on rank 1)"
    for result in (first, second):
        assert "gradient" not in result
        assert not any(result[f"gradient after {trouble!r}"] for trouble in ("batch", "penalty", "gradient"))
        assert result["gradient after ''"]


def stopped_by_one_rank(rank: int) -> dict:
    """`attach(on_stop=...)` without a framework: both ranks are told after the same step."""
    critic, stops = make_critic(), []
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.05)
    hooks = Hooks([StopsOnOneRank()]).attach(optimizer, on_stop=lambda: stops.append(hooks.step_count))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while not hooks.should_stop:
            critic[-1].weight.grad = torch.ones_like(critic[-1].weight)
            optimizer.step()
    return {"stops": stops, "step": hooks.step_count}


def test_a_stop_of_one_rank_is_told_to_all(tmp_path):
    assert two_ranks(stopped_by_one_rank, tmp_path) == [{"stops": [5], "step": 5}] * 2
