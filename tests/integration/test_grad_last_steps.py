"""`grad_last_steps` on unmodified SD, SDXL, SD3 and Flux pipelines: the gradient, what is restored, what is refused."""

from __future__ import annotations

import copy
import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    PNDMScheduler,
    UNet2DModel,
)
from diffusers.utils.torch_utils import randn_tensor
from tiny_pipelines import BATCH, PIPELINES, SIDE, denoiser_of, last_calls, options_of_sample, reward, sample, vae
from torch import nn

from qa_hooks.integrations.diffusers import grad_last_steps

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),  # of Diffusers' KDPM2
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*bos_token_id.*"),
]
SCHEDULERS = {
    "ddim": ("sd", lambda: DDIMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1), 4, 4),
    "ddpm": ("sd", lambda: DDPMScheduler(timestep_spacing="trailing", clip_sample=False, steps_offset=1), 4, 4),
    "euler": ("sd", lambda: EulerDiscreteScheduler(steps_offset=1), 4, 4),
    "euler_a": ("sd", lambda: EulerAncestralDiscreteScheduler(steps_offset=1), 4, 4),
    "dpm++": ("sd", lambda: DPMSolverMultistepScheduler(steps_offset=1), 4, 4),
    "heun": ("sd", lambda: HeunDiscreteScheduler(steps_offset=1), 3, 5),
    "kdpm2": ("sd", lambda: KDPM2DiscreteScheduler(steps_offset=1), 3, 5),
    "pndm": ("sd", lambda: PNDMScheduler(skip_prk_steps=True, steps_offset=1), 4, 5),
    "flow": ("sd3", lambda: FlowMatchEulerDiscreteScheduler(), 4, 4),
    "flow_heun": ("sd3", lambda: FlowMatchHeunDiscreteScheduler(), 3, 5),
}
TWICE = ("heun", "kdpm2", "flow_heun")  # evaluate twice in each step but the last


def calls_of_last(name: str, k: int, calls: int) -> int:
    """How many of the denoiser's calls are in the last k steps."""
    return min(2 * k - 1 if name in TWICE else k, calls) if k < 4 else calls


@pytest.fixture(scope="module")
def built():
    return {name: make() for name, make in PIPELINES.items()}


@pytest.fixture
def pipelines(built):
    """Shared networks under pipelines, schedulers and gradients of each test's own."""
    for pipe, _ in built.values():
        denoiser_of(pipe).zero_grad()
        denoiser_of(pipe).requires_grad_(True)
    own = {name: (copy.copy(pipe), call) for name, (pipe, call) in built.items()}
    for pipe, _ in own.values():
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
    return own


@pytest.fixture
def sd(pipelines):
    return pipelines["sd"]


def gradients(pipe) -> dict[str, torch.Tensor]:
    denoiser = denoiser_of(pipe)
    found = {name: p.grad.clone() for name, p in denoiser.named_parameters() if p.grad is not None}
    denoiser.zero_grad()
    return found


def gradient_of(pipe, call, k=1, *, steps=4, seed=0, sampled=None, **options) -> dict[str, torch.Tensor]:
    with grad_last_steps(pipe, k, **options):
        reward(sample(pipe, call, steps=steps, seed=seed, **(sampled or {}))).backward()
    return gradients(pipe)


def same(a: dict, b: dict) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def norm(found: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([g.flatten() for g in found.values()]).norm())


def by_hand(pipe, call, k: int, calls: int, steps: int, seed: int = 0) -> torch.Tensor:
    """The sampling loop as one would write it for Stable Diffusion and Stable Diffusion 3, with guidance."""
    generator, scheduler = torch.Generator().manual_seed(seed), copy.deepcopy(pipe.scheduler)
    scheduler.set_timesteps(steps)
    both = torch.cat([call["negative_prompt_embeds"], call["prompt_embeds"]])
    latents = randn_tensor((BATCH, 4, SIDE // 2, SIDE // 2), generator=generator, dtype=both.dtype)
    latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
    extra = {"generator": generator} if type(scheduler) in (DDPMScheduler, EulerAncestralDiscreteScheduler) else {}
    assert len(scheduler.timesteps) == calls
    for index, t in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(index >= calls - k):
            doubled = torch.cat([latents] * 2)
            if hasattr(pipe, "unet"):
                output = pipe.unet(scheduler.scale_model_input(doubled, t), t, both).sample
            else:
                pooled = torch.cat([call["negative_pooled_prompt_embeds"], call["pooled_prompt_embeds"]])
                output = pipe.transformer(doubled, both, pooled, t.expand(2 * BATCH)).sample
            unconditional, conditional = output.chunk(2)
            guided = unconditional + call["guidance_scale"] * (conditional - unconditional)
            latents = scheduler.step(guided, t, latents, **extra).prev_sample
    shift = getattr(pipe.vae.config, "shift_factor", None) or 0
    return (pipe.vae.decode(latents / pipe.vae.config.scaling_factor + shift).sample / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_gradient_is_that_of_a_loop_written_by_hand(pipelines, name):
    family, scheduler, steps, calls = SCHEDULERS[name]
    pipe, call = pipelines[family]
    pipe.scheduler, sizes = scheduler(), []
    for k in (1, 2, steps):
        ours = gradient_of(pipe, call, k, steps=steps)
        images = by_hand(pipe, call, calls_of_last(name, k, calls), calls, steps)
        reward(images).backward()
        theirs = gradients(pipe)
        assert set(ours) == set(theirs)
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=1e-5, atol=1e-7 * max(1.0, norm(theirs)))
        sizes.append(norm(ours))
    assert min(sizes) > 0
    assert len(set(sizes)) == 3  # each k is another gradient


class Frozen:
    """The first calls of a denoiser made by a copy of it, whose weights stay."""

    def __init__(self, denoiser: nn.Module, frozen: nn.Module, first: int) -> None:
        self.denoiser, self.own, self.copy, self.first, self.calls = denoiser, denoiser.forward, frozen, first, 0

    def __enter__(self):
        self.denoiser.forward = self
        return self

    def __exit__(self, *exit):
        del self.denoiser.forward

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return (self.copy if self.calls <= self.first else self.own)(*args, **kwargs)


def doubled(pipe, call):
    """The same in float64."""
    for name in ("unet", "transformer", "vae", "text_encoder_2"):
        part = getattr(pipe, name, None)
        if part is not None:
            setattr(pipe, name, copy.deepcopy(part).double())
    return pipe, {name: value.double() if torch.is_tensor(value) else value for name, value in call.items()}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", [*SCHEDULERS, "sdxl", "flux"])
def test_the_gradient_is_the_slope_of_the_last_steps_from_a_frozen_latent(pipelines, name, k):
    family, scheduler, steps, calls = SCHEDULERS.get(name, (name, None, 4, 4))
    pipe, call = doubled(*pipelines[family])
    if scheduler is not None:
        pipe.scheduler = scheduler()
    denoiser, frozen = denoiser_of(pipe), copy.deepcopy(denoiser_of(pipe))
    found = gradient_of(pipe, call, k, steps=steps)
    slope = norm(found)  # along the gradient itself

    def value(distance: float) -> float:
        with torch.no_grad():
            for (key, p), start in zip(denoiser.named_parameters(), frozen.parameters(), strict=True):
                if key in found:
                    p.copy_(start + distance / slope * found[key])
        with Frozen(denoiser, frozen, calls - calls_of_last(name, k, calls)) as loop:
            result = float(reward(sample(pipe, call, steps=steps)))
        assert loop.calls == calls
        return result

    unit = 1e-2 / max(1.0, slope)
    slopes = [(value(width) - value(-width)) / (2 * width) for width in (2 * unit, unit)]
    # some schedulers compute in float32, which leaves the difference three digits
    assert slope == pytest.approx((4 * slopes[1] - slopes[0]) / 3, rel=5e-3)


@pytest.mark.parametrize("family", PIPELINES)
def test_checkpointed_equals_unchecked_to_the_bit(pipelines, family):
    pipe, call = pipelines[family]
    denoiser_of(pipe).train()  # dropout, if there is any, must be repeated in the backward pass
    try:
        for k in (1, 3):
            held = gradient_of(pipe, call, k, checkpoint=False)
            assert same(gradient_of(pipe, call, k), held)
            assert norm(held) > 0
    finally:
        denoiser_of(pipe).eval()


def test_dropout_is_repeated_in_the_backward_pass(sd):
    pipe, call = sd
    layers = [m for m in pipe.unet.modules() if isinstance(m, nn.Dropout)]
    rates = [layer.p for layer in layers]
    pipe.unet.train()
    try:
        for layer in layers:
            layer.p = 0.3
        found = []
        for checkpoint in (True, False):
            torch.manual_seed(3)
            found.append(gradient_of(pipe, call, 2, checkpoint=checkpoint))
            after = torch.rand(1)
        assert same(*found)
        torch.manual_seed(3)
        gradient_of(pipe, call, 2)
        assert torch.equal(torch.rand(1), after)  # recomputing has not moved the random state
    finally:
        pipe.unet.eval()
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate


@pytest.mark.parametrize("family", PIPELINES)
def test_the_images_and_the_users_run_stay_as_they_are(pipelines, family):
    pipe, call = pipelines[family]
    denoiser, kind = denoiser_of(pipe), type(pipe)
    torch.manual_seed(1)
    plain, state = sample(pipe, call), torch.get_rng_state()
    before = {id(part): set(vars(part)) for part in (pipe, denoiser, pipe.vae, pipe.vae.decoder, pipe.scheduler)}
    torch.manual_seed(1)
    for k in (0, 2):
        with grad_last_steps(pipe, k):
            images = sample(pipe, call)
        assert torch.equal(images, plain)
        assert images.requires_grad == (k > 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(pipe) is kind
    assert before == {
        id(part): set(vars(part)) for part in (pipe, denoiser, pipe.vae, pipe.vae.decoder, pipe.scheduler)
    }
    assert not sample(pipe, call).requires_grad


def test_everything_is_put_back_on_any_exit(sd):
    pipe, call = sd
    kind, attributes = type(pipe), set(vars(pipe.unet))

    def stop(pipe, index, t, values):
        raise KeyboardInterrupt

    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            with pytest.raises(KeyboardInterrupt), grad_last_steps(pipe, 4):
                sample(pipe, call, callback_on_step_end=stop)
            assert torch.is_grad_enabled() == grad
            with pytest.raises(ZeroDivisionError), grad_last_steps(pipe):
                _ = 1 / 0
            with grad_last_steps(pipe):
                assert sample(pipe, call).requires_grad  # also in a loop under no_grad
            assert torch.is_grad_enabled() == grad
    assert type(pipe) is kind
    assert set(vars(pipe.unet)) == attributes
    with grad_last_steps(pipe), pytest.raises(KeyboardInterrupt):
        sample(pipe, call, callback_on_step_end=stop)
    with grad_last_steps(pipe):  # one that is interrupted does not count
        with pytest.raises(KeyboardInterrupt):
            sample(pipe, call, callback_on_step_end=stop)
        assert sample(pipe, call).requires_grad


def test_several_calls_in_one_context_and_the_denoiser_in_between(sd):
    pipe, call = sd
    apart = [gradient_of(pipe, call, 2, seed=seed, steps=steps) for seed, steps in ((1, 4), (2, 3))]
    with grad_last_steps(pipe, 2):
        first = sample(pipe, call, seed=1)
        with torch.no_grad():  # the user's own, for a distance to the base model
            assert not pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 4, 16)).sample.requires_grad
        assert torch.is_grad_enabled()
        second = sample(pipe, call, seed=2, steps=3)
    (reward(first) + reward(second)).backward()
    together = gradients(pipe)
    for key, value in together.items():
        torch.testing.assert_close(value, apart[0][key] + apart[1][key])


def test_weights_that_change_before_backward_are_told(sd):
    pipe, call = sd
    with grad_last_steps(pipe):
        images = sample(pipe, call)
    with torch.no_grad():
        pipe.unet.conv_out.bias.add_(0.0)  # as an optimizer's step
    with pytest.raises(RuntimeError, match="have changed between sampling and backward"):
        reward(images).backward()


def test_a_compiled_denoiser_has_the_same_gradient(sd):
    pipe, call = sd
    expected = gradient_of(pipe, call, 2)
    pipe.unet.compile(backend="eager")  # in place: the pipeline's calls go through it
    try:
        found = gradient_of(pipe, call, 2)
    finally:
        pipe.unet._compiled_call_impl = None
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)


def test_a_denoiser_alone_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    denoiser = nn.Linear(3, 3)
    start = torch.randn(2, 3)

    def run() -> torch.Tensor:
        x = start
        for _ in range(4):
            x = x - 0.1 * denoiser(x).sin()
        return x

    with grad_last_steps(denoiser, 2, num_calls=4):
        images = [run(), run()]
    sum(x.sum() for x in images).backward()
    found = denoiser.weight.grad.clone()
    denoiser.zero_grad()
    with torch.no_grad():
        x = start - 0.1 * denoiser(start).sin()
        x = x - 0.1 * denoiser(x).sin()
    for _ in range(2):
        x = x - 0.1 * denoiser(x).sin()
    (2 * x.sum()).backward()
    assert torch.allclose(found, denoiser.weight.grad)
    with pytest.raises(ValueError, match="4 denoiser calls were planned and 1 made"):  # noqa: SIM117
        with grad_last_steps(denoiser, 2, num_calls=4):
            denoiser(start)
    for wrong in ({}, {"num_calls": 4, "decode": "crop:8"}):
        with pytest.raises(ValueError, match="num_calls=, its number"), grad_last_steps(denoiser, 2, **wrong):
            pass


def test_guidance_that_is_a_call_of_its_own_is_one_step(pipelines):
    pipe, call = pipelines["flux"]
    guided = {"true_cfg_scale": 2.0, "negative_prompt_embeds": call["prompt_embeds"].flip(0)}
    guided["negative_pooled_prompt_embeds"] = call["pooled_prompt_embeds"].flip(0)
    for k in (1, 2, 4):
        found = gradient_of(pipe, call, k, sampled=guided)
        with last_calls(pipe.transformer, 8, 2 * k):
            images = inspect.unwrap(type(pipe).__call__)(pipe, **call, **guided, **options_of_sample()).images
        reward(images).backward()
        expected = gradients(pipe)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)
        assert same(gradient_of(pipe, call, k, num_calls=8, sampled=guided), found)
    with pytest.raises(ValueError, match="9 denoiser calls were planned and 8 made"):
        gradient_of(pipe, call, 2, num_calls=9, sampled=guided)
    with pytest.raises(ValueError, match="k=5, but one sampling has 4 steps"):
        gradient_of(pipe, call, 5, sampled=guided)


def test_a_loop_of_ones_own_cannot_cut_a_step_in_two():
    torch.manual_seed(0)
    denoiser, start = nn.Linear(3, 3), torch.randn(2, 3)

    def run() -> torch.Tensor:
        x = start
        for _ in range(3):
            positive, negative = denoiser(x), denoiser(x)
            x = x - 0.1 * (3 * positive - 2 * negative).sin()
        return x

    for k in (2, 4, 6):
        with grad_last_steps(denoiser, k, num_calls=6):
            assert run().requires_grad
    for k in (1, 3, 5):
        with pytest.raises(ValueError, match=f"k={k} cuts a step in two"), grad_last_steps(denoiser, k, num_calls=6):
            run()


def test_only_the_adapter_learns_and_bfloat16_works(sd):
    pytest.importorskip("peft")
    from peft import LoraConfig, inject_adapter_in_model

    pipe, call = sd
    pipe.unet = copy.deepcopy(pipe.unet).requires_grad_(False)
    config = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    inject_adapter_in_model(config, pipe.unet)
    found = gradient_of(pipe, call, 2)
    assert found
    assert all("lora_" in key and value.norm() > 0 for key, value in found.items())
    with torch.autocast("cpu", torch.bfloat16):  # whose cache of weights cast under no_grad has no graph
        low = gradient_of(pipe, call, 2)
    assert set(low) == set(found)
    a, b = (torch.cat([g[key].flatten() for key in sorted(found)]) for g in (low, found))
    assert nn.functional.cosine_similarity(a, b, dim=0) > 0.9


# What the decoder's memory costs


def seen(pipe, call, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and the gradient of their sum to each place of the latents."""
    with grad_last_steps(pipe, 1, **options):
        images = sample(pipe, call, steps=1)
    images.sum().backward()
    return images.detach(), gradients(pipe)["scale"]


class Identity(nn.Module):
    """A denoiser that scales its input, so that the gradient shows where the decoder looked."""

    def __init__(self, unet) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, torch.float32, torch.device("cpu")
        self.scale = nn.Parameter(torch.full((SIDE // 2, SIDE // 2), 0.5))

    def forward(self, sample, *args, **kwargs):
        return (sample * self.scale,)


def test_a_crop_has_the_images_of_the_whole_and_the_gradient_of_a_window(sd):
    pipe, call = sd
    pipe.unet = Identity(pipe.unet)
    plain = sample(pipe, call)
    whole, _ = seen(pipe, call)
    with grad_last_steps(pipe, decode="crop:8"):
        assert torch.equal(sample(pipe, call), plain)
    windows = set()
    for seed in range(4):
        images, gradient = seen(pipe, call, decode="crop:8", seed=seed)
        assert torch.equal(images, whole)
        inside = gradient.nonzero()
        low, high = inside.min(0).values, inside.max(0).values
        assert (high - low + 1).tolist() == [4, 4]  # 8 pixels are 4 latents
        windows.add(tuple(low.tolist()))
    assert len(windows) > 1
    _, big = seen(pipe, call, decode="crop:512")
    _, full = seen(pipe, call)
    assert torch.equal(big, full)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_tiny_autoencoder_gets_the_samplers_latents(pipelines, family):
    pipe, call = pipelines[family]
    torch.manual_seed(4)
    statistics = {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]} if family == "sdxl" else {}
    pipe.vae = vae(**{"scaling_factor": 0.3, **statistics})
    kinds = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8), "latent_channels": 4}
    blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
    tiny = AutoencoderTiny(**kinds, **blocks).requires_grad_(False)
    latents = sample(pipe, call, output_type="latent")
    with grad_last_steps(pipe, decode="tiny", tiny=tiny):
        images = sample(pipe, call)
    expected = (tiny.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(images, expected, atol=1e-5)
    reward(images).backward()
    assert norm(gradients(pipe)) > 0


def test_latents_keep_their_gradient_too(sd):
    pipe, call = sd
    with grad_last_steps(pipe, 2):
        latents = sample(pipe, call, output_type="latent")
    latents.square().mean().backward()
    assert norm(gradients(pipe)) > 0


# What cannot work says so


def test_wrong_arguments(sd):
    pipe, call = sd
    for options, match in (
        ({"k": -1}, "k must be a whole number"),
        ({"k": 1.5}, "k must be"),
        ({"num_calls": 0}, "num_calls"),
        ({"decode": "half"}, "decode must be"),
        ({"decode": "crop:0"}, "decode must be"),
        ({"decode": "tiny"}, "go together"),
        ({"tiny": nn.Identity()}, "go together"),
    ):
        with pytest.raises(ValueError, match=match), grad_last_steps(pipe, **options):
            pass
    for wrong in (None, "sd", SimpleNamespace(unet=nn.Linear(1, 1))):
        with pytest.raises(TypeError, match="no denoiser"), grad_last_steps(wrong):
            pass
    with pytest.raises(TypeError, match="accelerator"), grad_last_steps(pipe, accelerator=3):
        pass
    with pytest.raises(RuntimeError, match="inference_mode"), torch.inference_mode(), grad_last_steps(pipe):
        pass
    assert sample(pipe, call).shape == (BATCH, 3, SIDE, SIDE)


def test_contexts_do_not_nest(sd):
    pipe, call = sd
    with grad_last_steps(pipe):
        with pytest.raises(RuntimeError, match="already at work"), grad_last_steps(pipe.unet, num_calls=4):
            pass
        assert sample(pipe, call).requires_grad
    with grad_last_steps(pipe):
        assert sample(pipe, call).requires_grad


def test_a_scheduler_that_is_exchanged_inside_is_named(sd):
    pipe, call = sd
    before = pipe.scheduler
    try:
        with grad_last_steps(pipe):
            pipe.scheduler = EulerDiscreteScheduler.from_config(before.config)
            with pytest.raises(ValueError, match="exchanged inside grad_last_steps"):
                sample(pipe, call)
            pipe.scheduler = before
            assert sample(pipe, call).requires_grad
    finally:
        pipe.scheduler = before


def test_the_denoiser_must_be_called_and_often_enough(sd):
    pipe, call = sd
    with pytest.raises(ValueError, match="never called"), grad_last_steps(pipe):
        pass
    with pytest.raises(ValueError, match="k=5, but one sampling has 4 steps"), grad_last_steps(pipe, 5):
        sample(pipe, call)

    class Lazy(type(pipe)):
        @torch.no_grad()
        def __call__(self, output_type="pt"):
            return SimpleNamespace(images=torch.zeros(1))

    lazy = copy.copy(pipe)
    lazy.__class__ = Lazy
    with pytest.raises(ValueError, match="Lazy never called its denoiser"), grad_last_steps(lazy):
        lazy()

    def interrupt(pipe, index, t, values):
        pipe._interrupt = index == 1
        return values

    with pytest.raises(ValueError, match="4 scheduler steps were planned and 2 made"), grad_last_steps(pipe, 1):
        sample(pipe, call, callback_on_step_end=interrupt)


def test_numpy_images_are_refused(sd):
    pipe, call = sd
    for kind in ("pil", "np"):
        with pytest.raises(ValueError, match='output_type="pt"'), grad_last_steps(pipe):
            sample(pipe, call, output_type=kind)
    with pytest.raises(ValueError, match='output_type="pt"'), grad_last_steps(pipe):  # the default is PIL
        pipe(**call, num_inference_steps=2)


def small_unet() -> UNet2DModel:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    torch.manual_seed(0)
    return UNet2DModel(8, 1, 1, norm_num_groups=4, layers_per_block=1, **blocks)


@pytest.mark.parametrize("kind", [DDIMPipeline, DDPMPipeline])
def test_a_pipeline_in_pixels_gives_tensors(kind):
    pipe = kind(small_unet(), DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    call = {"batch_size": 2, "num_inference_steps": 3, "output_type": "pt"}
    with grad_last_steps(pipe, 2):
        reward(pipe(**call, generator=torch.Generator().manual_seed(0)).images).backward()
    found = gradients(pipe)
    with last_calls(pipe.unet, 3, 2):
        generator = torch.Generator().manual_seed(0)
        images = inspect.unwrap(kind.__call__)(pipe, **call, generator=generator).images
    reward(images).backward()
    expected = gradients(pipe)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value)
    assert norm(found) > 0


def test_a_pipeline_whose_images_are_always_arrays_is_refused():
    class Arrays(DDIMPipeline):
        @torch.no_grad()
        def __call__(self, output_type="pt"):
            x = torch.randn(1, 1, 8, 8)
            self.scheduler.set_timesteps(2)
            for t in self.scheduler.timesteps:
                x = self.scheduler.step(self.unet(x, t).sample, t, x).prev_sample
            return SimpleNamespace(images=x.numpy())

    pipe = Arrays(small_unet(), DDIMScheduler())
    with pytest.raises(TypeError, match=r"reward_sample\(pipe\.unet, pipe\.scheduler"), grad_last_steps(pipe):
        pipe()


class Cutting(DDIMScheduler):
    def step(self, model_output, *args, **kwargs):
        return super().step(model_output.detach(), *args, **kwargs)


@pytest.mark.parametrize(("k", "kind"), [(1, "pt"), (2, "pt"), (1, "latent")])
def test_a_scheduler_without_gradient(sd, k, kind):
    pipe, call = sd
    pipe.scheduler = Cutting(steps_offset=1, clip_sample=False)
    with pytest.raises(RuntimeError, match=r"Cutting.* cuts the graph"), grad_last_steps(pipe, k):
        sample(pipe, call, output_type=kind)


class Linear4bit(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


def test_a_denoiser_without_gradient(sd):
    pipe, call = sd
    whole = pipe.unet
    pipe.unet = copy.deepcopy(whole).requires_grad_(False)
    with pytest.raises(RuntimeError, match="no parameter of UNet2DConditionModel requires"), grad_last_steps(pipe):
        sample(pipe, call)
    pipe.unet = copy.deepcopy(whole)
    for module in list(pipe.unet.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name == "linear_2":
                cutting = Linear4bit(child.in_features, child.out_features)
                setattr(module, name, cutting)
    with pytest.raises(RuntimeError, match=r"Linear4bit cuts the graph: no gradient reaches 'time_embedding.linear_1"):
        gradient_of(pipe, call)
    pipe.unet = Identity(whole)
    pipe.unet.forward = lambda sample, *args, **kwargs: (sample.clone(),)
    with pytest.raises(RuntimeError, match="something in it detaches"), grad_last_steps(pipe):
        sample(pipe, call)
    pipe.unet.add_module("inner", Linear4bit(1, 1))
    with pytest.raises(RuntimeError, match="Linear4bit cuts the graph; load the base"), grad_last_steps(pipe):
        sample(pipe, call)


def test_float16_weights_offloading_and_safety_checkers_are_refused(sd):
    from accelerate import cpu_offload_with_hook

    pipe, _ = sd
    whole, decoder = pipe.unet, pipe.vae
    pipe.unet = copy.deepcopy(whole).half()
    with pytest.raises(ValueError, match="unscale FP16 gradients"), grad_last_steps(pipe):
        pass
    pipe.unet = copy.deepcopy(whole)
    cpu_offload_with_hook(pipe.unet, torch.device("cpu"))
    with pytest.raises(ValueError, match="UNet2DConditionModel is offloaded"), grad_last_steps(pipe):
        pass
    pipe.unet, pipe.vae = whole, vae(force_upcast=True).half()
    with pytest.raises(ValueError, match="overflows in float16"), grad_last_steps(pipe):
        pass
    pipe.vae, pipe.safety_checker = decoder, nn.Identity()
    with pytest.raises(ValueError, match="safety_checker=None"), grad_last_steps(pipe):
        pass


def test_sharded_training_is_refused_by_name(sd):
    pipe, _ = sd
    for name in ("FSDP", "DEEPSPEED"):
        accelerator = SimpleNamespace(sync_gradients=True, distributed_type=SimpleNamespace(value=name))
        with pytest.raises(ValueError, match=f"{name} shards"), grad_last_steps(pipe, accelerator=accelerator):
            pass
    engine = type("DeepSpeedEngine", (nn.Module,), {})()
    with pytest.raises(ValueError, match="DeepSpeedEngine shards"), grad_last_steps(engine, num_calls=2):
        pass


def test_latents_of_the_wrong_scale(sd):
    pipe, call = sd
    noise = torch.randn(BATCH, 4, SIDE // 2, SIDE // 2)
    for scale in (14.6, 0.1, float("nan")):
        with pytest.raises(ValueError, match=r"(?s)standard deviation .*init_noise_sigma"), grad_last_steps(pipe):
            sample(pipe, call, latents=scale * noise)
    pipe.vae = vae(scaling_factor=1e-6)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight *= 1e6
    with pytest.raises(ValueError, match="outside"), grad_last_steps(pipe):
        sample(pipe, call)


def test_a_vae_that_learns_by_mistake_warns(sd):
    pipe, call = sd
    pipe.vae = vae().requires_grad_(True)
    with pytest.warns(UserWarning, match="requires_grad_"), grad_last_steps(pipe):
        sample(pipe, call)
    pipe.vae.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with grad_last_steps(pipe):
            sample(pipe, call)
