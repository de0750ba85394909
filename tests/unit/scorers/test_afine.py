"""The published A-FINE against a float64 port of its formulas, its file, and what a user's images meet."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch.nn import functional as F

from qa_hooks._base.files import read_safetensors, write_safetensors
from qa_hooks.scorers import AFINE, create_scorer, load_scorer
from qa_hooks.scorers.afine.checkpoint import BACKBONE, random_checkpoint
from qa_hooks.scorers.afine.heads import Adapter, Calibrated, FidelityHead, Level, Terms
from qa_hooks.scorers.afine.published import MEAN, STD

CONTENT = random_checkpoint(seed=3)


@pytest.fixture(scope="module")
def scorer():
    return AFINE(CONTENT)


def images(count=3, height=64, width=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, 3, height, width, generator=generator)
    return (x + 0.15 * torch.randn(x.shape, generator=generator)).clamp(0, 1), x


# The port: NumPy in float64, one image at a time, written from the formulas.


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def normal(x, weight, bias):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * weight + bias


def port_tokens(image, state):
    """The tokens after each block, `(n, width)`, class token left out."""
    s = {k: v.double().numpy() for k, v in state.items()}
    x = (image - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    width, _, patch, _ = s["visual.conv1.weight"].shape
    rows = []
    for top in range(0, x.shape[1], patch):
        for left in range(0, x.shape[2], patch):
            piece = x[:, top : top + patch, left : left + patch]
            rows.append((s["visual.conv1.weight"] * piece).sum((1, 2, 3)))
    x = np.concatenate([s["visual.class_embedding"][None], np.array(rows)])
    own = torch.from_numpy(s["visual.positional_embedding"])[None, None]
    x = x + F.interpolate(own, (len(x), width), mode="bicubic", align_corners=False)[0, 0].numpy()
    x = normal(x, s["visual.ln_pre.weight"], s["visual.ln_pre.bias"])
    heads, found, number = width // 64, [], 0
    while f"visual.transformer.resblocks.{number}.ln_1.weight" in s:
        p = {k.split(f"resblocks.{number}.")[1]: v for k, v in s.items() if f"resblocks.{number}." in k}
        y = normal(x, p["ln_1.weight"], p["ln_1.bias"]) @ p["attn.in_proj_weight"].T + p["attn.in_proj_bias"]
        mixed = []
        for head in range(heads):
            q, k, v = (y[:, part * width + head * 64 : part * width + (head + 1) * 64] for part in range(3))
            a = np.exp(q @ k.T / 8 - (q @ k.T / 8).max(1, keepdims=True))
            mixed.append(a / a.sum(1, keepdims=True) @ v)
        x = x + np.concatenate(mixed, 1) @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
        y = normal(x, p["ln_2.weight"], p["ln_2.bias"]) @ p["mlp.c_fc.weight"].T + p["mlp.c_fc.bias"]
        y = y / (1 + np.exp(-1.702 * y))
        x = x + y @ p["mlp.c_proj.weight"].T + p["mlp.c_proj.bias"]
        found.append(x[1:])
        number += 1
    return found


def port(test, reference, content):
    """Score, D, F, N of the image, N of the reference, log lambda."""
    size = [math.ceil(side / 32) * 32 for side in test.shape[1:]]
    stretch = lambda x: F.interpolate(x[None].double(), size, mode="bicubic", align_corners=False)[0].numpy()  # noqa: E731
    y, x = (stretch(z) if list(z.shape[1:]) != size else z.double().numpy() for z in (test, reference))
    levels = []
    for z in (y, x):
        tokens = port_tokens(z, content[BACKBONE])
        levels.append([z.reshape(3, -1).T, *(np.maximum(t, 0) for t in tokens)])
    p = {part: {k: v.double().numpy() for k, v in content[part].items()} for part in content if part != BACKBONE}

    def natural(own):
        rows = []
        for k, level in enumerate(own):
            row = np.concatenate([level.mean(0), level.var(0)])
            rows.append(row if k == 0 else p["natural"]["proj_feat.weight"] @ row + p["natural"]["proj_feat.bias"])
        h = p["natural"]["proj_head.0.weight"] @ np.concatenate(rows) + p["natural"]["proj_head.0.bias"]
        h = h * (1 + erf(h / math.sqrt(2))) / 2
        raw = float((p["natural"]["proj_head.2.weight"] @ h + p["natural"]["proj_head.2.bias"])[0])
        centre, width = (float(p["natural_scale"][k]) for k in ("yita3", "yita4"))
        return 4 / (1 + math.exp(-(raw - centre) / (abs(width) + 1e-10))) - 2

    alpha, beta = (softplus(p["fidelity"][k]).ravel() for k in ("alpha", "beta"))
    total, place, raw, c = alpha.sum() + beta.sum() + 1e-10, 0, 1.0, 1e-10
    for a, b in zip(*levels, strict=True):
        for channel in range(a.shape[1]):
            u, v = a[:, channel], b[:, channel]
            s1 = (2 * u.mean() * v.mean() + c) / (u.mean() ** 2 + v.mean() ** 2 + c)
            s2 = (2 * ((u - u.mean()) * (v - v.mean())).mean() + c) / (u.var() + v.var() + c)
            raw -= (alpha[place] * s1 + beta[place] * s2) / total
            place += 1
    centre = min(max(float(p["fidelity_scale"]["yita3"]), 0.05), 0.95)
    width = min(max(float(p["fidelity_scale"]["yita4"]), 0.01), 0.70)
    fidelity = 4 / (1 + math.exp(-(raw - centre) / (width + 1e-10))) - 2
    own, its = natural(levels[0]), natural(levels[1])
    log_lambda = float(softplus(p["adapter"]["k"])) * (its - own)
    distance = fidelity + math.exp(log_lambda) * own
    return 100 / (1 + math.exp(-(distance + 1.9710) / 2.3734)), distance, fidelity, own, its, log_lambda


@pytest.mark.parametrize("size", [(64, 96), (50, 77), (32, 32), (224, 32)])
def test_it_is_the_published_metric(scorer, size):
    test, reference = images(2, *size)
    terms, scores = scorer.terms(test, reference), scorer(test, reference=reference)
    for row in range(2):
        expected = port(test[row], reference[row], CONTENT)
        found = [scores, terms.distance, terms.fidelity, terms.naturalness, terms.reference_naturalness]
        for value, right in zip([*found, terms.log_lambda], expected, strict=True):
            assert float(value[row]) == pytest.approx(right, rel=2e-4, abs=2e-4)


def test_a_batch_is_its_images_one_by_one(scorer):
    test, reference = images(4)
    single = torch.cat([scorer(test[i : i + 1], reference=reference[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(scorer(test, reference=reference), single, rtol=1e-5, atol=1e-4)
    known = scorer.describe(reference)
    torch.testing.assert_close(scorer.against(test, known), single, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scorer.against(test[2:], known.rows(slice(2, None))), single[2:], rtol=1e-5, atol=1e-4)


def test_an_image_beside_itself(scorer):
    image = images()[1]
    terms = scorer.terms(image, image)
    levels = scorer.levels(image)
    assert float(scorer.heads.fidelity(levels, levels).abs().max()) < 1e-4
    assert torch.equal(terms.log_lambda, torch.zeros(3))
    torch.testing.assert_close(terms.distance, terms.reference_distance, rtol=1e-4, atol=1e-4)


def test_the_gradient_is_that_of_finite_differences(scorer):
    test, reference = images(1, 32, 64, seed=5)
    wide = AFINE(CONTENT)
    wide.clip.double(), wide.heads.double()
    direction = torch.randn(test.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def value(x):
        return wide._compared(x, reference.double()).distance.sum()

    x = test.double().requires_grad_()
    slope = float((torch.autograd.grad(value(x), x)[0] * direction).sum())
    step = 1e-6
    with torch.no_grad():
        measured = float(value(x + step * direction) - value(x - step * direction)) / (2 * step)
    assert slope == pytest.approx(measured, rel=1e-5)
    images_ = test.clone().requires_grad_()
    scorer(images_, reference=reference).sum().backward()
    assert bool(images_.grad.isfinite().all())
    assert float(images_.grad.abs().max()) > 0


def test_flat_grey_and_byte_images_are_finite(scorer):
    flat = torch.full((2, 3, 40, 40), 0.5, requires_grad=True)
    scores = scorer(flat, reference=torch.full((2, 3, 40, 40), 0.25))
    scores.sum().backward()
    assert bool(scores.isfinite().all())
    assert bool(flat.grad.isfinite().all())
    test, reference = images()
    grey = test.mean(1, keepdim=True)
    torch.testing.assert_close(
        scorer(grey, reference=reference.mean(1, keepdim=True)),
        scorer(grey.expand(-1, 3, -1, -1), reference=reference.mean(1, keepdim=True).expand(-1, 3, -1, -1)),
    )
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        scorer(torch.rand(1, 4, 32, 32), reference=torch.rand(1, 4, 32, 32))


def test_the_input_is_not_changed_and_a_range_is_only_a_range(scorer):
    test, reference = images()
    before = test.clone(), reference.clone()
    expected = scorer(test, reference=reference)
    assert torch.equal(test, before[0])
    assert torch.equal(reference, before[1])
    other = AFINE(CONTENT, value_range=(-1, 1))
    torch.testing.assert_close(other(2 * test - 1, reference=2 * reference - 1), expected, rtol=1e-4, atol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(scorer(test, reference=reference), expected)


def test_what_is_no_image_is_refused_by_terms_and_describe(scorer):
    test, reference = images()
    for call, match in (
        (lambda: scorer.terms(test, reference[:1]), "must have the same shape"),
        (lambda: scorer.terms(test, scorer.describe(reference[:1])), "3 images need as many references, got 1"),
        (lambda: scorer.terms(test, reference[..., :32]), "must have the same shape"),
        (lambda: scorer.describe("reference.png"), "images must be a tensor"),
        (lambda: scorer.terms(None, reference), "images"),
        (lambda: AFINE(CONTENT).describe(reference * float("nan")), "reference"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            call()


def test_descriptions_of_another_size_or_scorer_are_refused(scorer):
    test, reference = images()
    described = scorer.describe(reference)
    with pytest.raises(ValueError, match=r"same shape, got \(3, 64, 80\) and described references \(3, 64, 96\)"):
        scorer.against(test[..., :80], described)
    with pytest.raises(ValueError, match="same shape"):
        scorer.against(test[..., :95], described)  # which is padded to the same size
    with pytest.raises(ValueError, match="described by another scorer"):
        AFINE(random_checkpoint(seed=4)).against(test, described)
    same = AFINE(CONTENT, part="fidelity").against(test, described)  # the same networks, made a second time
    torch.testing.assert_close(same, scorer.terms(test, reference).fidelity)
    torch.testing.assert_close(copy.deepcopy(scorer).against(test, described), scorer(test, reference=reference))


def test_made_in_inference_mode_it_still_has_a_gradient():
    with torch.inference_mode():
        made = AFINE(random_checkpoint())
    test, reference = images(1)
    test.requires_grad_()
    made(test, reference=reference).sum().backward()
    assert float(test.grad.abs().max()) > 0


def test_parts_are_scorers_of_their_own(scorer):
    test, reference = images()
    terms = scorer.terms(test, reference)
    for part in ("distance", "fidelity", "log_lambda", "better_than_reference"):
        own = create_scorer({"type": "afine", "weights": CONTENT, "part": part})
        torch.testing.assert_close(own(test, reference=reference), getattr(terms, part))
        assert own.name == f"afine_{part}"
    natural = AFINE(CONTENT, part="naturalness")
    torch.testing.assert_close(natural(test), terms.naturalness)
    assert not natural.inputs
    with pytest.raises(ValueError, match="part must be one of score, distance"):
        AFINE(CONTENT, part="lambda")


def test_share_of_images_that_beat_their_reference():
    zeros = torch.zeros(2)
    terms = Terms(zeros - 1.5, torch.tensor([-1.0, 1.0]), zeros, torch.tensor([3.0, 0.0]), zeros - 1.9)
    assert terms.better_than_reference.tolist() == [1.0, 0.0]


def test_calibrations_at_both_ends_and_within_their_limits():
    far = torch.tensor([-1e6, -1e3, 0.5, 1e3, 1e6])
    h = Calibrated(0.5, 0.15, limits=((0.05, 0.95), (0.01, 0.70)))
    assert h(far).tolist() == pytest.approx([-2, -2, 0, 2, 2])
    h.yita3.data.fill_(7.0), h.yita4.data.fill_(-3.0)
    assert h(torch.tensor(0.96)).item() == pytest.approx(4 / (1 + math.exp(-1.0)) - 2, rel=1e-4)
    assert bool(Adapter(5.0).log_lambda(torch.tensor(2.0), torch.tensor(-2.0)).exp().isfinite())


def test_levels_that_are_flat_have_slopes_but_no_nan():
    x = torch.full((1, 4, 9), 0.3, requires_grad=True)
    value = FidelityHead((4,))([Level.of(torch.zeros(1, 4, 9))], [Level.of(x)])
    value.sum().backward()
    assert bool(value.isfinite().all() & x.grad.isfinite().all())
    assert Level.of(torch.ones(1, 2, 3, dtype=torch.float16)).mean.dtype == torch.float32


class TestFile:
    def test_a_checkpoint_and_the_file_made_of_it_are_the_same_scorer(self, scorer, tmp_path):
        test, reference = images()
        expected = scorer(test, reference=reference)
        extras = {
            "visual.proj": torch.ones(64, 8),
            "visual.ln_post.weight": torch.ones(64),
            "logit_scale": torch.ones(()),
        }
        full = {**CONTENT, BACKBONE: {**CONTENT[BACKBONE], **extras}}
        full["fidelity"] = {**CONTENT["fidelity"], "mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
        torch.save(full, tmp_path / "afine.pth")
        read = create_scorer({"type": "afine", "weights": str(tmp_path / "afine.pth")})
        assert torch.equal(read(test, reference=reference), expected)
        read.save(tmp_path / "afine.safetensors")
        for again in (load_scorer(tmp_path / "afine.safetensors"), AFINE(tmp_path / "afine.safetensors")):
            assert torch.equal(again(test, reference=reference), expected)
            assert again.fingerprint == scorer.fingerprint

    def test_it_is_found_in_torch_hubs_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        with pytest.raises(ValueError, match=r"get afine\.pth .* put it into .*checkpoints, or name it"):
            create_scorer("afine")
        (tmp_path / "checkpoints").mkdir()
        torch.save(CONTENT, tmp_path / "checkpoints" / "afine.pth")
        assert create_scorer("afine").name == "afine"

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda c: c.pop("adapter"), "lacks adapter"),
            (lambda c: c["natural"].pop("proj_feat.bias"), "proj_feat.bias"),
            (lambda c: c["natural"].update(extra=torch.zeros(1)), "natural.extra"),
            (lambda c: c["adapter"].update(k=torch.tensor(float("nan"))), "adapter.k is no tensor of finite"),
            (lambda c: c["fidelity"].update(alpha=torch.ones(1, 1, 5)), "fidelity.alpha"),
            (lambda c: c["fidelity"].update(alpha="ones"), "fidelity.alpha is no tensor"),
            (lambda c: c[BACKBONE].pop("visual.conv1.weight"), "conv1"),
            (lambda c: c.update({BACKBONE: {}}), "conv1"),
            (lambda c: c[BACKBONE].update({"visual.conv1.weight": torch.ones(60, 3, 32, 32)}), "multiple of 64"),
        ],
    )
    def test_what_is_no_checkpoint_is_refused_by_name(self, tmp_path, change, match):
        content = {part: dict(state) for part, state in CONTENT.items()}
        change(content)
        torch.save(content, tmp_path / "broken.pth")
        with pytest.raises(ValueError, match=rf"(?s)broken\.pth is no checkpoint of A-FINE: .*{match}"):
            AFINE(tmp_path / "broken.pth")

    def test_nothing_is_unpickled(self, tmp_path):
        torch.save({"finetuned_clip": np.random.default_rng}, tmp_path / "evil.pth")
        with pytest.raises(ValueError, match="is not a readable state dict"):
            AFINE(tmp_path / "evil.pth")
        with pytest.raises(ValueError, match="does not exist"):
            AFINE(tmp_path / "none.pth")

    def test_a_changed_file_of_ours_is_refused(self, scorer, tmp_path):
        scorer.save(tmp_path / "a.safetensors")
        tensors, metadata = read_safetensors(tmp_path / "a.safetensors", "")
        assert json.loads(metadata["scorer"])["class"] == "AFINE"
        tensors.pop("adapter.k")
        write_safetensors(tmp_path / "b.safetensors", tensors, metadata)
        with pytest.raises(ValueError, match="lacks adapter"):
            load_scorer(tmp_path / "b.safetensors")


@pytest.mark.slow
def test_the_full_shape():
    content = random_checkpoint(width=768, depth=12, hidden=128)
    assert content["fidelity"]["alpha"].numel() == 9219
    assert content["natural"]["proj_head.0.weight"].shape == (768, 1542)
    scorer, (test, reference) = AFINE(content), images(1, 96, 64)
    expected = port(test[0], reference[0], content)
    assert float(scorer(test, reference=reference)) == pytest.approx(expected[0], rel=1e-3)
