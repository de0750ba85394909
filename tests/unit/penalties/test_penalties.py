from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings

import pytest
import torch
from torch import nn

from qa_hooks._base.random import OwnRandom
from qa_hooks.functional.input_gradients import interpolate
from qa_hooks.functional.niqe import FeatureConfig
from qa_hooks.functional.structural_similarity import ssim_distance
from qa_hooks.penalties import (
    DriftPenalty,
    GradientPenalty,
    NIQEPenalty,
    QAGANPenalty,
    SSIMPenalty,
    fit_gradient_model,
)
from qa_hooks.penalties.gradient_model import map_features

UNIT = (-1.0, 1.0)


@pytest.fixture
def batch(digits):
    return digits[:32], torch.tanh(torch.randn(32, 1, 16, 16))


@pytest.fixture
def model(critic, digits):
    return fit_gradient_model(critic, digits[:512].split(64), progress=False)


class Counting(nn.Module):
    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic, self.passes = critic, 0

    def forward(self, images):
        self.passes += 1
        return self.critic(images)


class TestSSIMPenalty:
    def test_hand_value_of_a_linear_critic(self):
        weight = torch.linspace(-1, 1, 256, dtype=torch.float64).requires_grad_()
        real, fake = (torch.rand(5, 1, 16, 16, dtype=torch.float64) * 2 - 1 for _ in range(2))
        distance = ssim_distance(real, fake, value_range=UNIT)
        gap = ((real - fake).flatten(1) @ weight).abs()
        expected = ((gap / distance - 1) ** 2).mean()
        penalty = SSIMPenalty(value_range=UNIT, weight=1e-3)
        value = penalty(lambda x: x.flatten(1) @ weight, real, fake)
        assert value.item() == pytest.approx(1e-3 * expected.item(), rel=1e-5)
        (ours,) = torch.autograd.grad(value, weight)
        (theirs,) = torch.autograd.grad(1e-3 * expected, weight)
        assert torch.allclose(ours, theirs, rtol=1e-4)

    def test_one_sided_forgives_small_gaps(self):
        real, fake = torch.zeros(4, 1, 16, 16), torch.ones(4, 1, 16, 16)
        flat = lambda x: x.mean((1, 2, 3)) * 0.01  # noqa: E731
        assert SSIMPenalty(value_range=UNIT, one_sided=True)(flat, real, fake).item() == 0
        assert SSIMPenalty(value_range=UNIT)(flat, real, fake).item() > 0.05

    def test_identical_pairs_meet_the_floor(self):
        same = torch.zeros(4, 1, 16, 16)
        offset = iter((0.0, 0.1))
        penalty = SSIMPenalty(value_range=UNIT, weight=0.1, min_distance=0.05)
        value = penalty(lambda x: x.mean((1, 2, 3)) + next(offset), same, same.clone())
        assert value.item() == pytest.approx(0.1 * (0.1 / 0.05 - 1) ** 2, rel=1e-4)

    def test_a_risky_weight_warns(self):
        with pytest.warns(UserWarning, match="wrong sign"):
            SSIMPenalty(value_range=UNIT, weight=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            SSIMPenalty(value_range=UNIT, weight=1.0, one_sided=True)

    def test_the_generator_gets_nothing(self, critic, batch):
        fake = batch[1].requires_grad_()
        SSIMPenalty(value_range=UNIT)(critic, batch[0], fake).backward()
        assert fake.grad is None

    def test_supplied_scores_save_the_passes_and_change_nothing(self, critic, batch):
        counting = Counting(critic)
        penalty = SSIMPenalty(value_range=UNIT)
        own = penalty(counting, *batch)
        assert counting.passes == 2
        real_scores, fake_scores = critic(batch[0]), critic(batch[1])
        given = penalty(counting, *batch, real_scores=real_scores, fake_scores=fake_scores)
        assert counting.passes == 2
        assert torch.equal(own, given)

    def test_scores_without_a_graph_are_refused(self, critic, batch):
        with pytest.raises(ValueError, match="real_scores carries no gradient"):
            SSIMPenalty(value_range=UNIT)(critic, *batch, real_scores=critic(batch[0]).detach())


class TestNIQEPenalty:
    def test_without_model_or_warmup_the_ways_are_named(self):
        for make in (lambda: NIQEPenalty(value_range=UNIT), lambda: QAGANPenalty("niqe", value_range=UNIT)):
            with pytest.raises(ValueError, match=r"fit_gradient_model\(critic, batches\).*warmup=2000"):
                make()

    @pytest.mark.parametrize("mode", ["mvg", "sample"])
    def test_gradient_to_the_critic_equals_finite_differences(self, model, mode, monkeypatch):
        """D(x) = 0.5 x^T A x has the gradient A x, so that P(A) can be differentiated by hand."""
        monkeypatch.setattr("qa_hooks.penalties.gradient_model.MAX_SLOPE", None)  # the cut is seen by no difference
        torch.manual_seed(3)
        matrix = torch.randn(256, 256, dtype=torch.float64)
        matrix = ((matrix + matrix.T) / 32).requires_grad_()
        real, fake = (torch.randn(8, 1, 16, 16, dtype=torch.float64).clamp(-1, 1) for _ in range(2))

        def penalty(a: torch.Tensor) -> torch.Tensor:
            quadratic = lambda x: 0.5 * (x.flatten(1) @ a * x.flatten(1)).sum(1)  # noqa: E731
            niqe = NIQEPenalty(value_range=UNIT, model=model, weight=1.0, mode=mode, hinge=False)
            return niqe(quadratic, real, fake)

        (gradient,) = torch.autograd.grad(penalty(matrix), matrix)
        direction = torch.randn(256, 256, dtype=torch.float64)
        direction = direction + direction.T
        points = interpolate(real, fake, OwnRandom(0).generator())

        def distance(a: torch.Tensor) -> torch.Tensor:
            from qa_hooks.functional.naturalness import naturalness_distance
            from qa_hooks.functional.niqe import niqe_features

            gradients = (points.flatten(1) @ a).view_as(points)
            maps = gradients / ((gradients.square().mean((1, 2, 3), keepdim=True) + 1e-24).sqrt() + 1e-8)
            features = niqe_features(maps, FeatureConfig(), max_slope=100.0)
            return naturalness_distance(features, model.mean, model.covariance, variant=mode)

        h = 1e-8  # the features jump where a coefficient changes sign: only tiny steps see the slope
        with torch.no_grad():
            numeric = (distance(matrix + h * direction) - distance(matrix - h * direction)) / (2 * h)
        assert (gradient * direction).sum().item() == pytest.approx(numeric.item(), rel=1e-3)

    def test_rank_of_maps(self, critic, model, digits):
        """Maps of real images are nearer than white noise."""
        from qa_hooks.functional.naturalness import naturalness_distance

        real = map_features(
            torch.autograd.grad(critic(x := digits[600:700].clone().requires_grad_()).sum(), x)[0], model.config
        )
        noise = map_features(torch.randn(100, 1, 16, 16), model.config)
        near, far = (naturalness_distance(rows, model.mean, model.covariance) for rows in (real, noise))
        assert near < 0.7 * far

    def test_order_of_the_batch_does_not_matter(self, critic, model, batch):
        penalty = NIQEPenalty(value_range=UNIT, model=model)
        order = torch.randperm(32)
        shared_noise = [penalty(critic, b, b) for b in (batch[0], batch[0][order])]  # real == fake: no random mix
        assert shared_noise[0].item() == pytest.approx(shared_noise[1].item(), rel=1e-5)

    def test_warmup_is_zero_then_acts(self, critic, digits):
        penalty = NIQEPenalty(value_range=UNIT, warmup=8)
        for call in range(10):
            real = digits[64 * call : 64 * call + 64]
            value = penalty(critic, real, torch.tanh(torch.randn_like(real)))
            assert penalty.terms["niqe_active"].item() == float(call >= 8)
            assert (value.item() > 0) == (call >= 8)
        assert penalty.model.count == 512

    def test_a_call_of_the_warmup_shows_no_bar(self, critic, digits, caplog):
        caplog.set_level(logging.INFO, logger="qa_hooks")
        NIQEPenalty(value_range=UNIT, warmup=8)(critic, digits[:64], digits[:64])
        assert not caplog.records

    def test_a_short_warmup_is_refused_at_the_first_call(self, critic, batch):
        with pytest.raises(ValueError, match=r"warmup=2 calls of 32 images give 64 maps.*warmup=12 or more"):
            NIQEPenalty(value_range=UNIT, warmup=2)(critic, *batch)

    def test_a_small_last_batch_does_not_matter(self, critic, digits):
        penalty = NIQEPenalty(value_range=UNIT, warmup=8)
        for batch in (*digits[: 64 * 7].split(64), digits[:5]):
            penalty(critic, batch, batch)
        assert penalty.model.count == 453

    @pytest.mark.parametrize("shape", [(64, 1, 8, 8), (64, 4, 16, 16)])
    def test_images_without_features_are_refused_before_the_wait(self, shape):
        images = torch.zeros(shape)
        with pytest.raises(ValueError, match=r"too small|1 or 3 channels"):
            NIQEPenalty(value_range=UNIT, warmup=2000)(lambda x: x.square().sum((1, 2, 3)), images, images)

    def test_a_hinge_stops_at_real_maps(self, critic, model, batch):
        plain = NIQEPenalty(value_range=UNIT, model=model, weight=1.0, hinge=False)(critic, *batch).item()
        level = model.provenance["mvg_distance"]
        hinged = NIQEPenalty(value_range=UNIT, model=model, weight=1.0)(critic, *batch).item()
        assert hinged == pytest.approx(max(plain - level, 0), abs=1e-5)

    def test_a_model_that_states_no_distance_of_real_maps_wants_no_hinge(self, critic, model, batch):
        bare = dataclasses.replace(model, provenance={})
        with pytest.raises(ValueError, match=r"fit_gradient_model\(critic, batches\), or write hinge=False"):
            NIQEPenalty(value_range=UNIT, model=bare)
        assert NIQEPenalty(value_range=UNIT, model=bare, hinge=False)(critic, *batch) > 0

    def test_a_model_of_photographs_is_refused(self):
        from qa_hooks.scorers import NIQE

        with pytest.raises(ValueError, match=r"describes photographs \(block=96\), not gradient maps"):
            NIQEPenalty(value_range=UNIT, model=NIQE().model)
        with pytest.raises(TypeError, match="model must be a NaturalnessModel or a path, got int"):
            NIQEPenalty(value_range=UNIT, model=3)

    def test_a_warmup_that_gives_no_model_waits_once_more(self, critic, digits):
        linear = nn.Sequential(nn.Flatten(), nn.Linear(256, 1))
        penalty = NIQEPenalty(value_range=UNIT, warmup=6)
        real = digits[:64]
        for _ in range(5):
            penalty(linear, real, real)
        with pytest.warns(UserWarning, match="all gradient maps are alike.*starts again, once, for 6 calls"):
            penalty(linear, real, real)
        for _ in range(5):
            penalty(linear, real, real)
        with pytest.raises(ValueError, match="all gradient maps are alike"):
            penalty(linear, real, real)

    def test_a_model_of_another_configuration_is_refused(self, model):
        with pytest.raises(ValueError, match="the model was fitted with"):
            NIQEPenalty(value_range=UNIT, model=model, config=FeatureConfig.qagan())

    def test_flat_gradient_maps_are_finite(self, model, batch):
        weight = nn.Parameter(torch.zeros(256))
        value = NIQEPenalty(value_range=UNIT, model=model)(lambda x: x.flatten(1) @ weight, *batch)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(weight.grad).all()

    def test_small_maps_are_refused(self, model):
        small = torch.zeros(32, 1, 8, 8)
        with pytest.raises(ValueError, match="16"):
            NIQEPenalty(value_range=UNIT, model=model)(lambda x: x.square().sum((1, 2, 3)), small, small)


class TestFitGradientModel:
    @pytest.mark.parametrize("maps", [0, -5, "a"])
    def test_max_maps_must_be_enough(self, critic, digits, maps):
        with pytest.raises(ValueError, match="max_maps must be a whole number of at least 360"):
            fit_gradient_model(critic, [digits], max_maps=maps, progress=False)

    def test_refuses_few_maps_and_singular_covariances(self, critic, digits):
        with pytest.raises(ValueError, match="at least 360 maps that are not flat, got 64"):
            fit_gradient_model(critic, [digits[:64]], progress=False)
        with pytest.raises(ValueError, match="all gradient maps are alike"):
            fit_gradient_model(critic, [digits[:1].repeat(400, 1, 1, 1)], progress=False)
        with pytest.raises(ValueError, match="condition number"):
            fit_gradient_model(critic, [digits[:20].repeat(20, 1, 1, 1)], progress=False)

    def test_leaves_the_critic_and_the_random_state_alone(self, digits):
        critic = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.Tanh(), nn.Flatten(), nn.Linear(784, 1)).train()
        before = torch.get_rng_state()
        loader = torch.utils.data.DataLoader(digits[:400], batch_size=50, shuffle=True)
        fit_gradient_model(critic, loader, progress=False)
        assert torch.equal(torch.get_rng_state(), before)
        assert critic[1].training
        assert all(p.grad is None for p in critic.parameters())

    def test_saves_and_loads(self, model, critic, batch, tmp_path):
        model.save(tmp_path / "model.safetensors")
        values = [
            NIQEPenalty(value_range=UNIT, model=m)(critic, *batch) for m in (model, str(tmp_path / "model.safetensors"))
        ]
        assert torch.equal(*values)

    def test_a_declared_range_is_checked(self, critic, digits):
        with pytest.raises(ValueError, match="batches: values lie in"):
            fit_gradient_model(critic, [digits[:400] * 127.5 + 127.5], value_range=UNIT, progress=False)

    def test_takes_loaders_with_labels(self, critic, digits):
        pairs = [(digits[:400], torch.zeros(400))]
        assert fit_gradient_model(critic, pairs, progress=False).count == 400


class TestQAGANPenalty:
    def test_is_the_sum_of_its_parts_with_one_interpolated_gradient(self, critic, model, batch):
        counting = Counting(critic)
        weights = {"ssim": 0.2, "niqe": 0.3}
        penalty = QAGANPenalty(
            "both", value_range=UNIT, gp_weight=2.0, quality_weight=weights, drift_weight=0.01, model=model
        )
        total = penalty(counting, *batch)
        assert counting.passes == 3  # real, fake, interpolated
        parts = [
            GradientPenalty(value_range=UNIT, weight=2.0),
            SSIMPenalty(value_range=UNIT, weight=0.2),
            NIQEPenalty(value_range=UNIT, weight=0.3, model=model),
            DriftPenalty(value_range=UNIT, weight=0.01),
        ]
        assert total.item() == pytest.approx(sum(part(critic, *batch).item() for part in parts), rel=1e-5)

    @pytest.mark.parametrize(("quality", "given", "passes"), [("none", True, 1), ("none", False, 2), ("ssim", True, 1)])
    def test_no_needless_pass(self, critic, batch, quality, given, passes):
        counting = Counting(critic)
        scores = {"real_scores": critic(batch[0]), "fake_scores": critic(batch[1])} if given else {}
        QAGANPenalty(quality, value_range=UNIT)(counting, *batch, **scores)
        assert counting.passes == passes

    def test_replaces_plain_wgan_gp(self, critic, batch):
        penalty = QAGANPenalty("none", value_range=UNIT, gp_weight=10.0, drift_weight=0)
        assert torch.equal(penalty(critic, *batch), GradientPenalty(value_range=UNIT, weight=10.0)(critic, *batch))

    def test_either_sign_of_the_critic(self, critic, batch):
        values = [QAGANPenalty("ssim", value_range=UNIT)(c, *batch).item() for c in (critic, lambda x: -critic(x))]
        assert values[0] == pytest.approx(values[1], rel=1e-6)

    def test_bad_arguments(self):
        for arguments, message in [
            ({"quality": "brisque"}, "quality must be one of"),
            ({"quality": "ssim", "quality_weight": {"niqe": 1.0}}, r"quality_weight must name \['ssim'\]"),
            ({"quality": "ssim", "quality_weight": -1.0}, "quality_weight must be a finite number"),
            ({"quality": "ssim", "gp_weight": float("nan")}, "gp_weight must be a finite number"),
            ({"quality": "ssim", "interval": 0}, "interval must be a whole number"),
            ({"quality": ["ssim"]}, "quality must be one of"),
            (
                {"quality": "ssim", "gp_weight": "heavy"},
                "gp_weight must be a finite number and not negative, got 'heavy'",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                QAGANPenalty(**{"value_range": UNIT, **arguments})
        with pytest.raises(TypeError, match="value_range"):
            QAGANPenalty("ssim")


class TestEveryCall:
    def test_interval_applies_every_kth_call_times_k(self, critic, batch):
        penalty = DriftPenalty(value_range=UNIT, weight=1.0, interval=3)
        values = [penalty(critic, *batch).item() for _ in range(6)]
        once = DriftPenalty(value_range=UNIT, weight=1.0)(critic, *batch).item()
        assert values == [pytest.approx(3 * once, rel=1e-6), 0, 0] * 2

    def test_weight_zero_calls_nothing_and_draws_nothing(self, batch):
        def never(_images):
            raise AssertionError("the critic was called")

        for penalty in (
            GradientPenalty(value_range=UNIT, weight=0),
            SSIMPenalty(value_range=UNIT, weight=0),
            QAGANPenalty("ssim", value_range=UNIT, gp_weight=0, quality_weight=0, drift_weight=0),
        ):
            value = penalty(never, *batch)
            assert value.item() == 0
            assert not value.requires_grad
            assert penalty.random.draws == 0
            assert penalty.terms == {}
            with pytest.raises(ValueError, match="must have the same shape"):
                penalty(never, batch[0], batch[1][:, :, :-4])

    def test_the_global_random_state_is_left_alone(self, critic, model, batch):
        before = torch.get_rng_state()
        QAGANPenalty("both", value_range=UNIT, model=model)(critic, *batch)
        assert torch.equal(torch.get_rng_state(), before)

    def test_state_continues_the_draws(self, critic, batch):
        penalty = GradientPenalty(value_range=UNIT)
        first = [penalty(critic, *batch) for _ in range(4)]
        resumed = GradientPenalty(value_range=UNIT)
        again = [resumed(critic, *batch) for _ in range(2)]
        other = GradientPenalty(value_range=UNIT)
        other.load_run_state(resumed.run_state())
        again += [other(critic, *batch) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))

    def test_a_penalty_in_a_model_is_not_in_its_checkpoint(self, critic, batch, model, tmp_path):
        class Trainer(nn.Module):
            def __init__(self):
                super().__init__()
                self.critic = critic
                self.penalty = QAGANPenalty("both", value_range=UNIT, model=model)

        trainer = Trainer()
        trainer.penalty(trainer.critic, *batch)
        assert set(trainer.state_dict()) == {f"critic.{name}" for name in critic.state_dict()}
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        accelerator.prepare(trainer)
        accelerator.save_state(str(tmp_path))

    def test_the_state_of_another_penalty_is_refused(self, model):
        both = QAGANPenalty("both", value_range=UNIT, model=model)
        ssim = QAGANPenalty("ssim", value_range=UNIT)
        with pytest.raises(ValueError, match=r"terms \['drift', 'gradient_penalty', 'niqe', 'ssim'\], not"):
            ssim.load_run_state(both.run_state())
        with pytest.raises(ValueError, match="the model was fitted with"):
            NIQEPenalty(value_range=UNIT, warmup=9, config=FeatureConfig.qagan()).load_run_state(
                NIQEPenalty(value_range=UNIT, model=model).run_state()
            )

    def test_fakes_in_another_precision(self, critic, batch):
        penalty = QAGANPenalty("ssim", value_range=UNIT)
        value = penalty(critic, batch[0], batch[1].bfloat16())
        assert value.item() == pytest.approx(QAGANPenalty("ssim", value_range=UNIT)(critic, *batch).item(), rel=0.05)

    @pytest.mark.parametrize("kind", [GradientPenalty, SSIMPenalty, DriftPenalty])
    def test_images_made_in_inference_mode_are_named(self, critic, batch, kind):
        with torch.inference_mode():
            fake = batch[1].clone()
        with pytest.raises(ValueError, match=r"must not be made under torch\.inference_mode"):
            kind(value_range=UNIT)(critic, batch[0], fake)

    def test_inference_mode_is_named(self, critic, batch):
        with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
            GradientPenalty(value_range=UNIT)(critic, *batch)

    def test_a_transformed_function_is_named(self, critic, batch):
        with pytest.raises(ValueError, match=r"cannot be transformed by torch\.func .*: it takes a gradient itself"):
            torch.func.grad(lambda fake: GradientPenalty(value_range=UNIT)(critic, batch[0], fake))(batch[1])

    def test_inside_a_compiled_function_it_is_refused_or_right(self, critic, batch):
        """Newer versions of torch pass the refusal on; older ones fall back to running the function uncompiled."""
        penalty = GradientPenalty(value_range=UNIT)
        expected = penalty(critic, *batch).item()
        penalty.random.draws = 0
        compiled = torch.compile(lambda r, f: penalty(critic, r, f), backend="eager")
        with contextlib.suppress(ValueError):
            assert compiled(*batch).item() == pytest.approx(expected)
            return
        with pytest.raises(ValueError, match="compile the critic, not the function"):
            compiled(*batch)

    def test_a_conditional_critic_is_a_lambda(self, batch):
        labels = torch.randint(0, 10, (32,))
        embed, net = nn.Embedding(10, 256), nn.Linear(256, 1)
        conditional = lambda x: net(x.flatten(1) * embed(labels))  # noqa: E731
        QAGANPenalty("ssim", value_range=UNIT)(conditional, *batch).backward()
        assert embed.weight.grad.abs().sum() > 0

    @pytest.mark.filterwarnings("ignore:QAGANPenalty has been made anew")
    def test_tuples_need_output_fn(self, critic, batch):
        pair = lambda x: (critic(x), None)  # noqa: E731
        with pytest.raises(TypeError, match="output_fn"):
            QAGANPenalty("ssim", value_range=UNIT)(pair, *batch)
        with pytest.raises(ValueError, match=r"output_fn failed on what critic gave, a tuple: KeyError|TypeError"):
            QAGANPenalty("ssim", value_range=UNIT, output_fn=lambda out: out["x"])(pair, *batch)
        with pytest.raises(TypeError, match="output_fn must be callable"):
            QAGANPenalty("ssim", value_range=UNIT, output_fn=0)
        plain = QAGANPenalty("ssim", value_range=UNIT)(critic, *batch)
        picked = QAGANPenalty("ssim", value_range=UNIT, output_fn=lambda out: out[0])(pair, *batch)
        assert torch.equal(plain, picked)

    def test_bad_batches_are_named(self, critic, batch):
        penalty = QAGANPenalty("ssim", value_range=UNIT)
        real, fake = batch
        with pytest.raises(ValueError, match="real and fake must have the same shape"):
            penalty(critic, real, fake[:7])
        with pytest.raises(ValueError, match="real is empty"):
            penalty(critic, real[:0], fake[:0])
        with pytest.raises(TypeError, match="real must be floating point"):
            penalty(critic, real.byte(), fake)
        with pytest.raises(ValueError, match="one device"):
            penalty(critic, real, fake.to("meta"))
        with pytest.raises(ValueError, match=r"real: values lie in .* value_range=\(0, 1\)"):
            QAGANPenalty("ssim", value_range=(0, 1))(critic, real, fake)
        with pytest.raises(ValueError, match="fake: some values are not finite"):
            penalty(critic, real, fake * float("nan"))
        with pytest.raises(TypeError, match="critic must be callable"):
            QAGANPenalty("ssim", value_range=UNIT)(3, real, fake)

    def test_a_term_that_is_not_finite_is_named(self, batch):
        with pytest.raises(ValueError, match="term 'drift' of QAGANPenalty is nan"):
            QAGANPenalty("none", value_range=UNIT, gp_weight=0)(lambda x: x.sum((1, 2, 3)) * float("nan"), *batch)

    def test_batchnorm_in_the_critic_warns(self, batch):
        critic = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(392, 1))
        with pytest.warns(UserWarning, match="BatchNorm"):
            GradientPenalty(value_range=UNIT)(critic, *batch)

    def test_a_sharded_critic_is_refused(self, batch):
        class FullyShardedDataParallel(nn.Identity):
            pass

        with pytest.raises(ValueError, match="sharded by FullyShardedDataParallel"):
            GradientPenalty(value_range=UNIT)(FullyShardedDataParallel(), *batch)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_autocast_gives_nearly_the_same_gradient(self, critic, model, batch, dtype):
        gradients = []
        for enabled in (False, True):
            critic.zero_grad()
            with torch.autocast("cpu", dtype=dtype, enabled=enabled):
                value = QAGANPenalty("both", value_range=UNIT, model=model)(critic, *batch)
            assert value.dtype == torch.float32
            value.backward()
            gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
        assert torch.cosine_similarity(*gradients, dim=0) > 0.98

    def test_a_compiled_critic(self, critic, model, batch):
        compiled = torch.compile(critic, backend="aot_eager")
        values = [QAGANPenalty("both", value_range=UNIT, model=model)(c, *batch) for c in (critic, compiled)]
        values[1].backward()
        assert values[0].item() == pytest.approx(values[1].item(), rel=1e-4)
