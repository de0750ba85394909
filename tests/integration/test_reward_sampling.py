"""Sampling with a gradient, and the predicted clean image: closed forms, finite differences, hand-written loops."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from toy_scorers import brightness

diffusers = pytest.importorskip("diffusers")

from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from qa_hooks.integrations.diffusers import predicted_image, reward_sample  # noqa: E402
from qa_hooks.integrations.diffusers.prediction import predicted_clean  # noqa: E402
from qa_hooks.losses import ScoreLoss  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*another convention.*:UserWarning")

PLAIN = {"clip_sample": False}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(timestep_spacing="trailing", **PLAIN),
    "ddim v": lambda: DDIMScheduler(prediction_type="v_prediction", **PLAIN),
    "ddim sample": lambda: DDIMScheduler(prediction_type="sample", **PLAIN),
    "ddpm": lambda: DDPMScheduler(**PLAIN),
    "euler": lambda: EulerDiscreteScheduler(timestep_spacing="trailing"),
    "euler v": lambda: EulerDiscreteScheduler(prediction_type="v_prediction"),
    "euler a": lambda: EulerAncestralDiscreteScheduler(),
    "dpm++": lambda: DPMSolverMultistepScheduler(),
    "dpm++ flow": lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
    "flow": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
}
METHODS = [("last", 1), ("last", 3), ("random", 1), ("refl", 1), ("lv", 1)]


class Net(nn.Module):
    """A smooth denoiser that depends on x, t and two parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x, t):
        return self.value(x, t, self.weight)

    @staticmethod
    def value(x, t, weight):
        level = (t.to(x) / 1000).clamp(0, 1)[:, None, None, None]
        return 0.9 * level.sqrt() * x + 0.3 * torch.tanh(weight[0] * x + weight[1] * (1 + level))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rng(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def squash(latents: torch.Tensor) -> torch.Tensor:
    """Into the middle of [-1, 1]: a clamp at work has no finite difference."""
    return 0.9 * torch.tanh(latents / 6)


def reward(images: torch.Tensor) -> torch.Tensor:
    return (images - 0.4).square().mean() + images.mean()


# -------------------------------------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("k", [1, 2, 5])
def test_draft_of_a_linear_denoiser_is_the_closed_form(k):
    """e = w x under DDIM makes x_0 = prod_i (A_i + B_i w) x_T; the last k factors carry the derivative."""
    steps, w = 5, 0.4
    scheduler = DDIMScheduler(timestep_spacing="trailing", **PLAIN)
    weight = nn.Parameter(torch.tensor(w))
    start = noise(3, 1, 4, 4)
    options = {"num_steps": steps, "k": k, "decode": lambda latents: latents / 100}  # no clamp at work
    images = reward_sample(lambda x, t: weight * x, scheduler, start, **options)
    images.sum().backward()

    abar = scheduler.alphas_cumprod.double().numpy()
    times = np.round(np.arange(1000, 0, -1000 / steps)).astype(int) - 1
    now, then = abar[times], np.append(abar[times[1:]], scheduler.final_alpha_cumprod.item())
    a, b = np.sqrt(then / now), np.sqrt(1 - then) - np.sqrt(then * (1 - now) / now)
    factors = a + b * w
    slope = sum(b[i] * np.prod(np.delete(factors, i)) for i in range(steps - k, steps))
    assert weight.grad.item() == pytest.approx(slope * start.double().sum().item() / 200, rel=1e-4)
    expected = (np.prod(factors) * start.double().numpy() / 100 + 1) / 2
    np.testing.assert_allclose(images.detach().numpy(), expected, atol=1e-5)


def frozen_until(first: int, base: torch.Tensor, moved: torch.Tensor):
    """The same network, whose weights are other ones from the call `first` on."""
    calls = iter(range(10**6))
    return lambda x, t: Net.value(x, t, moved if next(calls) >= first else base)


def first_call_with_gradient(method: str, k: int, calls: int) -> int:
    if method == "lv":
        return calls
    if method == "refl":
        return int(torch.randint(min(math.ceil(0.75 * calls), calls - 1), calls, (), generator=rng()))
    return calls - (int(torch.randint(1, min(calls, 10) + 1, (), generator=rng())) if method == "random" else k)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("method", "k"), [*METHODS, ("last", 6)], ids=str)
def test_finite_differences_of_the_calls_with_a_gradient(name, method, k):
    """From a latent frozen where the gradient begins; with k = T that is the whole loop."""
    net, start, scheduler = Net(), 0.6 * noise(3, 1, 4, 4), SCHEDULERS[name]()
    options = {"num_steps": 6, "method": method, "k": k, "decode": squash}
    images = reward_sample(net, scheduler, start, generator=rng(), **options)
    reward(images).backward()

    step, base = 1e-2, net.weight.detach()
    first = first_call_with_gradient(method, k, 6)
    for index in range(2):
        values = []
        for sign in (1, -1):
            moved = base.clone()
            moved[index] += sign * step
            with torch.no_grad():
                f = frozen_until(first, base, moved)
                values.append(reward(reward_sample(f, scheduler, start, generator=rng(), **options)).double())
        slope = float(values[0] - values[1]) / (2 * step)
        assert net.weight.grad[index].item() == pytest.approx(slope, rel=2e-3, abs=3e-5)


@pytest.mark.parametrize(("method", "k"), METHODS)
def test_parameters_of_the_prefix_get_nothing(method, k):
    weights = nn.Parameter(torch.full((20,), 0.3))
    calls = []

    def denoise(x, t):
        calls.append(torch.is_grad_enabled())
        return weights[len(calls) - 1] * x

    scheduler = SCHEDULERS["ddim"]()
    options = {"method": method, "k": k, "num_steps": 12, "checkpoint": False}
    reward_sample(denoise, scheduler, noise(2, 1, 8, 8), generator=rng(), **options).sum().backward()
    first = first_call_with_gradient(method, k, 12)
    last = {"refl": first + 1, "lv": 14}.get(method, 12)
    assert calls == [index >= first for index in range(last)]
    assert [bool(g) for g in weights.grad != 0] == [first <= index < last for index in range(20)]


def test_random_depths_and_refl_stops_cover_their_ranges():
    depths, stops = set(), set()
    weight = nn.Parameter(torch.ones(()))
    for seed in range(150):
        calls = []

        def denoise(x, t, calls=calls):
            calls.append(torch.is_grad_enabled())
            return 0.1 * x * weight

        for method, steps in (("random", 14), ("refl", 8)):
            calls.clear()
            options = {"generator": rng(seed), "checkpoint": False}
            reward_sample(denoise, DDIMScheduler(), noise(1, 1, 8, 8), num_steps=steps, method=method, **options)
            (depths if method == "random" else stops).add(sum(calls) if method == "random" else len(calls) - 1)
    assert depths == set(range(1, 11))
    assert stops == {6, 7}


def test_lv_of_a_linear_denoiser_has_the_expected_gradient():
    """x_1 = a x_0 + s e, c = (1 - s w) / a: E d/dw (c x_1)^2 = 2 c c' (a^2 x_0^2 + s^2)."""
    w = 0.95
    weight = nn.Parameter(torch.tensor(w))
    scheduler = DDIMScheduler(timestep_spacing="trailing", **PLAIN)
    start, steps = 0.6 * noise(6000, 1, 2, 2), 4
    each = []
    for seed in range(4):
        images = reward_sample(
            lambda x, t: weight * x, scheduler, start, num_steps=steps, method="lv", noises=1, generator=rng(50 + seed),
            decode=lambda latents: latents / 20,
        )  # fmt: skip
        assert 0 < images.min() < images.max() < 1, "no clamp at work"
        values = (40 * images.flatten() - 20).square()
        (slope,) = torch.autograd.grad(values.mean(), weight)
        each.append(slope.item())
    own = copy.deepcopy(scheduler)
    own.set_timesteps(steps)
    x = start.clone()
    for t in own.timesteps:
        x = own.step(w * x, t, x).prev_sample
    abar = own.alphas_cumprod[own.timesteps[-1]].item()
    a, s = math.sqrt(abar), math.sqrt(1 - abar)
    c, slope = (1 - s * w) / a, -s / a
    expected = 2 * c * slope * (abar * x.square().mean().item() + s**2)
    assert np.mean(each) == pytest.approx(expected, rel=0.01)
    assert abar * x.square().mean() < 3 * s**2, "the noise matters"
    assert len(set(each)) == 4


def test_lv_returns_all_images_of_one_noise_after_the_other():
    net, start = Net(), noise(3, 1, 8, 8)
    two = reward_sample(net, DDPMScheduler(), start, num_steps=4, method="lv", noises=2, generator=rng())
    one = reward_sample(net, DDPMScheduler(), start, num_steps=4, method="lv", noises=1, generator=rng())
    assert two.shape == (6, 1, 8, 8)
    assert torch.equal(two[:3], one)
    assert not torch.equal(two[3:], one)


# ------------------------------------------------------------------------------------------------------------ the loop


def unet(**options):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return diffusers.UNet2DModel(8, 1, 1, **{**sizes, **blocks, **options})


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_equals_the_loop_written_by_hand(name):
    net, start, k, steps = unet(), noise(2, 1, 8, 8), 2, 5
    scheduler = SCHEDULERS[name]()
    generator = rng()
    options = {"num_steps": steps, "k": k, "checkpoint": False, "generator": generator, "decode": squash}
    images = reward_sample(net, scheduler, start, **options)
    reward(images).backward()
    ours = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()

    own, generator = copy.deepcopy(scheduler), rng()
    own.set_timesteps(steps)
    x = start * getattr(own, "init_noise_sigma", 1.0)
    options = {"generator": generator} if name in ("ddpm", "euler a", "ddim") else {}
    for index, t in enumerate(own.timesteps):
        with torch.set_grad_enabled(index >= steps - k):
            scaled = own.scale_model_input(x, t) if hasattr(own, "scale_model_input") else x
            x = own.step(net(scaled, t.expand(2)).sample, t, x, **options).prev_sample
    by_hand = (squash(x) + 1) / 2
    reward(by_hand).backward()
    assert torch.allclose(images, by_hand, atol=1e-6)
    for mine, p in zip(ours, net.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["euler", "flow"])
def test_refl_and_lv_equal_what_is_written_by_hand(name):
    net, start, steps = Net(), noise(2, 1, 8, 8), 8
    own = SCHEDULERS[name]()
    own.set_timesteps(steps)
    stop = first_call_with_gradient("refl", 1, steps)
    x = start * getattr(own, "init_noise_sigma", 1.0)

    def predict(x, index):
        sigma = own.sigmas[index]
        scaled = x / (1 + sigma**2).sqrt() if name == "euler" else x
        return x - sigma * net(scaled, own.timesteps[index].expand(2))

    with torch.no_grad():
        for index in range(steps):
            clean, sigma = predict(x, index), own.sigmas[index]
            if index == stop:
                refl = clean
            x = x + (x - clean) / sigma * (own.sigmas[index + 1] - sigma)
        extra, sigma = torch.randn(x.shape, generator=rng()), own.sigmas[steps - 1]
        lv = predict((x if name == "euler" else (1 - sigma) * x) + sigma * extra, steps - 1)
        for method, expected in (("refl", refl), ("lv", lv)):
            options = {"num_steps": steps, "method": method, "noises": 1, "generator": rng(), "decode": squash}
            images = reward_sample(net, SCHEDULERS[name](), start, **options)
            assert torch.allclose(images, (squash(expected) + 1) / 2, atol=1e-5)


@pytest.mark.parametrize(("method", "k"), METHODS)
def test_checkpointed_is_unchecked_to_the_bit(method, k):
    net = unet(dropout=0.3)  # also where the network draws
    results = []
    for checkpoint in (True, False):
        net.zero_grad()
        torch.manual_seed(3)
        options = {"method": method, "k": k, "checkpoint": checkpoint, "generator": rng()}
        images = reward_sample(net, EulerDiscreteScheduler(), noise(2, 1, 8, 8), num_steps=5, **options)
        reward(images).backward()
        results.append((images.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert len(results[0][1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def state_of(scheduler):
    return {name: copy.deepcopy(value) for name, value in vars(scheduler).items()}


def same(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.all(a == b))


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(("method", "k"), METHODS)
def test_the_users_scheduler_network_and_random_numbers_stay(name, method, k):
    scheduler, net = SCHEDULERS[name](), Net()
    scheduler.set_timesteps(7)
    before, state = state_of(scheduler), torch.get_rng_state()
    options = {"num_steps": 4, "method": method, "k": k}
    first = reward_sample(net, scheduler, noise(2, 1, 8, 8), **options)
    assert net.training
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert vars(scheduler).keys() == before.keys()
    assert all(same(value, before[key]) for key, value in vars(scheduler).items())
    assert torch.equal(first, reward_sample(net, scheduler, noise(2, 1, 8, 8), **options))


def test_without_a_generator_the_draws_follow_the_noise():
    net = Net()
    a, b = noise(2, 1, 8, 8), noise(2, 1, 8, 8, seed=1)

    def added(start):  # what DDPM adds on its way, seen through a network that says nothing
        return reward_sample(lambda x, t: 0 * net(x, t), DDPMScheduler(), start, num_steps=3).detach()

    assert torch.equal(added(a), added(a))
    assert not torch.allclose(added(a), added(b))
    seen = reward_sample(net, DDPMScheduler(), a, num_steps=3, generator=rng(1))
    assert not torch.equal(seen, reward_sample(net, DDPMScheduler(), a, num_steps=3, generator=rng(2)))


@pytest.mark.parametrize("make", [
    HeunDiscreteScheduler, UniPCMultistepScheduler, LCMScheduler, FlowMatchHeunDiscreteScheduler, EDMEulerScheduler,
    lambda: PNDMScheduler(skip_prk_steps=True, timestep_spacing="trailing"),
])  # fmt: skip
@pytest.mark.parametrize(("method", "k"), METHODS)
def test_further_schedulers(make, method, k):
    net = Net()
    images = reward_sample(net, make(), noise(2, 1, 8, 8), num_steps=8, method=method, k=k)
    reward(images).backward()
    assert torch.isfinite(net.weight.grad).all()
    assert (net.weight.grad != 0).all()


@pytest.mark.parametrize(("make", "calls"), [
    (HeunDiscreteScheduler, (1, 3, 5, 7)), (FlowMatchHeunDiscreteScheduler, (1, 3, 5, 7)),
    (lambda: PNDMScheduler(skip_prk_steps=True, timestep_spacing="trailing"), (1, 2, 3, 5)),
])  # fmt: skip
def test_steps_are_counted_and_none_is_cut_in_two(make, calls):
    """A scheduler of second order calls the denoiser twice in each step but the last, PNDM twice in the first."""
    net, start = Net(), noise(1, 1, 8, 8)
    for k, expected in enumerate(calls, 1):
        live = []
        handle = net.register_forward_hook(lambda module, args, output: live.append(output.requires_grad))  # noqa: B023
        reward_sample(net, make(), start, num_steps=4, k=k)
        handle.remove()
        assert live == [False] * (calls[-1] - expected) + [True] * expected
    with pytest.raises(ValueError, match="k=5, but one sampling has 4 steps"):
        reward_sample(net, make(), start, num_steps=4, k=5)


def test_saturated_pixels_can_come_back():
    """DDIM clips the clean image at each step: the values stay, and so does the gradient that leads back inside."""
    weight = nn.Parameter(torch.tensor(-1.0))
    scheduler, start = DDIMScheduler(timestep_spacing="trailing"), 3 * noise(1, 1, 4, 4).sign()
    with torch.no_grad():
        values = reward_sample(lambda x, t: weight * x, scheduler, start / 3, num_steps=2)
    assert set(values.flatten().tolist()) == {0.0, 1.0}
    images = reward_sample(lambda x, t: weight * x, scheduler, start / 3, num_steps=2, k=2)
    assert torch.equal(images, values)
    outward = (2 * values - 1) * images
    (further,) = torch.autograd.grad(-outward.sum(), weight, retain_graph=True)
    (back,) = torch.autograd.grad(outward.sum(), weight)
    assert further == 0
    assert back.abs() > 0.1


def test_a_last_step_that_ignores_the_network_is_refused():
    scheduler = PNDMScheduler(skip_prk_steps=True)  # its last step goes from t = 0 to t = 0
    with pytest.raises(ValueError, match="does not depend on the denoiser"):
        reward_sample(Net(), scheduler, noise(1, 1, 8, 8), num_steps=8)
    reward_sample(Net(), scheduler, noise(1, 1, 8, 8), num_steps=8, k=2)


def test_no_grad_outside_means_none_inside():
    with torch.no_grad():
        images = reward_sample(Net(), DDIMScheduler(), noise(1, 1, 8, 8), num_steps=3)
    assert not images.requires_grad


# ---------------------------------------------------------------------------------------------- denoisers and decoders


def test_guidance_is_one_call_on_the_doubled_batch():
    torch.manual_seed(0)
    net = diffusers.UNet2DConditionModel(
        8, 4, 4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), block_out_channels=(8, 16),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=2,
        norm_num_groups=4, layers_per_block=1,
    )  # fmt: skip
    text, empty, start = noise(2, 5, 16), torch.zeros(2, 5, 16), noise(2, 4, 8, 8)
    images = reward_sample(
        net, DDIMScheduler(**PLAIN), start, num_steps=1, k=1, guidance_scale=3.0,
        condition={"encoder_hidden_states": text}, negative_condition={"encoder_hidden_states": empty},
        decode=lambda latents: latents[:, :3],
    )  # fmt: skip
    scheduler = DDIMScheduler(**PLAIN)
    scheduler.set_timesteps(1)
    t = scheduler.timesteps[0]
    with torch.no_grad():
        without, with_text = net(start, t, empty).sample, net(start, t, text).sample
    x = scheduler.step(without + 3 * (with_text - without), t, start).prev_sample[:, :3]
    assert torch.allclose(images, (x / 2 + 0.5).clamp(0, 1), atol=1e-4)
    reward(images).backward()
    assert net.conv_in.weight.grad.abs().sum() > 0
    sizes = []
    reward_sample(
        lambda x, t, c, extra: (sizes.append((len(x), len(c["a"]), extra)), x * net.conv_in.bias.sum())[1],
        scheduler, start, num_steps=1, guidance_scale=2.0, checkpoint=False,
        condition={"c": {"a": torch.ones(2)}, "extra": 5}, negative_condition={"c": {"a": torch.zeros(2)}, "extra": 5},
    )  # fmt: skip
    assert sizes == [(4, 4, 5)]


def test_class_conditional_transformer_with_a_learned_variance():
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        num_embeds_ada_norm=11, norm_num_groups=4,
    )  # fmt: skip
    nn.init.normal_(net.proj_out_2.weight, std=0.02)
    images = reward_sample(
        net, DDIMScheduler(**PLAIN), noise(2, 4, 8, 8), num_steps=3, k=2, guidance_scale=2.0,
        condition={"class_labels": torch.tensor([1, 2])}, negative_condition={"class_labels": torch.tensor([10, 10])},
        decode=lambda latents: latents[:, :3],
    )  # fmt: skip
    reward(images).backward()
    assert net.proj_out_2.weight.grad.abs().sum() > 0


def test_flow_transformer_and_vae_with_scaling_and_shift():
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, joint_attention_dim=16, pooled_projection_dim=8, out_channels=4,
    )  # fmt: skip
    nn.init.normal_(net.proj_out.weight, std=0.02)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, scaling_factor=1.5, shift_factor=0.06,
    ).requires_grad_(False)  # fmt: skip
    condition = {"encoder_hidden_states": noise(2, 5, 16), "pooled_projections": noise(2, 8)}
    scheduler, start = FlowMatchEulerDiscreteScheduler(shift=3.0), noise(2, 4, 8, 8)
    options = {"num_steps": 3, "condition": condition}
    images = reward_sample(net, scheduler, start, decode=vae, **options)
    assert images.shape == (2, 3, 16, 16)
    with torch.no_grad():
        latents = reward_sample(net, scheduler, start, decode=lambda z: 2 * z[:, :3] / 200, **options)
        four = []
        reward_sample(net, scheduler, start, decode=lambda z: (four.append(z), z[:, :3])[1], **options)
        assert torch.allclose(images, (vae.decode(four[0] / 1.5 + 0.06).sample / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert latents.shape == (2, 3, 8, 8)
    reward(images).backward()
    assert net.proj_out.weight.grad.abs().sum() > 0


def test_half_precision_networks_leave_the_sampler_in_float32():
    net = unet().to(torch.bfloat16)
    images = reward_sample(net, DDIMScheduler(), noise(2, 1, 8, 8), num_steps=3, k=2)
    assert images.dtype == torch.float32
    reward(images).backward()
    assert net.conv_in.weight.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("checkpoint", [True, False])
def test_weights_that_change_before_backward_are_told(checkpoint):
    net = Net()
    images = reward_sample(net, DDIMScheduler(timestep_spacing="trailing"), noise(2, 1, 8, 8), num_steps=4, k=2,
                           checkpoint=checkpoint)  # fmt: skip
    with torch.no_grad():
        net.weight.add_(0.1)
    with pytest.raises(RuntimeError, match="have changed between" if checkpoint else "inplace"):
        images.mean().backward()


def test_data_parallel_wrappers_are_passed_by():
    net, x = Net(), noise(2, 1, 8, 8)
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    wrapped = nn.DataParallel(net)
    wrapped.forward = None  # would be called
    assert torch.equal(reward_sample(wrapped, scheduler, x, num_steps=4), reward_sample(net, scheduler, x, num_steps=4))


# ------------------------------------------------------------------------------------------------------- the bad input


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"k": 5}, ValueError, "k=5, but one sampling has 4 steps"),
    ({"k": 0}, ValueError, "k must be a whole number"),
    ({"k": 2, "method": "refl"}, ValueError, "k is for method"),
    ({"method": "first"}, ValueError, "method must be one of"),
    ({"num_steps": 0}, ValueError, "num_steps"),
    ({"scheduler": IPNDMScheduler(), "method": "lv"}, ValueError, "prediction type None"),
    ({"scheduler": DDIMScheduler(prediction_type="other")}, ValueError, "prediction type 'other'"),
    ({"scheduler": object()}, TypeError, "Diffusers scheduler"),
    ({"noise": torch.ones(2, 1, 8, 8, dtype=torch.int64)}, TypeError, "floating-point"),
    ({"noise": [1.0]}, TypeError, "floating-point"),
    ({"noise": 14.6 * noise(2, 1, 8, 8)}, ValueError, "standard normal"),
    ({"noise": 0.18 * noise(2, 1, 8, 8)}, ValueError, "standard normal"),
    ({"noise": torch.full((2, 1, 8, 8), math.nan)}, ValueError, "standard normal"),
    ({"denoiser": lambda x, t: x * math.nan * Net().weight[0]}, ValueError, "not finite"),
    ({"denoiser": lambda x, t: x}, ValueError, "no gradient leads"),
    ({"denoiser": lambda x, t: x[:, :, 1:]}, ValueError, "output is"),
    ({"denoiser": lambda x, t: x[:1]}, ValueError, "one output for each of 2 rows"),
    ({"denoiser": lambda x, t: "x"}, ValueError, "one output"),
    ({"denoiser": 3}, TypeError, "denoiser must be"),
    ({"denoiser": Net().half()}, ValueError, "float16"),
    ({"guidance_scale": 2.0}, ValueError, "negative_condition"),
    ({"negative_condition": {"a": 1}}, ValueError, "guidance needs"),
    ({"decode": 3}, TypeError, "decode must be"),
    ({"decode": lambda z: z[0]}, ValueError, "decode must give"),
    ({"scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}, ValueError, '"mu"'),
])  # fmt: skip
def test_bad_input_is_refused_with_a_reason(change, error, message):
    given = {"denoiser": Net(), "scheduler": DDIMScheduler(), "noise": noise(2, 1, 8, 8), "num_steps": 4, **change}
    with pytest.raises(error, match=message):
        reward_sample(given.pop("denoiser"), given.pop("scheduler"), given.pop("noise"), **given)


def test_a_scheduler_without_noise_levels_can_only_do_the_last_calls():
    class Mute(DDIMScheduler):
        add_noise = property()

    scheduler = Mute()
    assert not hasattr(scheduler, "add_noise")
    reward_sample(Net(), scheduler, noise(2, 1, 8, 8), num_steps=4)
    for method in ("refl", "lv"):
        with pytest.raises(ValueError, match="neither add_noise nor scale_noise"):
            reward_sample(Net(), scheduler, noise(2, 1, 8, 8), num_steps=4, method=method)


def test_dynamic_shifting_takes_its_option():
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    images = reward_sample(Net(), scheduler, noise(2, 1, 8, 8), num_steps=4, schedule_options={"mu": 1.15})
    assert images.requires_grad


# ------------------------------------------------------------------------------------------------- the predicted image


PREDICTED = {
    **{f"{make.__name__} {kind}": lambda make=make, kind=kind, options=options: make(prediction_type=kind, **options)
       for make, kinds, options in (
           (DDIMScheduler, ("epsilon", "sample", "v_prediction"), PLAIN),
           (DDPMScheduler, ("epsilon", "sample", "v_prediction"), PLAIN),
           (EulerDiscreteScheduler, ("epsilon", "sample", "v_prediction"), {}),
           (EulerAncestralDiscreteScheduler, ("epsilon", "v_prediction"), {}),
           (EDMEulerScheduler, ("epsilon", "v_prediction"), {}),
           (HeunDiscreteScheduler, ("epsilon", "v_prediction"), {}),
       ) for kind in kinds},
}  # fmt: skip


@pytest.mark.parametrize("name", PREDICTED)
def test_each_row_is_what_the_scheduler_itself_predicts(name):
    make = PREDICTED[name]
    scheduler = make()
    scheduler.set_timesteps(8)
    chosen = scheduler.timesteps.unique(sorted=False)[[0, 3, 6]]
    clean, output = 0.5 * noise(3, 1, 4, 4), noise(3, 1, 4, 4, seed=1)
    noisy = scheduler.add_noise(clean, noise(3, 1, 4, 4, seed=2), chosen)
    predicted, _ = predicted_clean(scheduler, output, chosen, noisy)
    for row, t in enumerate(chosen):
        own = make()
        own.set_timesteps(8)
        own.is_scale_input_called = True
        if isinstance(own, (DDIMScheduler, DDPMScheduler)):
            t = int(t)
        expected = own.step(output[row : row + 1], t, noisy[row : row + 1]).pred_original_sample
        assert torch.allclose(predicted[row : row + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [DPMSolverMultistepScheduler, UniPCMultistepScheduler, LCMScheduler, PNDMScheduler])
def test_a_perfect_network_predicts_the_clean_image(make):
    scheduler, clean, eps = make(), 0.5 * noise(4, 1, 8, 8).tanh(), noise(4, 1, 8, 8, seed=1)
    if hasattr(scheduler, "sigmas"):
        scheduler.set_timesteps(1000)  # before it DPM++ and UniPC look their noise up in the wrong order
    times = torch.tensor([3, 100, 500, 900])
    images, weight = predicted_image(scheduler, eps, times, scheduler.add_noise(clean, eps, times))
    assert torch.allclose(images, (clean + 1) / 2, atol=1e-4)
    abar = DDPMScheduler(beta_start=scheduler.config.beta_start, beta_end=scheduler.config.beta_end,
                         beta_schedule=scheduler.config.beta_schedule).alphas_cumprod[times]  # fmt: skip
    assert torch.allclose(weight, abar.sqrt(), atol=1e-5)


def test_flow_matching():
    scheduler, clean, eps = (
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        0.4 * noise(3, 1, 8, 8).tanh(),
        noise(3, 1, 8, 8),
    )
    times = scheduler.timesteps[[10, 500, 990]]
    sigma = scheduler.sigmas[[10, 500, 990]].view(3, 1, 1, 1)
    noisy, velocity = (1 - sigma) * clean + sigma * eps, eps - clean
    images, weight = predicted_image(scheduler, velocity + 0.1, times, noisy)
    assert torch.allclose(images, ((noisy - sigma * (velocity + 0.1)) + 1) / 2, atol=1e-5)
    assert torch.allclose(predicted_image(scheduler, velocity, times, noisy)[0], (clean + 1) / 2, atol=1e-5)
    assert torch.equal(weight, torch.ones(3))


def test_weights_are_sqrt_abar_for_epsilon_and_one_otherwise():
    times, x = torch.tensor([0, 500, 999]), noise(3, 1, 4, 4)
    for scheduler in (DDPMScheduler(), EulerDiscreteScheduler(beta_end=0.02)):
        given = times if isinstance(scheduler, DDPMScheduler) else times.float()
        abar = scheduler.alphas_cumprod[times]
        assert torch.allclose(predicted_image(scheduler, x, given, x)[1], abar.sqrt(), atol=1e-5)
    for kind in ("sample", "v_prediction"):
        assert torch.equal(predicted_image(DDPMScheduler(prediction_type=kind), x, times, x)[1], torch.ones(3))


def test_a_score_is_one_added_term_of_a_denoising_loop(digits):
    """With the term the predicted digits become brighter than without it; the scheduler stays as it is."""
    bright = ScoreLoss(brightness("bright", score_range=(0, 1)))
    clean, scheduler = torch.nn.functional.avg_pool2d(digits[:32], 2), DDPMScheduler()
    levels = {}
    for added in (0.0, 3.0):
        net = unet()
        optimizer, generator = torch.optim.Adam(net.parameters(), 3e-3), rng()
        for _ in range(25):
            times = torch.randint(0, 300, (32,), generator=generator)
            eps = torch.randn(clean.shape, generator=generator)
            noisy = scheduler.add_noise(clean, eps, times)
            output = net(noisy, times).sample
            images, weight = predicted_image(scheduler, output, times, noisy)
            loss = (output - eps).square().mean() + added * bright(images, sample_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        levels[added] = images.mean().item()
    assert levels[3.0] > levels[0.0] + 0.05
    assert vars(scheduler).keys() == vars(DDPMScheduler()).keys()


def test_it_may_stand_in_the_midst_of_sampling():
    scheduler, x = EulerDiscreteScheduler(), noise(2, 1, 4, 4)
    scheduler.set_timesteps(5)
    times = scheduler.timesteps[[1, 3]]
    before = predicted_clean(scheduler, x, times, x)[0]
    scheduler.set_begin_index(0)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert torch.equal(before, predicted_clean(scheduler, x, times, x)[0])


def test_a_learned_variance_is_left_out():
    x, times = noise(2, 3, 4, 4), torch.tensor([1, 400])
    both = torch.cat([x, 9 * x], 1)
    scheduler = DDPMScheduler(variance_type="learned_range")
    assert torch.equal(predicted_image(scheduler, both, times, x)[0], predicted_image(scheduler, x, times, x)[0])
    images = reward_sample(lambda x, t: torch.cat([x, x], 1) * Net().weight[0], scheduler, x, num_steps=3)
    assert images.shape == x.shape


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"timesteps": torch.tensor(3)}, ValueError, r"timesteps must be \(2,\)"),
    ({"timesteps": 3}, TypeError, "timesteps must be a tensor"),
    ({"timesteps": torch.tensor([1, 1000])}, ValueError, r"in \[0, 1000\)"),
    ({"timesteps": torch.tensor([1.5, 2.0]), "scheduler": DPMSolverMultistepScheduler()}, ValueError, "timestep 1.5"),
    ({"timesteps": torch.tensor([0.1, 0.2]), "scheduler": FlowMatchEulerDiscreteScheduler()}, ValueError, "has no"),
    ({"model_output": noise(2, 3, 4, 4)}, ValueError, "output is"),
    ({"noisy": torch.ones(2, 1, 4, 4, dtype=torch.uint8)}, TypeError, "floating point"),
    ({"model_output": None}, TypeError, "model_output must be a tensor"),
    ({"scheduler": DDPMScheduler(prediction_type="x")}, ValueError, "prediction type 'x'"),
    ({"scheduler": None}, TypeError, "Diffusers scheduler"),
])  # fmt: skip
def test_bad_batches_are_refused_with_a_reason(change, error, message):
    x = noise(2, 1, 4, 4)
    given = {"scheduler": DDPMScheduler(), "model_output": x, "timesteps": torch.tensor([1, 2]), "noisy": x, **change}
    with pytest.raises(error, match=message):
        predicted_image(**given)


@pytest.mark.parametrize("make", [DDPMScheduler, DDIMScheduler])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_at_zero_terminal_snr_the_predicted_image_is_finite(make, kind):
    """x_999 is noise alone: with an epsilon prediction nothing is known of the image there, and its weight is 0."""
    scheduler = make(rescale_betas_zero_snr=True, prediction_type=kind, clip_sample=False)
    steps, clean, e = torch.tensor([10, 999, 500]), noise(3, 1, 8, 8).clamp(-1, 1), noise(3, 1, 8, 8, seed=4)
    noisy = scheduler.add_noise(clean, e, steps)
    targets = {"epsilon": e, "sample": clean, "v_prediction": scheduler.get_velocity(clean, e, steps)}
    output = targets[kind].clone().requires_grad_()
    images, weight = predicted_image(scheduler, output, steps, noisy)
    (gradient,) = torch.autograd.grad((images.flatten(1).sum(1) * weight).sum(), output)
    assert torch.isfinite(images).all()
    assert torch.isfinite(gradient).all()
    assert gradient[0].any()
    assert gradient[2].any()
    if kind == "epsilon":
        assert weight[1] == 0
        assert not gradient[1].any()
        assert (images[1] == 0.5).all()
    else:
        assert weight[1] == 1
        torch.testing.assert_close(images[1], (clean[1] + 1) / 2, atol=1e-5, rtol=0)
