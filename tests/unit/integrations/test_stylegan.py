"""The StyleGAN loss subclass on stand-ins with the signatures of StyleGAN3's and StyleGAN2-ADA's own."""

from __future__ import annotations

import importlib
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from qa_hooks.integrations import stylegan
from qa_hooks.penalties import SSIMPenalty

LATENT, LABELS = 4, 3


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(LATENT + LABELS, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))

    def forward(self, z, c):
        return self.body(torch.cat([z, c], 1))


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(256, 16), nn.Tanh())
        self.head = nn.Linear(16, LABELS)
        self.labels_seen: list[torch.Tensor] = []

    def forward(self, images, c):
        self.labels_seen.append(c)
        return (self.head(self.body(images)) * c).sum(1, keepdim=True)


class Three:
    """The interface of StyleGAN3's `StyleGAN2Loss`: what a training loop calls, and nothing of how they do it."""

    def __init__(self, device, G, D, augment_pipe=None, r1_gamma=10, style_mixing_prob=0, pl_weight=0,
                 blur_init_sigma=0, blur_fade_kimg=0) -> None:  # fmt: skip
        self.device, self.G, self.D, self.r1_gamma = device, G, D, r1_gamma
        self.blur_init_sigma, self.blur_fade_kimg = blur_init_sigma, blur_fade_kimg
        self.blurs: list[float] = []

    def run_G(self, z, c, update_emas=False):
        return self.G(z, c), None

    def run_D(self, img, c, blur_sigma=0, update_emas=False):
        self.blurs.append(blur_sigma)
        return self.D(img, c)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, gain, cur_nimg):
        if phase == "Gmain":
            softplus(-self.run_D(self.run_G(gen_z, gen_c)[0], gen_c)).mean().mul(gain).backward()
        if phase == "Dmain":
            softplus(self.run_D(self.run_G(gen_z, gen_c)[0], gen_c)).mean().mul(gain).backward()
            softplus(-self.run_D(real_img, real_c)).mean().mul(gain).backward()


class Two:
    """The interface of StyleGAN2-ADA's, with `sync`; it notes which backward pass would be reduced."""

    def __init__(self, device, G_mapping, G_synthesis, D, augment_pipe=None, style_mixing_prob=0.9, r1_gamma=10,
                 pl_batch_shrink=2, pl_decay=0.01, pl_weight=2) -> None:  # fmt: skip
        self.device, self.G, self.D = device, G_synthesis, D
        self.syncs: list[bool] = []

    def run_G(self, z, c, sync):
        return self.G(z, c), None

    def run_D(self, img, c, sync):
        self.syncs.append(sync)
        return self.D(img, c)

    def accumulate_gradients(self, phase, real_img, real_c, gen_z, gen_c, sync, gain):
        if phase == "Dmain":
            softplus(self.run_D(self.run_G(gen_z, gen_c, sync=False)[0], gen_c, sync=False)).mean().mul(gain).backward()
            softplus(-self.run_D(real_img, real_c, sync=sync)).mean().mul(gain).backward()


@pytest.fixture
def repository(monkeypatch):
    """Stand-ins where their clone would be on the path."""
    training, loss = types.ModuleType("training"), types.ModuleType("training.loss")
    utils, stats = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.training_stats")
    loss.StyleGAN2Loss, reported = Three, {}
    stats.report = lambda name, value: reported.setdefault(name, []).append(float(value))
    for module in (training, loss, utils, stats):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    stylegan._loss_class.cache_clear()
    yield reported
    stylegan._loss_class.cache_clear()


def nets() -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    return Generator(), Discriminator()


def batch(digits) -> dict:
    labels = nn.functional.one_hot(torch.arange(8) % LABELS, LABELS).float()
    z = torch.randn(8, LATENT, generator=torch.Generator().manual_seed(1))
    return {"real_img": digits[:8], "real_c": labels, "gen_z": z, "gen_c": labels.flip(0)}


def gradients(net: nn.Module) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]


def test_it_is_chosen_by_name_and_adds_the_penalty_to_the_discriminators_phase(digits, repository):
    """Against their loss plus our SSIM penalty called by hand, with gain 2."""
    name = "qa_hooks.integrations.stylegan.QALoss"
    module, _, attribute = name.rpartition(".")
    make = getattr(importlib.import_module(module), attribute)  # as dnnlib does
    G, D = nets()
    loss = make(device="cpu", G=G, D=D, r1_gamma=1, qa_quality="ssim", qa_weight=0.2)
    assert isinstance(loss, Three)
    G.requires_grad_(False)
    loss.accumulate_gradients(phase="Dmain", **batch(digits), gain=2, cur_nimg=0)
    ours = gradients(D)

    G, D = nets()
    plain = Three("cpu", G, D)
    G.requires_grad_(False)
    plain.accumulate_gradients(phase="Dmain", **batch(digits), gain=2, cur_nimg=0)
    theirs = [g.clone() for g in gradients(D)]
    b = batch(digits)
    fake = G(b["gen_z"], b["gen_c"])
    scores = {"real_scores": D(b["real_img"], b["real_c"]), "fake_scores": D(fake, b["gen_c"])}
    penalty = SSIMPenalty(value_range=(-1, 1), weight=0.2)(lambda x: D(x, b["real_c"]), b["real_img"], fake, **scores)
    (2 * penalty).backward()
    for a, expected in zip(ours, gradients(D), strict=True):
        assert torch.allclose(a, expected, atol=1e-6)
    assert any(not torch.allclose(a, without, atol=1e-4) for a, without in zip(ours, theirs, strict=True))
    assert set(repository) == {"Loss/QA/ssim", "Loss/QA/ssim_distance"}


@pytest.mark.parametrize("phase", ["Gmain", "Dreg", "Greg"])
def test_other_phases_and_weight_zero_are_theirs_bit_for_bit(digits, repository, phase):
    results = []
    for make in (lambda G, D: Three("cpu", G, D), lambda G, D: stylegan.QALoss("cpu", G, D),
                 lambda G, D: stylegan.QALoss("cpu", G, D, qa_weight=0)):  # fmt: skip
        G, D = nets()
        loss = make(G, D)
        loss.accumulate_gradients(phase=phase, **batch(digits), gain=1, cur_nimg=0)
        if getattr(loss, "qa_penalty", None) is None or loss.qa_penalty.is_off():
            loss.accumulate_gradients(phase="Dmain", **batch(digits), gain=1, cur_nimg=0)
        results.append([*gradients(G), *gradients(D)])
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[2], strict=True))
    if phase == "Gmain":
        G, D = nets()
        Three("cpu", G, D).accumulate_gradients(phase=phase, **batch(digits), gain=1, cur_nimg=0)
        assert all(torch.equal(a, b) for a, b in zip([*gradients(G), *gradients(D)], results[1], strict=True))


def test_interval_blur_and_labels(digits, repository):
    G, D = nets()
    loss = stylegan.QALoss("cpu", G, D, blur_init_sigma=10, blur_fade_kimg=200, qa_interval=3)
    for _ in range(6):
        loss.accumulate_gradients(phase="Dmain", **batch(digits), gain=1, cur_nimg=50_000)
    assert loss.qa_penalty.calls == 2
    ours = [blur for blur in loss.blurs if blur]
    assert ours == [7.5] * 4
    fakes = [c for c in D.labels_seen[:2] if torch.equal(c, batch(digits)["gen_c"])]
    assert len(fakes) == 1


def test_stylegan2_ada_reduces_the_penalty_with_its_last_backward(digits):
    results = []
    for base in (Two, stylegan.add_penalty(Two)):
        G, D = nets()
        loss = base("cpu", None, G, D)
        loss.accumulate_gradients(phase="Dmain", **batch(digits), sync=True, gain=1)
        results.append(gradients(D))
    assert loss.syncs == [False, False, False, True]
    assert not torch.allclose(results[0][0], results[1][0])


def test_niqe_gathers_its_model_in_the_run(digits, repository):
    G, D = nets()
    loss = stylegan.QALoss("cpu", G, D, qa_quality="niqe", qa_warmup=2)
    data = batch(digits)
    data = {key: value.repeat(32, *[1] * (value.ndim - 1)) for key, value in data.items()}
    data["real_img"] = digits[:256]
    for _ in range(4):
        loss.accumulate_gradients(phase="Dmain", **data, gain=1, cur_nimg=0)
    assert loss.qa_penalty.parts["niqe"].model is not None
    assert all(torch.isfinite(g).all() for g in gradients(D))


def test_messages(monkeypatch):
    stylegan._loss_class.cache_clear()
    monkeypatch.setitem(sys.modules, "training.loss", None)
    with pytest.raises(ImportError, match="inside a clone"):
        stylegan.QALoss("cpu", None, None)
    with pytest.raises(ValueError, match="quality must be one of"):
        stylegan.add_penalty(Three)("cpu", *nets(), qa_quality="taste")
