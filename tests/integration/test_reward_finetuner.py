"""`RewardFinetuner`: hand-written losses, finite differences, a copy of the base, Accelerate, plain Diffusers."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("peft")
pytest.importorskip("diffusers")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from tiny_pipelines import PIPELINES, denoiser_of, sample, stable_diffusion

from qa_hooks.callbacks import Hooks, RewardGuard
from qa_hooks.callbacks.settings import settings_text
from qa_hooks.data import quality_weights
from qa_hooks.integrations.accelerate import attach
from qa_hooks.integrations.diffusers import RewardFinetuner, denoising_loss, grad_last_steps, reward_sample
from qa_hooks.integrations.peft import inject_lora, load_lora, lora_parameters, save_lora
from qa_hooks.integrations.peft.checkpoint import save_adapter_only
from qa_hooks.integrations.peft.sync import reduce_gradients
from qa_hooks.losses import ScoreLoss
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*another convention.*:UserWarning", "ignore:.*no best value.*:UserWarning", "ignore::FutureWarning"
)


def unet(seed: int = 0) -> UNet2DModel:
    torch.manual_seed(seed)
    options = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 8}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **options, **kinds).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_prints_its_settings_and_so_does_the_log(tmp_path):
    reward = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="bright", higher_is_better=True, score_range=(0, 1))
    net = nn.Conv2d(1, 1, 3, padding=1)
    tuner = RewardFinetuner(net, reward, denoiser=net, kl_weight=3, ceiling=0.7, clip_gradient=0.1)
    options = r"kl_weight=3, pretrain_weight=0, clip_gradient=0\.1, seed=0"
    assert re.fullmatch(rf"RewardFinetuner\(ScoreLoss\(bright, .*ceiling=0\.7\), {options}\)", repr(tuner))
    assert f"- `reward: {tuner!r}`" in settings_text([], {"reward": tuner})


def greyness(images: torch.Tensor) -> torch.Tensor:
    """Highest, 0, for images of the value .7."""
    return -(images - 0.7).square().mean((1, 2, 3))


def scorer(function=greyness, **options) -> FunctionScorer:
    return FunctionScorer(function, name="grey", higher_is_better=True, score_range=(-1.0, 0.0), **options)


def stirred(model: nn.Module, size: float = 0.1) -> nn.Module:
    """Away from B = 0."""
    for index, parameter in enumerate(lora_parameters(model)):
        parameter.data += size * noise(*parameter.shape, seed=100 + index)
    return model


def schedule(**options) -> DDIMScheduler:
    return DDIMScheduler(**{"timestep_spacing": "trailing", "clip_sample": False, **options})


def sampler(model: nn.Module, k: int = 1, **options):
    return lambda x: reward_sample(model, schedule(), x, num_steps=4, k=k, **options)


def tuned(model: nn.Module | None = None, **options):
    """A stirred DDPM, its parameters, and a finetuner over it."""
    model = unet() if model is None else model
    parameters = inject_lora(model, rank=2)
    stirred(model)
    return model, parameters, RewardFinetuner(sampler(model), scorer(), denoiser=model, **options)


def grads(parameters) -> list[torch.Tensor]:
    parameters = list(parameters)
    found = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    return found


# The loss


def test_without_other_terms_the_gradient_is_the_plain_one_bit_for_bit():
    _, parameters, tuner = tuned(kl_weight=0.0)
    start = noise(3, 1, 8, 8)
    loss, info = tuner.step(start)
    loss.backward()
    ours = grads(parameters)
    images = sampler(tuner.denoiser)(start)
    plain = -greyness(images).mean()
    plain.backward()
    assert all(torch.equal(a, b) for a, b in zip(ours, grads(parameters), strict=True))
    assert loss.item() == plain.item() == -float(info["reward"])
    assert "kl" not in info
    assert torch.equal(tuner.images, images.detach())


@pytest.mark.parametrize("checkpoint", [True, False])
def test_kl_against_a_second_copy_of_the_base_and_a_hand_written_step(checkpoint):
    base = unet()
    model, parameters, _ = tuned()
    tuner = RewardFinetuner(sampler(model, checkpoint=checkpoint), scorer(), denoiser=model, kl_weight=3.0)
    start = noise(2, 1, 8, 8)
    loss, info = tuner.step(start)
    loss.backward()
    ours = grads(parameters)

    steps = schedule()
    steps.set_timesteps(4)
    x = start
    for index, t in enumerate(steps.timesteps):
        with torch.set_grad_enabled(index == 3):
            output = model(x, t).sample
            if index == 3:
                kl = F.mse_loss(output, base(x, t).sample.detach())
            x = steps.step(output, t, x).prev_sample
    images = (x + 1) / 2
    clamped = images + (images.clamp(0, 1) - images).detach()
    hand = -greyness(clamped).mean() + 3.0 * kl
    hand.backward()
    assert float(info["kl"]) == pytest.approx(kl.item(), rel=1e-5)
    assert kl.item() > 1e-4
    assert loss.item() == pytest.approx(hand.item(), rel=1e-5)
    for a, b in zip(ours, grads(parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", list(PIPELINES))
def test_pipelines_guidance_included(name):
    pipe, call = PIPELINES[name]()
    model = denoiser_of(pipe)
    base = copy.deepcopy(model)
    inject_lora(model, rank=2)

    def run():
        with grad_last_steps(pipe, k=2):
            return sample(pipe, call)

    tuner = RewardFinetuner(run, scorer(), denoiser=model, kl_weight=2.0)
    assert float(tuner.step()[1]["kl"]) == 0.0  # B = 0: the base
    stirred(model)
    inputs, outputs = [], []

    def keep(module, args, kwargs, output):
        inputs.append((args, kwargs))
        outputs.append(output[0])

    watch = model.register_forward_hook(keep, with_kwargs=True)
    loss, info = tuner.step()
    watch.remove()
    assert len(outputs) == 6  # four of the sampling, two of the base
    with torch.no_grad():
        expected = torch.stack(
            [(outputs[i] - base(*inputs[i][0], **inputs[i][1])[0]).square().mean() for i in (2, 3)]
        ).mean()
    torch.testing.assert_close(info["kl"], expected, rtol=1e-4, atol=1e-8)
    loss.backward()
    norms = torch.stack([p.grad.norm() for p in lora_parameters(model) if p.grad is not None])
    assert 0 < norms.max() < 1e6
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


class Steps(nn.Module):
    """A loop whose second call depends on the parameters through its input, too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1))

    def forward(self, x):
        return 2 * self.net(x)


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_whole_loss_against_finite_differences_through_two_calls(checkpoint, weight):
    torch.manual_seed(3)
    model = Steps().double()
    inject_lora(model, rank=2)
    for parameter in (parameters := lora_parameters(model)):
        parameter.data = parameter.data.double()
    stirred(model, 0.2)
    start = noise(2, 1, 6, 6).double()

    def run():
        with grad_last_steps(model, k=2, num_calls=2, checkpoint=checkpoint):
            x = start
            for _ in range(2):
                x = x - 0.5 * model(x)
        return x

    tuner = RewardFinetuner(run, ScoreLoss(scorer(), weight=weight), denoiser=model, kl_weight=1.0)
    tuner.step()[0].backward()
    directions = [noise(*p.shape, seed=7 + i).double() for i, p in enumerate(parameters)]
    analytic = sum(float((g * d).sum()) for g, d in zip(grads(parameters), directions, strict=True))
    values = []
    for sign in (1, -1):
        for p, d in zip(parameters, directions, strict=True):
            p.data += sign * 1e-3 * d
        values.append(tuner.step()[0].item())
        for p, d in zip(parameters, directions, strict=True):
            p.data -= sign * 1e-3 * d
    assert analytic == pytest.approx((values[0] - values[1]) / 2e-3, rel=2e-3)


def test_clipping_is_by_image_and_the_facts_are_told():
    steep = torch.tensor([1.0, 100.0, 1.0])
    bright = scorer(lambda x: steep.to(x)[: len(x)] * x.mean((1, 2, 3)))
    model = unet()
    parameters = inject_lora(model, rank=2)
    options = {"denoiser": model, "kl_weight": 0.0}
    start = noise(3, 1, 8, 8)
    norm = 1 / 8  # of the mean over 64 pixels
    tuner = RewardFinetuner(sampler(model), bright, clip_gradient=2 * norm, **options)
    tuner.reward._tried = True  # its own check takes two images
    loss, info = tuner.step(start)
    loss.backward()
    ours = grads(parameters)
    assert float(info["clipped"]) == pytest.approx(1 / 3)
    assert float(info["image_gradient"]) == pytest.approx(norm * 102 / 3, rel=1e-5)
    assert float(info["image_gradient_max"]) == pytest.approx(norm * 100, rel=1e-5)
    (-torch.tensor([1.0, 2.0, 1.0]) * sampler(model)(start).mean((1, 2, 3))).mean().backward()
    for a, b in zip(ours, grads(parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)


def test_a_ceiling_a_function_a_network_and_prompts_as_rewards():
    model, _, _ = tuned()
    start = noise(2, 1, 8, 8)
    build = functools.partial(RewardFinetuner, sampler(model), denoiser=model, kl_weight=0.0)
    free = float(build(greyness).step(start)[1]["reward"])
    _, info = build(greyness, ceiling=-10.0).step(start)
    assert (float(info["at_ceiling"]), float(info["reward"])) == (1, free)
    assert float(build(greyness, ceiling=1.0).step(start)[1]["at_ceiling"]) == 0
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    tuner = build(network)
    tuner.step(start)[0].backward()
    assert network[1].weight.grad is None
    assert not network[1].weight.requires_grad

    def liked(images, prompt):
        return greyness(images) * torch.tensor([float(len(p)) for p in prompt])

    assert float(build(liked).step(start, prompt=["a", "abc"])[1]["reward"]) < free
    level = build(ScoreLoss(scorer(), ceiling="real")).step(start, real=torch.full((64, 1, 8, 8), 0.7))[1]["ceiling"]
    assert float(level) == pytest.approx(0, abs=1e-6)


# Weight 0


def test_weight_zero_does_nothing_and_the_run_stays_the_users():
    model, parameters, _ = tuned()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    state = torch.get_rng_state()
    run = sampler(model)
    options = {"denoiser": model, "pretrain_loss": lambda batch: 1 / 0}
    idle = RewardFinetuner(run, ScoreLoss(scorer(), weight=0.0), kl_weight=0.0, **options)
    loss, info = idle.step(noise(2, 1, 8, 8))
    assert (float(loss), loss.requires_grad, len(calls), set(info)) == (0, False, 0, {"loss"})
    assert idle.run_state()["draws"] == 0
    RewardFinetuner(run, scorer(), kl_weight=0.0, **options).step(noise(2, 1, 8, 8))
    assert len(calls) == 4  # no call for a base
    calls.clear()
    RewardFinetuner(run, scorer(), kl_weight=1.0, **options).step(noise(2, 1, 8, 8))
    assert len(calls) == 5
    calls.clear()
    only_kl = RewardFinetuner(run, ScoreLoss(scorer(), weight=0.0), kl_weight=1.0, denoiser=model)
    loss, info = only_kl.step(noise(2, 1, 8, 8))
    assert set(info) == {"loss", "kl"}
    assert loss.item() == float(info["kl"]) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert len(model._forward_hooks) == 1
    assert all(p.requires_grad for p in parameters)
    assert not any(part.training for part in model.modules())


# The pre-training term


def test_denoising_loss_against_each_schedulers_own_training_target():
    model, clean, e = unet(), noise(3, 1, 8, 8, seed=1).tanh(), noise(3, 1, 8, 8, seed=2)
    t = torch.tensor([10, 400, 900])
    for kind in ("epsilon", "v_prediction", "sample"):
        scheduler = DDPMScheduler(prediction_type=kind)
        noisy = scheduler.add_noise(clean, e, t)
        target = {"epsilon": e, "v_prediction": scheduler.get_velocity(clean, e, t), "sample": clean}[kind]
        expected = F.mse_loss(model(noisy, t).sample, target, reduction="none").mean((1, 2, 3))
        found = denoising_loss(model, scheduler, clean, timesteps=t, noise=e)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    euler = EulerDiscreteScheduler()
    t = euler.timesteps[[5, 500, 900]]
    noisy = euler.add_noise(clean, e, t)
    sigmas = euler.sigmas[[5, 500, 900]].view(-1, 1, 1, 1)
    expected = F.mse_loss(model(noisy / (sigmas**2 + 1).sqrt(), t).sample, e, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(
        denoising_loss(model, euler, clean, timesteps=t, noise=e), expected, rtol=1e-4, atol=1e-6
    )
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    t = flow.timesteps[[5, 500, 900]]
    level = (t / 1000).view(-1, 1, 1, 1)
    output = model((1 - level) * clean + level * e, t).sample
    expected = F.mse_loss(output, e - clean, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(denoising_loss(model, flow, clean, timesteps=t, noise=e), expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="EDMEulerScheduler weights its loss"):
        denoising_loss(model, EDMEulerScheduler(), clean, timesteps=t, noise=e)
    with pytest.raises(ValueError, match="generator="):
        denoising_loss(model, flow, clean)
    with pytest.raises(TypeError, match="floating point"):
        denoising_loss(model, flow, clean.byte(), timesteps=t, noise=e)


def test_the_denoising_loss_goes_through_ddp_which_reduces_its_gradients():
    model, clean = unet(), noise(2, 1, 8, 8).tanh()
    wrapped, seen = nn.DataParallel(model), []
    wrapped.register_forward_hook(lambda *_: seen.append(1))
    draws = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    losses = [denoising_loss(part, DDPMScheduler(), clean, generator=draws()) for part in (model, wrapped)]
    assert torch.equal(*losses)
    assert seen == [1]


def test_quality_weights_on_the_losses_of_ordinary_training():
    """What a sample is worth multiplies its own denoising loss, and nothing else."""
    model, scheduler = unet(), DDPMScheduler()
    clean = noise(4, 1, 8, 8).tanh()
    worth = quality_weights(torch.tensor([20.0, 30.0, 40.0, float("nan")]), missing="never")
    rng = lambda: torch.Generator().manual_seed(4)  # noqa: E731
    losses = denoising_loss(model, scheduler, clean, generator=rng())
    (worth * losses).mean().backward()
    weighted = grads(model.parameters())
    draws = rng()
    t, e = torch.randint(1000, (4,), generator=draws), torch.randn(clean.shape, generator=draws)
    for i in range(3):  # the fourth has weight 0
        noisy = scheduler.add_noise(clean[i : i + 1], e[i : i + 1], t[i : i + 1])
        (float(worth[i]) / 4 * F.mse_loss(model(noisy, t[i : i + 1]).sample, e[i : i + 1])).backward()
    for a, b in zip(weighted, grads(model.parameters()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_the_pretraining_term_is_added_and_its_draws_are_its_own():
    model, _, _ = tuned()
    real, start = noise(4, 1, 8, 8, seed=5).tanh(), noise(2, 1, 8, 8)
    options = {"denoiser": model, "kl_weight": 0.0, "pretrain_weight": 0.5}
    state = torch.get_rng_state()
    tuner = RewardFinetuner(sampler(model), scorer(), scheduler=DDPMScheduler(), **options)
    loss, info = tuner.step(start, batch=real)
    assert torch.equal(torch.get_rng_state(), state)
    assert loss.item() == pytest.approx(-float(info["reward"]) + 0.5 * float(info["pretrain"]), rel=1e-5)
    again = RewardFinetuner(sampler(model), scorer(), scheduler=DDPMScheduler(), **options)
    assert again.step(start, batch=(real, {}))[0].item() == loss.item() != tuner.step(start, batch=real)[0].item()
    mine = RewardFinetuner(sampler(model), scorer(), pretrain_loss=lambda x: model(x, 3).sample.square(), **options)
    assert float(mine.step(start, batch=real)[1]["pretrain"]) == pytest.approx(
        float(model(real, 3).sample.detach().square().mean()), rel=1e-5
    )
    with pytest.raises(ValueError, match="batch="):
        mine.step(start)
    detached = RewardFinetuner(sampler(model), scorer(), pretrain_loss=lambda x: torch.ones(()), **options)
    with pytest.raises(ValueError, match="pre-training loss has no gradient"):
        detached.step(start, batch=real)
    for wrong in ({}, {"pretrain_loss": len, "scheduler": DDPMScheduler()}):
        with pytest.raises(ValueError, match="either pretrain_loss= or scheduler="):
            RewardFinetuner(sampler(model), scorer(), **options, **wrong)


# What would be a silent zero


def test_images_without_a_graph_name_who_cut_it():
    pipe, call = stable_diffusion()
    model = pipe.unet
    inject_lora(model, rank=2)
    build = lambda run, **options: RewardFinetuner(run, greyness, denoiser=model, **options)  # noqa: E731
    with pytest.raises(ValueError, match=r"under no_grad, as a Diffusers pipeline's do.*grad_last_steps"):
        build(lambda: sample(pipe, call)).step()
    with pytest.raises(TypeError, match='output_type="pt"'):
        build(lambda: sample(pipe, call, output_type="pil")).step()
    with pytest.raises(ValueError, match="did not call this UNet2DConditionModel"):
        build(lambda: torch.rand(2, 3, 8, 8)).step()

    def within(cut=lambda x: x):
        with grad_last_steps(pipe):
            return cut(sample(pipe, call))

    with pytest.raises(ValueError, match="cut it off after that"):
        build(lambda: within(torch.Tensor.detach)).step()
    with pytest.raises(ValueError, match=r"under torch\.no_grad"), torch.no_grad():
        build(lambda: sample(pipe, call)).step()
    with pytest.raises(ValueError, match="does not lead to a trainable parameter"):
        build(lambda: sample(pipe, call).requires_grad_()).step()
    with pytest.raises(ValueError, match="no call of this UNet2DConditionModel with a gradient"):
        build(lambda: torch.rand(2, 3, 8, 8) * lora_parameters(model)[0].sum(), kl_weight=1.0).step()
    build(within).step()


def test_denoisers_that_cannot_learn_or_have_no_base():
    frozen = unet().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of UNet2DModel requires a gradient"):
        RewardFinetuner(sampler(frozen), scorer(), denoiser=frozen).step(noise(2, 1, 8, 8))
    full = unet()
    with pytest.raises(ValueError, match=r"no LoRA in this UNet2DModel.*full fine-tune: kl_weight=0"):
        RewardFinetuner(sampler(full), scorer(), denoiser=full).step(noise(2, 1, 8, 8))
    RewardFinetuner(sampler(full), scorer(), denoiser=full, kl_weight=0.0).step(noise(2, 1, 8, 8))[0].backward()
    half, _, tuner = tuned()
    for parameter in lora_parameters(half):
        parameter.data = parameter.data.half()
    with pytest.raises(ValueError, match=r"float16.*GradScaler"):
        tuner.step(noise(2, 1, 8, 8))
    thawed, _, tuner = tuned()
    thawed.conv_out.weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"outside the adapter are trained, such as 'conv_out\.weight'"):
        tuner.step(noise(2, 1, 8, 8))
    loose = nn.Sequential(nn.Conv2d(1, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 1, 1))
    inject_lora(loose, rank=2)
    tuner = RewardFinetuner(lambda x: loose(x).sigmoid(), scorer(), denoiser=loose)
    with pytest.raises(ValueError, match=r"Dropout in training mode.*\.eval\(\)"):
        tuner.step(noise(2, 1, 8, 8))
    loose.eval()
    tuner.step(noise(2, 1, 8, 8))


def test_rewards_that_teach_nothing_and_numbers_that_are_none():
    model, parameters, _ = tuned()
    start = noise(2, 1, 8, 8)
    build = lambda reward, run=None, **options: RewardFinetuner(  # noqa: E731
        run or sampler(model), reward, denoiser=model, **options
    )
    with pytest.raises(ValueError, match="no gradient comes back"):
        build(lambda x: x.detach().mean((1, 2, 3))).step(start)
    with pytest.raises(ValueError, match="gradient"):
        build(lambda x: 0 * x.mean((1, 2, 3))).step(start)
    with pytest.raises(ValueError, match=r"finite|nan"):
        build(lambda x: x.mean((1, 2, 3)) * float("nan")).step(start)
    with pytest.raises(ValueError, match=r"nan|finite"):
        build(scorer(), lambda x: sampler(model)(x) * float("nan")).step(start)
    hard = lambda x: (100 + sampler(model)(x)).clamp(0, 1) - 0.5 * model.conv_in.lora_A["default"].weight.sum()  # noqa: E731
    with pytest.raises(ValueError, match="zero at the denoiser's output"):
        build(scorer(), hard).step(start)
    nan = build(scorer(), pretrain_weight=1.0, pretrain_loss=lambda b: parameters[0].sum() * float("nan"))
    with pytest.raises(ValueError, match="'pretrain' is nan"):
        nan.step(start, batch=1)
    pndm = PNDMScheduler(skip_prk_steps=True)
    with pytest.raises(ValueError, match="depend"):
        build(scorer(), lambda x: reward_sample(model, pndm, x, num_steps=4)).step(start)


def test_arguments_that_do_not_fit():
    model, _, _ = tuned()
    for wrong, kind, said in (
        ({"sample": 3}, TypeError, "sample must be a function"),
        ({"denoiser": lambda x: x}, TypeError, "denoiser must be a network"),
        ({"reward": "musiq"}, TypeError, "ScoreLoss, a Scorer or a function"),
        ({"reward": ScoreLoss(scorer()), "ceiling": 0.5}, ValueError, "give the ceiling to it"),
        ({"kl_weight": -1}, ValueError, "kl_weight"),
        ({"clip_gradient": float("inf")}, ValueError, "clip_gradient"),
    ):
        with pytest.raises(kind, match=said):
            RewardFinetuner(**{"sample": sampler(model), "reward": scorer(), "denoiser": model, **wrong})
    with pytest.raises(ValueError, match="not the state"):
        RewardFinetuner(sampler(model), scorer(), denoiser=model).load_run_state({"draws": 1})


# With the rest


class Run:
    """Reward tuning as an Accelerate script: accumulation, clipping, a guard, an adapter-only checkpoint."""

    def __init__(self, precision: str = "no") -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2, mixed_precision=precision)
        model = unet()
        self.parameters = inject_lora(model, rank=2)
        self.model, self.optimizer = self.accelerator.prepare(model, torch.optim.AdamW(self.parameters, lr=1e-2))
        self.tuner = RewardFinetuner(
            sampler(self.model),
            ScoreLoss(scorer(), views=2),
            denoiser=self.model,
            kl_weight=1.0,
            pretrain_weight=0.1,
            scheduler=DDPMScheduler(),
        )
        self.writer = MemoryWriter()
        guard = RewardGuard(scorer(), images="images", every=2, n=12, name="guard")
        self.hooks = Hooks([guard], writer=self.writer, track={"reward": self.tuner}, log_every=1)
        attach(self.accelerator, self.hooks)
        save_adapter_only(self.accelerator, self.model)

    def steps(self, first: int, last: int) -> Run:
        for step in range(first, last):
            for micro in range(2):
                with self.accelerator.accumulate(self.model):
                    start = torch.randn(8, 1, 8, 8, generator=self.tuner.generator())
                    with self.accelerator.autocast():
                        loss, _ = self.tuner.step(start, batch=noise(4, 1, 8, 8, seed=2 * step + micro).tanh())
                    self.accelerator.backward(loss)
                    reduce_gradients(self.parameters, accelerator=self.accelerator)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.parameters, 0.1)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                if self.accelerator.sync_gradients:
                    self.hooks.step(images=self.tuner.images)
        return self


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.filterwarnings("ignore:.*the samples have moved away.*:UserWarning")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_ten_steps_are_five_a_checkpoint_and_five(tmp_path, precision):
    whole = Run(precision).steps(0, 10)
    part = Run(precision).steps(0, 5)
    before = [p.detach().clone() for p in part.parameters]
    part.accelerator.save_state(str(tmp_path / "state"))
    files = {path.name for path in (tmp_path / "state").iterdir()}
    assert "pytorch_lora_weights.safetensors" in files
    assert not any(name.startswith("model") for name in files)
    resumed = Run(precision)
    resumed.accelerator.load_state(str(tmp_path / "state"))
    assert all(torch.equal(a, b) for a, b in zip(before, resumed.parameters, strict=True))
    resumed.steps(5, 10)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters, resumed.parameters, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, resumed.parameters, strict=True))
    assert resumed.tuner.run_state() == whole.tuner.run_state()
    for tag, points in whole.writer.scalars.items():
        if "qa_perf" not in tag:
            assert resumed.writer.scalars[tag] == [point for point in points if point[0] > 5], tag
    for term in ("loss", "reward", "kl", "pretrain", "image_gradient"):
        points = whole.writer.scalars[f"qa_loss/reward/{term}"]
        assert [step for step, _ in points] == list(range(1, 11))
    assert "qa_eval/guard/severity" in whole.writer.scalars


@pytest.mark.usefixtures("fresh_accelerate")
def test_other_models_of_a_checkpoint_are_saved_as_ever(tmp_path):
    accelerator = Accelerator(cpu=True)
    first, model, last = nn.Linear(2, 2), unet(), nn.Linear(3, 3)
    inject_lora(model, rank=2)
    stirred(model)
    first, model, last = accelerator.prepare(first, model, last)
    handle = save_adapter_only(accelerator, model, folder="adapter")
    accelerator.save_state(str(tmp_path))
    kept = [[p.detach().clone() for p in part.parameters()] for part in (first, model, last)]
    for parameter in (*first.parameters(), *lora_parameters(model), *last.parameters()):
        parameter.data.zero_()
    accelerator.load_state(str(tmp_path))
    for part, values in zip((first, model, last), kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part.parameters(), values, strict=True))
    size = sum(p.numel() for p in model.parameters()) * 4
    saved = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert len(saved) == 3
    assert sum(saved) < size / 2
    handle.remove()
    accelerator.save_state(str(tmp_path / "all"))
    assert len(list((tmp_path / "all").glob("model*.safetensors"))) == 3
    with pytest.raises(ValueError, match="no LoRA"):
        save_adapter_only(accelerator, first)
    with pytest.raises(TypeError, match=r"accelerate\.Accelerator"):
        save_adapter_only(nn.Linear(1, 1), model)


@pytest.mark.usefixtures("fresh_accelerate")
def test_after_training_plain_diffusers_makes_the_same_images(tmp_path):
    pipe, call = stable_diffusion()
    accelerator = Accelerator(cpu=True)
    parameters = inject_lora(pipe.unet, rank=2, alpha=4.0)
    optimizer = accelerator.prepare(torch.optim.AdamW(parameters, lr=0.05))
    save_adapter_only(accelerator, pipe.unet)

    def run():
        with grad_last_steps(pipe, k=1):
            return sample(pipe, call)

    tuner = RewardFinetuner(run, greyness, denoiser=pipe.unet, kl_weight=0.1)
    rewards = []
    for _ in range(6):
        loss, info = tuner.step()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(float(info["reward"]))
    assert rewards[-1] > rewards[0]
    with torch.no_grad():
        trained = sample(pipe, call)
    save_lora(pipe.unet, tmp_path / "adapter")
    accelerator.save_state(str(tmp_path / "state"))
    for folder in ("adapter", "state"):
        fresh, call = stable_diffusion()
        with torch.no_grad():
            base = sample(fresh, call)
            fresh.load_lora_weights(str(tmp_path / folder))
            loaded = sample(fresh, call)
        torch.testing.assert_close(loaded, trained, rtol=0, atol=1e-5)
        assert float((loaded - base).abs().max()) > 1e-3
    again, call = stable_diffusion()
    load_lora(again.unet, Path(tmp_path / "state"))
    with torch.no_grad():
        assert torch.equal(sample(again, call), trained)
