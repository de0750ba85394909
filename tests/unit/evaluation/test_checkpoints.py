"""compare_checkpoints: the same seeds for both, paired verdicts, and a user's run that it leaves as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qa_hooks.evaluation.checkpoints import compare_checkpoints
from qa_hooks.features import create_extractor
from qa_hooks.functional.intervals import paired_difference
from qa_hooks.scorers import PSNR, FunctionScorer
from qa_hooks.sources.samples import sample_block
from toy_scorers import brightness


def plain(n, generator):
    return torch.rand(n, 3, 8, 8, generator=generator) * torch.rand(n, 1, 1, 1, generator=generator)


def lighter(n, generator):
    return 0.98 * plain(n, generator) + 0.02


def test_the_same_seeds_are_paired():
    result = compare_checkpoints(plain, lighter, brightness(), n=50, seed=3, batch_size=20)
    blocks = [(20, 0), (20, 1), (10, 2)]
    a, b = (torch.cat([sample_block(f, size, 3, i) for size, i in blocks]).mean((1, 2, 3)) for f in (plain, lighter))
    expected = paired_difference(a, b, seed=3)
    found = result.comparisons["B"]["brightness"]
    assert found.difference == pytest.approx(expected.difference, abs=1e-7)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert found.n == 50
    assert result.verdicts == {"brightness": "B better"}
    first, second = (result.values[label]["brightness"] for label in "AB")
    assert first.high > second.low  # unpaired, their intervals overlap
    assert "B better" in str(result)
    assert "n 50" in str(result)


def test_set_metrics_of_digits(digits):
    real = digits[:400]

    def noisy(amount):
        def sample(n, generator):
            chosen = torch.randint(400, 1400, (n,), generator=generator)
            return (digits[chosen] + amount * torch.randn(n, 1, 16, 16, generator=generator)).clamp(-1, 1)

        return sample

    options = {"n": 128, "real": real, "extractor": "random", "metrics": ("fd", "kid", "pr"), "value_range": (-1, 1)}
    shy = compare_checkpoints(noisy(0.5), noisy(0.0), **options)
    assert set(shy.verdicts.values()) == {"no verdict"}
    assert "untrained" in str(shy)
    options["always_judge"] = True
    result = compare_checkpoints(noisy(0.5), noisy(0.0), **options)
    assert result.verdicts["kd_random"] == "B better"
    assert result.verdicts["precision_random"] == "B better"
    assert not result.higher_is_better["fd_random"]
    same = compare_checkpoints(noisy(0.2), noisy(0.2), **options)
    assert set(same.verdicts.values()) == {"cannot tell"}
    assert all(c.difference == 0 for c in same.comparisons["B"].values())
    assert result.spec["extractor"] == "random"
    assert result.spec["images"] == "1x16x16"


def test_inputs_and_references(photographs):
    low = photographs[:, :, ::2, ::2]

    def enlarge(mode):
        return lambda images, generator: nn.functional.interpolate(images, scale_factor=2.0, mode=mode).clamp(0, 1)

    nearest, bicubic = enlarge("nearest"), enlarge("bicubic")
    result = compare_checkpoints(nearest, bicubic, PSNR(), inputs=low, reference=photographs, batch_size=3)
    expected = PSNR()(bicubic(low, None), reference=photographs) - PSNR()(nearest(low, None), reference=photographs)
    assert result.comparisons["B"]["psnr"].difference == pytest.approx(float(expected.mean()), abs=1e-4)
    prompts = ["dark", "bright", "bright"]
    agreement = FunctionScorer(
        lambda x, prompt: torch.tensor([float(p == "bright") for p in prompt]) * x.mean((1, 2, 3)),
        name="agreement", higher_is_better=True, inputs=["prompt"],
    )  # fmt: skip
    drawn = compare_checkpoints(
        lambda texts, g: torch.rand(len(texts), 3, 8, 8, generator=g) / 2,
        lambda texts, g: torch.rand(len(texts), 3, 8, 8, generator=g) / 2 + 0.25,
        agreement, inputs=prompts,
    )  # fmt: skip
    assert drawn.comparisons["B"]["agreement"].difference == pytest.approx(0.25 * 2 / 3, abs=1e-6)


def test_the_run_stays_as_it_was():
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 48), nn.BatchNorm1d(48), nn.Dropout(0.5), nn.Sigmoid(), nn.Unflatten(1, (3, 4, 4)))
    net.train()
    buffers = [buffer.clone() for buffer in net.buffers()]
    state = torch.get_rng_state()

    def sample(n, generator):
        torch.rand(3)
        return net(torch.randn(n, 4, generator=generator))

    compare_checkpoints(sample, sample, brightness(), n=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net[2].training
    assert all(torch.equal(old, new) for old, new in zip(buffers, net.buffers(), strict=True))


def test_different_specs_are_refused():
    with pytest.raises(ValueError, match=r"A makes images of \(3, 8, 8\) and B of \(3, 9, 9\)"):
        compare_checkpoints(plain, lambda n, g: torch.rand(n, 3, 9, 9, generator=g), brightness(), n=4)
    with pytest.raises(ValueError, match="of the pixels of sample_b lie outside"):
        compare_checkpoints(plain, lambda n, g: 2 * plain(n, g) - 1, brightness(), n=40)
    with pytest.raises(ValueError, match="different ranges"):
        compare_checkpoints(plain, plain, [brightness(value_range=(-1, 1)), PSNR()], n=4)
    with pytest.raises(ValueError, match="real= and extractor="):
        compare_checkpoints(plain, plain, real=torch.rand(9, 3, 8, 8))
    with pytest.raises(ValueError, match="nothing to compare by"):
        compare_checkpoints(plain, plain)
    with pytest.raises(ValueError, match="psnr needs reference= with 4 images"):
        compare_checkpoints(plain, plain, PSNR(), n=4)
    with pytest.raises(TypeError, match="sample_b must be callable"):
        compare_checkpoints(plain, 3, brightness())
    bad = FunctionScorer(lambda x: 1 / (x.mean((1, 2, 3)) > 0.2).float(), name="bad", higher_is_better=True)
    with pytest.raises(ValueError, match="of B are not finite"):
        compare_checkpoints(lambda n, g: plain(n, g) * 0 + 0.5, lambda n, g: plain(n, g) * 0, bad, n=4)
    with pytest.raises(TypeError, match="must be a qa_hooks Scorer"):
        compare_checkpoints(plain, plain, ["niqe"])


def test_a_users_extractor_and_its_name():
    extractor = create_extractor(nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU()), name="mine")
    result = compare_checkpoints(plain, plain, extractor=extractor, real=torch.rand(60, 3, 8, 8), n=40)
    assert list(result.verdicts) == ["fd_mine", "kd_mine"]
    famous = create_extractor(extractor.network, name="inception")
    result = compare_checkpoints(plain, plain, extractor=famous, real=torch.rand(60, 3, 8, 8), n=40)
    assert list(result.verdicts) == ["fd_own-inception", "kd_own-inception"]


@pytest.mark.filterwarnings("ignore:.*values lie in:UserWarning")
def test_real_images_are_rounded_like_the_generated_ones():
    extractor = create_extractor(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), name="mine")

    def dark(n, generator):
        return 0.6 / 255 * torch.rand(n, 3, 8, 8, generator=generator)

    real = dark(100, torch.Generator().manual_seed(9))
    options = {"extractor": extractor, "n": 60, "metrics": ("fd",)}
    floating, whole = (
        compare_checkpoints(dark, dark, real=images, **options).values["A"]["fd_mine"]
        for images in (real, (255 * real).round().byte())
    )
    assert floating == whole
