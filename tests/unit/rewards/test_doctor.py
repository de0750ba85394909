"""The doctor finds each planted fault, and nothing else; the short check refuses what cannot be a reward."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from qa_hooks.cli import main
from qa_hooks.functional.degradations import dead_leaves
from qa_hooks.images import save_image, to_uint8
from qa_hooks.rewards.check import check_reward, score_gradients
from qa_hooks.rewards.doctor import BROKEN, MONITOR, REWARD, diagnose, read_pictures
from qa_hooks.rewards.doctor_checks import CHECKS
from qa_hooks.rewards.doctor_subject import smallest_side
from qa_hooks.scorers import FunctionScorer, GMMScorer, Scorer, create_scorer


def fidelity(images, reference):
    return -(images - reference).square().mean((1, 2, 3))


def toy(function, **facts):
    return FunctionScorer(function, **{"name": "toy", "higher_is_better": True, "inputs": ("reference",), **facts})


def lying_gradient(images, reference):
    """The value of fidelity, the gradient of brightness."""
    bright = images.mean((1, 2, 3))
    return fidelity(images, reference).detach() + bright - bright.detach()


def missing_terms(images, reference):
    """Half of the value is detached, as when a library estimates a parameter under no_grad."""
    score = fidelity(images, reference)
    return 0.3 * score + 0.7 * score.detach()


def batch_mean(images, reference):
    return fidelity(images, reference).mean().expand(len(images))


def first_only(images, reference):
    return torch.cat([fidelity(images, reference)[:1], torch.full((len(images) - 1,), -0.01)])


def batch_statistics(images, reference):
    return fidelity(images, reference) / (images.var() + 0.1)


def noisy(images, reference):
    return fidelity(images, reference) * (1 + torch.rand(()))


def fragile(images, reference):
    variance = images.var((1, 2, 3))
    return fidelity(images, reference) + variance / variance - 1


def large_only(images, reference):
    if images.shape[-1] < 100:
        raise ValueError("at least 100 pixels")
    return fidelity(images, reference)


class OwnPrecision(Scorer):
    """Computes in the images' own precision, without the protection of `Scorer.forward`, and cancels."""

    name, inputs = "half", frozenset({"reference"})

    def forward(self, images, *, reference=None, prompt=None):
        return (0.05 + fidelity(images, reference)) - 0.05


FAULTS = {
    "none": (toy(fidelity), set(), REWARD),
    "no gradient": (toy(lambda images, reference: fidelity(images.detach(), reference)), {"gradient"}, MONITOR),
    "declared without": (toy(fidelity, differentiable=False), {"gradient"}, MONITOR),
    "lying gradient": (toy(lying_gradient), {"finite differences"}, MONITOR),
    "missing terms": (toy(missing_terms), {"finite differences"}, MONITOR),
    "batch mean": (toy(batch_mean), {"batch independence", "gradient cross-talk"}, BROKEN),
    "first only": (toy(first_only), {"each image reacts", "batch independence", "gradient"}, BROKEN),
    "batch statistics": (toy(batch_statistics), {"batch independence", "gradient cross-talk"}, BROKEN),
    "wrong direction": (toy(fidelity, higher_is_better=False), {"direction", "order of degradations"}, BROKEN),
    "own precision": (OwnPrecision(), {"bfloat16"}, MONITOR),
    "flat images": (toy(fragile), {"flat images"}, MONITOR),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_doctor_finds_each_planted_fault_and_nothing_else(fault):
    scorer, failed, verdict = FAULTS[fault]
    diagnosis = diagnose(scorer, size=64)
    assert set(diagnosis.failed()) == failed, str(diagnosis)
    assert diagnosis.verdict == verdict
    assert [finding.check for finding in diagnosis.findings] == [check.name for check in CHECKS]


def test_noise_in_the_scores_breaks_a_scorer():
    diagnosis = diagnose(toy(noisy), size=64)
    assert diagnosis["determinism"].verdict == "fail"
    assert diagnosis.verdict == BROKEN


def test_a_score_that_is_shared_by_alike_images_is_still_found_to_depend_on_its_batch():
    alike = dead_leaves(1, 64, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    contrast = FunctionScorer(
        lambda images: images.std((1, 2, 3)).mean().expand(len(images)), name="shared", higher_is_better=True
    )
    diagnosis = diagnose(contrast, alike)
    assert "batch independence" in diagnosis.failed()
    assert diagnosis.verdict == BROKEN


def test_the_minimum_size_is_found_and_used():
    diagnosis = diagnose(toy(large_only), size=64)
    assert diagnosis["minimum size"].measured == "128 px"
    assert diagnosis["minimum size"].verdict == "warn"
    assert diagnosis.verdict == REWARD
    never = diagnose(toy(lambda images, reference: images[:, 5, 0, 0]), size=64)
    assert never.verdict == BROKEN
    assert "no size is scored" in never["minimum size"].measured


def ranks_blur(share):
    """Blur pays for as many of its steps as the share leaves wrong, and everything else costs."""

    def score(images, reference):
        loss = (images - reference).abs().mean((1, 2, 3))
        sharpness = images.diff(dim=-1).abs().mean((1, 2, 3)) / reference.diff(dim=-1).abs().mean((1, 2, 3))
        blurred = (0.97 - sharpness).clamp(0, 1)
        return -loss + share * blurred

    return toy(score)


def test_what_ranks_blur_the_wrong_way_is_no_reward_though_the_rest_is_right():
    diagnosis = diagnose(ranks_blur(0.5), size=64)
    found = diagnosis["order of degradations"]
    assert found.verdict == "fail", found
    assert "noise 10/10" in found.measured
    assert diagnosis["direction"].verdict == "pass"
    assert diagnosis.verdict == MONITOR
    assert "order of degradations" in diagnosis.reasons


def test_the_last_line_names_what_the_table_warns_of():
    diagnosis = diagnose(toy(large_only), size=64, licence="MIT")
    assert diagnosis.reasons == ("minimum size",)
    assert str(diagnosis).splitlines()[-1] == "toy: usable as a reward, but mind the minimum size"
    broken = diagnose(toy(fidelity, higher_is_better=False), size=64)
    assert str(broken).splitlines()[-1] == "toy: broken (direction)"


def test_a_score_without_a_ceiling_is_found_to_be_hackable():
    """Fine detail pays without end: the picture gets worse in PSNR while the score leaves the ladders' range."""
    detail = toy(lambda images: images.diff(dim=-1).abs().mean((1, 2, 3)), inputs=())
    diagnosis = diagnose(detail, size=64)
    assert diagnosis["hackability"].verdict == "fail"
    assert diagnosis.verdict == MONITOR
    assert "hackability" in diagnosis.reasons
    assert diagnose(toy(fidelity), size=64)["hackability"].verdict == "pass"


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_our_own_metrics_are_usable_on_photographs(name, photographs):
    assert diagnose(create_scorer(name, (-1, 1)), photographs * 2 - 1).verdict == REWARD
    assert diagnose(create_scorer(name), to_uint8(photographs[:, :, :64, :64])).verdict == REWARD


def test_finite_differences_agree_with_a_known_derivative():
    """The doctor's relative error for a gradient that is wrong by a known factor."""

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 1.25 * gradient

    found = diagnose(toy(lambda images, reference: Scaled.apply(fidelity(images, reference))), size=64)
    assert found["finite differences"].verdict == "warn"
    assert float(found["finite differences"].measured.split()[-1]) == pytest.approx(0.2, abs=0.01)  # 1 - 1 / 1.25


def test_nothing_of_the_run_is_touched():
    torch.manual_seed(5)
    np.random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    with torch.no_grad():
        diagnose(toy(noisy), size=32)
        check_reward(toy(fidelity))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_the_table_and_the_dictionary_say_the_same():
    diagnosis = diagnose(toy(fidelity), size=32, licence="MIT")
    text, facts = str(diagnosis), diagnosis.as_dict()
    assert text.endswith("toy: usable as a reward")
    assert all(finding["check"] in text and finding["measured"] in text for finding in facts["findings"])


def test_bad_input(tmp_path):
    with pytest.raises(TypeError, match="must be a qa_hooks Scorer"):
        diagnose(fidelity)
    with pytest.raises(ValueError, match="two images or more"):
        diagnose(create_scorer("psnr"), torch.rand(1, 3, 32, 32))
    save_image(torch.zeros(3, 40, 40, dtype=torch.uint8), tmp_path / "one.png")
    save_image(torch.zeros(3, 20, 40, dtype=torch.uint8), tmp_path / "small.png")
    with pytest.raises(ValueError, match="fewer than two images of at least 32 x 32"):
        read_pictures(tmp_path, 32)
    assert read_pictures(tmp_path, 16).shape == (2, 3, 16, 16)


def test_images_that_are_too_small_are_an_error_and_no_verdict(tmp_path, capsys):
    small = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^niqe_bsd100 needs 96 px a side; your 32 are too few$"):
        diagnose(create_scorer("niqe_bsd100"), small)
    for number, image in enumerate(to_uint8(small)):
        save_image(image, tmp_path / f"{number}.png")
    for spec, size, words in (
        ("niqe_bsd100", 32, "niqe_bsd100 needs 96 px a side; your 32 are too few"),
        ("niqe_bsd100", 96, "the largest that two of them hold is 32, and niqe_bsd100 needs 96 px a side"),
        ("psnr", 96, "the largest that two of them hold is --size 32"),
    ):
        assert main(["doctor", spec, "--images", str(tmp_path), "--size", str(size)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert main(["doctor", "psnr", "--images", str(tmp_path), "--size", "32"]) == 0
    assert "right for 3 of 3 kinds" in capsys.readouterr().out


def test_looking_for_the_smallest_size_is_silent():
    images = torch.rand(60, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scorer = GMMScorer({"type": "random", "width": 4}, 1, pca=2).fit(images, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert smallest_side(scorer, lambda side: torch.rand(2, 3, side, side)) == (8, "")
    with pytest.warns(UserWarning, match="scores of 8 x 8 cannot be compared"):  # what the user asks for is told
        scorer(images[..., :8, :8])


class TestCheckReward:
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            ("no gradient", "no gradient comes back"),
            ("declared without", "no usable gradient"),
            ("batch mean", "gradient at the other images"),
            ("batch statistics", "gradient at the other images"),
            ("first only", "zero everywhere for image 1 of 2"),
        ],
    )
    def test_it_refuses(self, fault, message):
        with pytest.raises(ValueError, match=message):
            check_reward(FAULTS[fault][0])

    def test_it_refuses_a_gradient_that_is_not_finite(self):
        with pytest.raises(ValueError, match="NaN or infinite"):
            check_reward(toy(lambda images: (images * 0).sum((1, 2, 3)).sqrt(), inputs=()))

    def test_it_refuses_a_backward_that_fails(self):
        class Broken(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, g):
                raise RuntimeError("no kernel for this")

        with pytest.raises(ValueError, match="backward pass fails: no kernel"):
            check_reward(toy(lambda images: Broken.apply(images).mean((1, 2, 3)), inputs=()))

    @pytest.mark.parametrize("name", ["psnr", "ssim", "ms_ssim", "niqe_bsd100"])
    @pytest.mark.filterwarnings("ignore:images of 64x64 have room")
    def test_it_accepts(self, name):
        check_reward(create_scorer(name, (-1, 1)))
        check_reward(toy(large_only))

    def test_the_run_s_own_images(self, photographs):
        scorer = create_scorer("ssim")
        noise = 0.1 * torch.rand(photographs.shape)
        check_reward(scorer, photographs + noise, reference=photographs)
        check_reward(scorer, (photographs + noise)[:1].half(), reference=photographs[:1].half())  # one is mirrored
        grey = toy(lambda images: images[:, 0].std((1, 2)), inputs=())
        check_reward(grey, torch.rand(5, 1, 12, 12))
        with pytest.raises(ValueError, match="zero everywhere for image 0, 1"):
            check_reward(scorer, photographs * 0, reference=photographs * 0)

    def test_prompts_reach_the_scorer(self):
        seen = []

        def liked(images, prompt):
            seen.append(prompt)
            return images.mean((1, 2, 3)) * torch.tensor([float(len(text)) for text in prompt])

        check_reward(toy(liked, inputs=("prompt",)))
        check_reward(toy(liked, inputs=("prompt",)), torch.rand(1, 3, 8, 8), prompt=["a dog"])
        assert seen[-1] == ["a dog", "a dog"]

    def test_gradients_by_hand(self):
        images = torch.rand(3, 1, 4, 4)
        gradients = score_gradients(toy(lambda x: x.square().sum((1, 2, 3)), inputs=()), images)
        expected = torch.zeros(3, 3, 1, 4, 4)
        for i in range(3):
            expected[i, i] = 2 * images[i]
        assert torch.allclose(gradients, expected)


def test_dead_leaves_look_like_photographs_to_a_spectrum(photographs):
    """Power falls with frequency as f^-2, roughly; noise is flat. And the same seed gives the same pictures."""

    def slope(images):
        grey = (images - images.mean((-2, -1), keepdim=True)).mean(1).double()
        window = torch.hann_window(grey.shape[-1], dtype=torch.float64)
        power = torch.fft.fft2(grey * window[:, None] * window).abs().square().mean(0)
        frequency = torch.fft.fftfreq(grey.shape[-1])
        radius = (frequency[:, None].square() + frequency.square()).sqrt()
        keep = (radius > 0.02) & (radius < 0.25)
        x, y = radius[keep].log().double(), power[keep].log()
        return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())

    leaves = dead_leaves(4, 192, generator=torch.Generator().manual_seed(0))
    assert -3.5 < slope(leaves) < -1.5
    assert -3.5 < slope(photographs) < -1.5
    assert abs(slope(torch.rand(4, 3, 192, 192))) < 0.3
    assert leaves.min() >= 0
    assert leaves.max() <= 1
    assert torch.equal(leaves[:2], dead_leaves(4, 192, generator=torch.Generator().manual_seed(0))[:2])
