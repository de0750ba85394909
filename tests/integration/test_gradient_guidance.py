"""The rivals of the dial: gradient guidance against finite differences, and quality words."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

import tiny_pipelines as tiny
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn

from qa_hooks.integrations.diffusers import GradientGuidance, QualityWords
from qa_hooks.scorers import PSNR, FunctionScorer


class Denoiser(nn.Module):
    """A smooth network of latents, in float64 where it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3, padding=1))

    def forward(self, sample, timestep, return_dict=True):
        return (0.3 * self.net(sample),)


def contrast() -> FunctionScorer:
    return FunctionScorer(lambda x: 10 * x.flatten(1).var(1), name="contrast", higher_is_better=True)


def schedulers() -> dict:
    options = {"num_train_timesteps": 100, "clip_sample": False}
    kinds = {kind: DDIMScheduler(prediction_type=kind, **options) for kind in ("epsilon", "v_prediction", "sample")}
    kinds["exploding variance"] = EulerDiscreteScheduler(num_train_timesteps=100)
    return kinds | {"flow_prediction": FlowMatchEulerDiscreteScheduler(num_train_timesteps=100)}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction", "exploding variance"])
def test_it_is_the_formula(kind):
    """The change, expressed as noise, is -s sqrt(1 - abar) times the gradient by finite differences."""
    torch.manual_seed(0)
    network, scheduler, scorer = Denoiser(), schedulers()[kind], contrast()
    t = scheduler.timesteps[40]
    x = 0.15 * torch.randn(2, 3, 6, 6)  # whose clean images stay within the range
    if kind == "flow_prediction":
        s = float(t) / 100
        a = 1 - s
    elif kind == "exploding variance":
        a, s = 1.0, float(scheduler.sigmas[40])
    else:
        a, s = float(scheduler.alphas_cumprod[t]) ** 0.5, (1 - float(scheduler.alphas_cumprod[t])) ** 0.5

    n = 1.0 if kind == "flow_prediction" else (a**2 + s**2) ** 0.5  # the network is given x_t / n

    def clean_of(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        z = n * x
        return {
            "exploding variance": z - s * out,
            "epsilon": (z - s * out) / a,
            "sample": out,
            "v_prediction": a * z - s * out,
            "flow_prediction": z - s * out,
        }[kind]

    def quality(z: torch.Tensor) -> torch.Tensor:
        return scorer((clean_of(z, network(z, t)[0]) + 1) / 2)

    gradient = torch.zeros_like(x)
    with torch.no_grad():
        for place in range(x[0].numel()):
            step = torch.zeros_like(x).flatten(1)
            step[:, place] = 1e-2
            gradient.flatten(1)[:, place] = (quality(x + step.view_as(x)) - quality(x - step.view_as(x))) / 2e-2
        plain = network(x, t)[0]
        with GradientGuidance(scorer, 0.1, clip=1e6).around(network, scheduler=scheduler, guidance=False):
            guided = network(x, t)[0]
        assert torch.equal(network(x, t)[0], plain)
    noise_before, noise_after = ((n * x - a * clean_of(x, out)) / s for out in (plain, guided))
    torch.testing.assert_close(noise_after - noise_before, -0.1 * s / n * gradient, rtol=2e-2, atol=2e-4)


def test_steps_without_an_image_are_left_alone():
    """A cosine schedule ends at a = 5e-5: there any change would be 20,000 times as large in the image."""
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    torch.manual_seed(0)
    network, x = Denoiser(), 0.15 * torch.randn(2, 3, 6, 6)
    plain = [network(x, t)[0] for t in (999, 500)]
    with GradientGuidance(contrast(), 1.0).around(network, scheduler=scheduler, guidance=False):
        assert torch.equal(network(x, 999)[0], plain[0])
        assert not torch.equal(network(x, 500)[0], plain[1])


def test_it_raises_its_score_in_a_pipeline_and_clips():
    pipe, call = tiny.stable_diffusion()
    scorer, base = contrast(), tiny.sample(*tiny.stable_diffusion())
    with GradientGuidance(scorer, 0.0).around(pipe):
        assert torch.equal(tiny.sample(pipe, call), base)
    with GradientGuidance(scorer, 20.0).around(pipe):
        steered = tiny.sample(pipe, call)
    assert (scorer(steered) > scorer(base)).all()
    assert torch.equal(tiny.sample(pipe, call), base)
    with GradientGuidance(scorer, 20.0, clip=0.0).around(pipe):
        assert torch.equal(tiny.sample(pipe, call), base)
    assert "forward" not in vars(pipe.unet)


def test_inference_mode_changes_nothing():
    pipe, call = tiny.stable_diffusion()
    guidance = GradientGuidance(contrast(), 20.0)
    with guidance.around(pipe):
        expected = tiny.sample(pipe, call)
        with torch.inference_mode():
            steered = tiny.sample(pipe, call)
    torch.testing.assert_close(steered, expected)
    with torch.inference_mode():
        network, x = Denoiser(), 0.15 * torch.randn(2, 3, 6, 6)
        around = guidance.around(network, scheduler=schedulers()["epsilon"], guidance=False)
        with pytest.raises(ValueError, match="weights that were made in torch"), around:
            network(x, 40)


def test_advice_names_what_the_caller_can_write():
    network, x = Denoiser(), torch.zeros(2, 3, 6, 6)
    around = GradientGuidance(contrast()).around(network, scheduler=schedulers()["epsilon"])
    with pytest.raises(ValueError, match=r"which it is, around\(target, guidance=True\)"), around:
        network(x, 40)


def test_lower_is_better_is_followed_downwards():
    pipe, call = tiny.stable_diffusion()
    scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="dark", higher_is_better=False)
    base = tiny.sample(pipe, call)
    with GradientGuidance(scorer, 20.0).around(pipe):
        assert (scorer(tiny.sample(pipe, call)) < scorer(base)).all()


def test_what_it_cannot_follow_is_refused():
    flat = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="flat", higher_is_better=True, differentiable=False)
    with pytest.raises(ValueError, match="flat has no gradient to follow"):
        GradientGuidance(flat)
    with pytest.raises(ValueError, match="no reference and no prompt"):
        GradientGuidance(PSNR())
    with pytest.raises(ValueError, match="in \\[0, 1\\]"):
        GradientGuidance(FunctionScorer(lambda x: x.mean((1, 2, 3)), name="b", higher_is_better=True,
                                        value_range=(-1, 1)))  # fmt: skip
    with pytest.raises(TypeError, match="must be a qa_hooks Scorer"):
        GradientGuidance(lambda x: x)
    for strength in (-1.0, float("nan"), "much"):
        with pytest.raises(ValueError, match="strength must be"):
            GradientGuidance(contrast(), strength)
    with pytest.raises(TypeError, match="must be a Diffusers scheduler"):
        GradientGuidance(contrast()).around(Denoiser()).__enter__()
    with pytest.raises(TypeError, match="no denoiser"):
        GradientGuidance(contrast()).around("pipe").__enter__()


def test_an_error_leaves_the_denoiser_as_it_was():
    pipe, call = tiny.stable_diffusion()
    base = tiny.sample(pipe, call)

    def broken(images):
        raise RuntimeError("out of order")

    with (
        pytest.raises(RuntimeError, match="out of order"),
        GradientGuidance(FunctionScorer(broken, name="broken", higher_is_better=True)).around(pipe),
    ):
        tiny.sample(pipe, call)
    assert torch.equal(tiny.sample(pipe, call), base)


def test_words_for_each_level():
    words = QualityWords()
    q = torch.tensor([-3.0, -1.5, -1.0, -0.49, 0.0, 0.5, 1.49, 1.5, 9.0])
    assert words.numbers(q).tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert words.add(["a", "b"], 2.0) == ["a, best quality", "b, best quality"]
    assert words.add(["a", "b"], torch.tensor([[-3.0], [0.0]])) == ["a, worst quality", "b, normal quality"]
    assert QualityWords(["bad", ""]).add(["", "b"], torch.tensor([-1.0, 1.0])) == ["bad", "b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QualityWords("bad"), "at least two words"),
        (lambda: QualityWords(["bad"]), "at least two words"),
        (lambda: QualityWords(["a", "b"], [0, 1]), "1 ascending numbers"),
        (lambda: QualityWords(["a", "b", "c"], [1, 0]), "2 ascending numbers"),
        (lambda: QualityWords().numbers(torch.tensor([torch.nan])), "1 of 1 image have no score"),
        (lambda: QualityWords().add(["a"], torch.zeros(2)), "one q for each prompt"),
        (lambda: QualityWords().add(["a", "b"], torch.zeros(1, 2)), "words stand for one score"),
        (lambda: QualityWords().add("ab", torch.zeros(2)), "one q for each prompt"),
    ],
)
def test_words_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
