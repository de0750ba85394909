from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qa_hooks.functional.input_gradients import critic_scores, gradient_penalty, input_gradient, interpolate


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(6, 1, 16, 16) * 2 - 1, torch.rand(6, 1, 16, 16) * 2 - 1


def textbook(critic: nn.Module, real: torch.Tensor, fake: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
    """WGAN-GP as in a hundred repositories, in float64."""
    points = (mix * fake + (1 - mix) * real).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return ((gradient.flatten(1).norm(dim=1) - 1) ** 2).mean()


def test_equals_the_textbook_in_value_and_parameter_gradient(critic, images):
    critic, (real, fake) = critic.double(), (image.double() for image in images)
    mix = torch.rand(6, 1, 1, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float32).double()
    expected = textbook(critic, real, fake, mix)
    expected_gradients = torch.autograd.grad(expected, list(critic.parameters()), allow_unused=True)
    penalty = gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(5))
    gradients = torch.autograd.grad(penalty, list(critic.parameters()), allow_unused=True)
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-9)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        if theirs is not None:
            assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-12)


def test_r1_and_r2_of_a_quadratic_critic(images):
    real, fake = images
    quadratic = lambda x: 0.5 * x.square().sum((1, 2, 3))  # noqa: E731 - its gradient is x itself
    for at, points in (("real", real), ("fake", fake)):
        penalty = gradient_penalty(quadratic, real, fake, at=at, target=0)
        assert penalty.item() == pytest.approx(points.flatten(1).square().sum(1).mean().item(), rel=1e-5)


def test_a_zero_gradient_has_a_finite_slope(images):
    weight = nn.Parameter(torch.zeros(256))
    penalty = gradient_penalty(lambda x: x.flatten(1) @ weight, *images)
    penalty.backward()
    assert penalty.item() == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(weight.grad).all()


def test_return_grad_gives_the_gradient_with_its_graph(critic, images):
    penalty, gradient = gradient_penalty(critic, *images, return_grad=True)
    assert gradient.shape == images[0].shape
    assert gradient.requires_grad
    assert penalty.ndim == 0


def test_interpolation_lies_between_one_number_per_sample(images):
    real, fake = images
    points = interpolate(real, fake, torch.Generator().manual_seed(0))
    mix = ((points - real) / (fake - real)).flatten(1)
    assert torch.allclose(mix, mix[:, :1].expand_as(mix), atol=1e-3)
    assert mix.min() >= -1e-3
    assert mix.max() <= 1 + 1e-3
    assert mix[:, 0].std() > 0.05


@pytest.mark.parametrize(("shape", "expected"), [((4,), (4,)), ((4, 1), (4,)), ((4, 1, 3, 3), (4,))])
def test_scores_of_any_common_shape(shape, expected):
    assert critic_scores(torch.randn(shape), 4).shape == expected


def test_maps_are_averaged():
    output = torch.randn(4, 1, 3, 3)
    assert torch.allclose(critic_scores(output, 4), output.mean((1, 2, 3)))


def test_outputs_that_cannot_be_used_say_why():
    with pytest.raises(TypeError, match=r"got tuple; pass output_fn="):
        critic_scores((torch.zeros(4),), 4)
    with pytest.raises(TypeError, match="got dict"):
        critic_scores({"score": torch.zeros(4)}, 4)
    with pytest.raises(ValueError, match="averaged score"):
        critic_scores(torch.tensor(1.0), 4)
    with pytest.raises(ValueError, match=r"got \(3, 1\) for 4 images"):
        critic_scores(torch.zeros(3, 1), 4)
    assert critic_scores({"score": torch.ones(4)}, 4, lambda out: out["score"]).sum() == 4


def test_a_critic_that_ignores_its_input_is_refused(images):
    with pytest.raises(ValueError, match="does not depend on its input"):
        input_gradient(lambda x: torch.zeros(len(x)), images[0])
    with pytest.raises(ValueError, match="does not depend on its input"):
        input_gradient(lambda x: x.detach().sum((1, 2, 3)) + nn.Parameter(torch.ones(1)), images[0])


def test_works_under_no_grad(critic, images):
    with torch.no_grad():
        assert torch.isfinite(gradient_penalty(critic, *images))


def test_bad_images_are_named(critic, images):
    real, fake = images
    with pytest.raises(ValueError, match="real and fake must have the same shape"):
        gradient_penalty(critic, real, fake[:3])
    with pytest.raises(ValueError, match=r'at must be "interpolated"'):
        gradient_penalty(critic, real, fake, at="nowhere")
    with pytest.raises(TypeError, match="floating point"):
        gradient_penalty(critic, real.byte(), fake.byte())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_the_gradient_in_float32(critic, images, dtype):
    exact = gradient_penalty(critic, *images, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype):
        penalty, gradient = gradient_penalty(
            critic, *images, return_grad=True, generator=torch.Generator().manual_seed(0)
        )
    assert gradient.dtype == torch.float32
    assert penalty.item() == pytest.approx(exact.item(), rel=1e-6 if dtype == torch.float16 else 0.05)


def test_a_compiled_critic_runs_uncompiled_here(critic, images):
    compiled = torch.compile(critic, backend="aot_eager")
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    expected = gradient_penalty(critic, *images, generator=generators[0])
    for wrapped, generator in ((compiled, generators[1]), (lambda x: compiled(x), generators[2])):
        if wrapped is not compiled and not hasattr(torch.compiler, "set_stance"):
            continue
        penalty = gradient_penalty(wrapped, *images, generator=generator)
        penalty.backward()
        assert penalty.item() == pytest.approx(expected.item(), rel=1e-6)


class Attention(nn.Module):
    """A critic whose only mixing of pixels is torch's own attention."""

    def __init__(self, *backends: SDPBackend) -> None:
        super().__init__()
        self.backends = list(backends)
        self.embed, self.qkv, self.score = nn.Conv2d(1, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(x).flatten(2).mT
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        with sdpa_kernel(self.backends) if self.backends else contextlib.nullcontext():
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.score(mixed.transpose(1, 2).flatten(2)).mean(1)


def softmax_attention(critic: Attention, x: torch.Tensor) -> torch.Tensor:
    """The same critic in plain operations."""
    tokens = critic.embed(x).flatten(2).mT
    q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in critic.qkv(tokens).chunk(3, -1))
    mixed = torch.softmax(q @ k.mT / 2, -1) @ v
    return critic.score(mixed.transpose(1, 2).flatten(2)).mean(1)


def test_attention_has_the_penalty_of_its_plain_operations(images):
    critic = Attention()
    found, expected = (
        gradient_penalty(c, *images, generator=torch.Generator().manual_seed(0))
        for c in (critic, lambda x: softmax_attention(critic, x))
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = [critic.qkv.weight, critic.embed.weight]
    for a, b in zip(torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7)


class TwiceX(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(
    ("critic", "named"),
    [
        (Attention(SDPBackend.FLASH_ATTENTION), r"\(ScaledDotProduct\w+\)"),  # and none of what it got
        (lambda x: TwiceX.apply(x.square()).square().flatten(1).sum(1), "once_differentiable"),
    ],
)
def test_an_operator_without_a_second_derivative_is_named(critic, named, images):
    with pytest.raises(ValueError, match=named) as error:
        gradient_penalty(critic, *images)
    assert "sdpa_kernel" in str(error.value)
    assert torch.isfinite(input_gradient(critic, images[0], create_graph=False)).all()  # which one derivative gives


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_images_at_a_critic_in_float32(critic, images, half, autocast):
    """Images that come out of an augmentation or a generator under autocast."""
    real, fake = (image.to(half) for image in images)
    for options in ({"at": "real", "target": 0.0}, {"at": "fake", "target": 0.0}, {"at": "interpolated"}):
        expected = gradient_penalty(
            critic, real.float(), fake.float(), generator=torch.Generator().manual_seed(1), **options
        )
        with torch.autocast("cpu", dtype=autocast or half, enabled=autocast is not None):
            penalty = gradient_penalty(critic, real, fake, generator=torch.Generator().manual_seed(1), **options)
        assert penalty.dtype == torch.float32
        assert penalty.item() == pytest.approx(expected.item(), rel=0.05)


def test_a_critic_in_half_precision_gets_its_own_type(critic, images):
    real, fake = (image.bfloat16() for image in images)
    expected = gradient_penalty(critic, real.float(), fake.float(), at="real")
    assert gradient_penalty(critic.bfloat16(), real, fake, at="real").item() == pytest.approx(expected.item(), rel=0.1)
