"""Two processes that tune on a reward make the update of one with the joint batch, whatever the terms."""

from __future__ import annotations

import os

import pytest
import torch
from ranks import WORLD, two_ranks

pytest.importorskip("peft")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ROWS, NORM = 4, 0.05  # small enough that clipping acts in each step


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def denoiser(seed: int = 0):
    from diffusers import UNet2DModel

    torch.manual_seed(seed)
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "add_attention": False}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **options, **kinds).eval()


def tune(rank: int | None, *, wrapped: bool, optimizer_class=torch.optim.SGD, lr: float = 1.0) -> dict:
    """Three steps of two micro-steps with Accelerate, on this rank's rows (all of them for None)."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from diffusers import DDIMScheduler, DDPMScheduler

    from qa_hooks.integrations.diffusers import RewardFinetuner, denoising_loss, reward_sample
    from qa_hooks.integrations.peft import inject_lora
    from qa_hooks.integrations.peft.sync import reduce_gradients
    from qa_hooks.losses import ScoreLoss
    from qa_hooks.scorers import FunctionScorer

    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == (1 if rank is None else WORLD)
    model = denoiser()
    parameters = inject_lora(model, rank=2)
    for index, parameter in enumerate(parameters):
        parameter.data += 0.1 * noise(*parameter.shape, seed=50 + index)
    start = [p.detach().clone() for p in parameters]
    optimizer = optimizer_class(parameters, lr=lr)
    model, optimizer = accelerator.prepare(model, optimizer) if wrapped else (model, accelerator.prepare(optimizer))
    network = accelerator.unwrap_model(model)
    grey = FunctionScorer(
        lambda x: -(x - 0.7).square().mean((1, 2, 3)), name="grey", higher_is_better=True, score_range=(-1.0, 0.0)
    )
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)

    def pretrain(batch):
        clean, e, t = batch
        return denoising_loss(network, DDPMScheduler(), clean, timesteps=t, noise=e)

    def own(rows: torch.Tensor) -> torch.Tensor:
        return rows if rank is None else rows.chunk(WORLD)[rank]

    generator = torch.Generator().manual_seed(3)
    tuner = RewardFinetuner(
        # k is drawn anew in each step, and must be the same on both
        lambda x: reward_sample(network, scheduler, x, num_steps=4, method="random", generator=generator),
        ScoreLoss(grey, ceiling=-0.001),
        denoiser=model,
        kl_weight=2.0,
        pretrain_weight=0.5,
        pretrain_loss=pretrain,
        clip_gradient=0.05,
    )
    terms = []
    for step in range(6):
        with accelerator.accumulate(model):
            batch = noise(3, ROWS, 1, 8, 8, seed=step)
            times = torch.randint(1000, (ROWS,), generator=torch.Generator().manual_seed(step))
            loss, info = tuner.step(own(batch[0]), batch=(own(batch[1]).tanh(), own(batch[2]), own(times)))
            terms.append(torch.stack([info["reward"], info["kl"], info["pretrain"], info["clipped"]]))
            accelerator.backward(loss)
            reduce_gradients(parameters, accelerator=accelerator)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(parameters, NORM)
            optimizer.step()
            optimizer.zero_grad()
    updates = [p.detach() - before for p, before in zip(parameters, start, strict=True)]
    return {"updates": updates, "terms": torch.stack(terms)}


def _environment(rank: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), ACCELERATE_USE_CPU="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29578")


def _rank(rank: int) -> dict:
    _environment(rank)
    return {
        "raw": tune(rank, wrapped=False),
        "prepared": tune(rank, wrapped=True),
        "mismatch": _mismatch(rank),
        "drift": _drift(rank),
    }


def _mismatch(rank: int) -> str:
    from diffusers import DDIMScheduler

    from qa_hooks.integrations.diffusers import RewardFinetuner, reward_sample
    from qa_hooks.integrations.peft import inject_lora

    model = denoiser()
    inject_lora(model, rank=2, seed=rank)  # every rank with an adapter of its own
    sample = lambda x: reward_sample(model, DDIMScheduler(), x, num_steps=2)  # noqa: E731
    try:
        RewardFinetuner(sample, lambda x: x.mean((1, 2, 3)), denoiser=model).step(noise(2, 1, 8, 8, seed=0))
    except ValueError as error:
        return str(error)
    return "nothing was said"


def _drift(rank: int) -> list[str]:
    """Each rank steps with its own gradients, which nobody reduces."""
    from diffusers import DDIMScheduler

    from qa_hooks.integrations.diffusers import RewardFinetuner, reward_sample
    from qa_hooks.integrations.peft import inject_lora

    model = denoiser()
    optimizer = torch.optim.SGD(inject_lora(model, rank=2), lr=1.0)
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    sample = lambda x: reward_sample(model, scheduler, x, num_steps=2)  # noqa: E731
    tuner = RewardFinetuner(sample, lambda x: x.mean((1, 2, 3)), denoiser=model)
    said = []
    for _ in range(2):
        try:
            tuner.step(noise(2, 1, 8, 8, seed=rank))[0].backward()
        except ValueError as error:
            said.append(str(error))
        else:
            said.append("nothing was said")
            optimizer.step()
    return said


def test_two_ranks_make_the_update_of_one_with_the_joint_batch(tmp_path):
    from accelerate.state import AcceleratorState, GradientState

    results = two_ranks(_rank, tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    alone = tune(None, wrapped=False)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert max(float(update.abs().max()) for update in alone["updates"]) > 1e-3
    for way in ("raw", "prepared"):
        first, second = (result[way] for result in results)
        for a, b, expected in zip(first["updates"], second["updates"], alone["updates"], strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, expected, rtol=0, atol=1e-6)
        mean = (first["terms"] + second["terms"]) / 2
        torch.testing.assert_close(mean, alone["terms"], rtol=1e-5, atol=1e-6)
        assert not torch.equal(first["terms"], second["terms"])
    worst = max(float((a - b).abs().max()) for a, b in zip(results[0]["raw"]["updates"], alone["updates"], strict=True))
    print(f"largest difference of an update: {worst:.1e}")
    for result in results:
        assert "adapter parameters differ between ranks" in result["mismatch"]
        assert result["drift"][0] == "nothing was said"
        assert "differ between ranks" in result["drift"][1]
        assert "reduce_gradients(parameters) before each optimizer step" in result["drift"][1]
