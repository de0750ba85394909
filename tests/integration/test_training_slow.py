"""Real trainings, minutes long: `make test-slow`."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch

from qa_hooks import Hooks, NaNGuard, QAGANPenalty
from qa_hooks.demo import LATENT, make_critic, make_generator, run_demo

pytestmark = pytest.mark.slow


def test_every_variant_trains_on_digits(tmp_path):
    """An untrained generator is above 250; at 600 steps all variants are far below, and none falls apart."""
    results = run_demo(out=tmp_path, steps=600, seeds=(0,))
    assert {run["variant"] for run in results} == {"plain", "ssim", "niqe"}
    assert all(run["fd"] < 60 for run in results), results
    assert all(run["is"] > 5 for run in results), results


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_two_hundred_steps_on_colour_crops_stay_finite(photographs, dtype, tmp_path):
    """QAGAN with both terms on 32x32 crops of photographs, also under bf16 autocast."""
    torch.manual_seed(0)
    crops = photographs.unfold(2, 32, 16).unfold(3, 32, 16).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 32, 32) * 2 - 1
    generator, critic = make_generator(32, 3), make_critic(32, 3)
    opt_g, opt_d = (torch.optim.Adam(net.parameters(), 1e-3, betas=(0.0, 0.9)) for net in (generator, critic))
    penalty = QAGANPenalty("both", value_range=(-1, 1), gp_weight=10.0, warmup=40)
    guard = NaNGuard("stop")
    with Hooks([guard], log_dir=tmp_path, track={"qagan": penalty}).attach(opt_g) as hooks:
        for _ in range(200):
            with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
                real = crops[torch.randint(len(crops), (32,))]
                with torch.no_grad():
                    fake = generator(torch.randn(32, LATENT)).float()
                d_loss = critic(fake).mean() - critic(real).mean() + penalty(critic, real, fake)
            opt_d.zero_grad()
            d_loss.backward()
            opt_d.step()
            g_loss = -critic(generator(torch.randn(32, LATENT))).mean()
            opt_g.zero_grad()
            g_loss.backward()
            hooks.record(d_loss=d_loss, g_loss=g_loss)
            opt_g.step()
    assert guard.found == 0
    assert penalty.terms["niqe_active"] == 1
    assert penalty.terms["gradient_penalty"] < 0.3
    assert math.isfinite(float(penalty.terms["niqe"]))
    assert all(torch.isfinite(p).all() for net in (generator, critic) for p in net.parameters())


def test_a_heavy_two_sided_ssim_penalty_diverges_and_one_sided_does_not(digits):
    """The wrong-sign basin that the warning speaks of: at weight 10 the critic's gap settles below zero."""
    gaps = {}
    for one_sided in (False, True):
        torch.manual_seed(0)
        generator, critic = make_generator(16, 1), make_critic(16, 1)
        opt_g, opt_d = (torch.optim.Adam(net.parameters(), 2e-3, betas=(0.0, 0.9)) for net in (generator, critic))
        with pytest.warns(UserWarning, match="wrong sign") if not one_sided else contextlib.nullcontext():
            penalty = QAGANPenalty(
                "ssim", value_range=(-1, 1), gp_weight=10.0, quality_weight=10.0, one_sided=one_sided
            )
        history = []
        for _ in range(300):
            for _ in range(2):
                real = digits[torch.randint(len(digits), (64,))]
                with torch.no_grad():
                    fake = generator(torch.randn(64, LATENT))
                scores = {"real_scores": critic(real), "fake_scores": critic(fake)}
                gap = scores["real_scores"].mean() - scores["fake_scores"].mean()
                opt_d.zero_grad()
                (-gap + penalty(critic, real, fake, **scores)).backward()
                opt_d.step()
            history.append(gap.item())
            opt_g.zero_grad()
            (-critic(generator(torch.randn(64, LATENT))).mean()).backward()
            opt_g.step()
        gaps[one_sided] = sum(history[-50:]) / 50
    assert gaps[False] < -0.5
    assert gaps[True] > 0
