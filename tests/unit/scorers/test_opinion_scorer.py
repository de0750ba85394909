"""The head and the scorer of opinions: the optimum, contents that are left out, files, gradients."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from qa_hooks.scorers import OpinionScorer, load_scorer
from qa_hooks.scorers.opinions import head as head_module
from qa_hooks.scorers.opinions.head import fit_head
from qa_hooks.scorers.opinions.targets import LEAST_SPREAD, PairTargets, RatingTargets

EXTRACTOR = {"type": "random", "width": 4}
DIM = 56


def rows(count: int, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(count: int = 60, **options) -> OpinionScorer:
    scorer = OpinionScorer(EXTRACTOR, **options)
    features = rows(count).float()
    return scorer.fit(features, RatingTargets(features[:, 0].double()), [row // 2 for row in range(count)])


@pytest.mark.parametrize(("count", "dim"), [(40, 5), (12, 30)])  # more rows than weights, and fewer
def test_the_head_is_the_ridge_regression_of_the_bounded_features(monkeypatch, count, dim):
    """With one penalty the squared error has a closed form, which numpy solves."""
    monkeypatch.setattr(head_module, "PENALTIES", (1e-2,))
    x, y = rows(count, dim), rows(count, 1, seed=1)[:, 0] * 3 + 7
    found = head_module._fitted(x, RatingTargets(y), [1e-2])[1e-2]
    z = np.tanh((x.numpy() - x.numpy().mean(0)) / (2 * x.numpy().std(0)))
    z = np.concatenate([z, 2 * (z**2 - (z**2).mean(0))], 1)
    centred, unit = z - z.mean(0), y.numpy().std()
    gram = centred.T @ centred / count / unit**2 + 1e-2 * z.shape[1] / unit**2 * np.eye(z.shape[1])
    w = np.linalg.solve(gram, centred.T @ (y.numpy() - y.numpy().mean()) / count / unit**2)
    wanted = (z - z.mean(0)) @ w + y.numpy().mean()
    np.testing.assert_allclose(found(x)[:, 0].numpy(), wanted, atol=1e-4)


def test_the_head_of_pairs_is_the_optimum_that_scipy_finds():
    x, generator = rows(20, 3), np.random.default_rng(0)
    first, second = torch.from_numpy(generator.integers(0, 20, (2, 60)))
    better = torch.from_numpy(generator.choice([0.0, 0.5, 1.0], 60))
    targets = PairTargets(20, first, second, better)
    found = head_module._fitted(x, targets, [1e-2])[1e-2]
    z = found.bounded(x)

    def objective(w):
        with torch.no_grad():
            return float(targets.losses(z @ torch.from_numpy(w)[:, None]).mean() + 1e-2 * 6 * float((w**2).sum()))

    best = minimize(
        objective, np.zeros(6), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 20_000}
    )
    assert objective(found.weights[0].numpy()) <= best.fun + 1e-7


def test_noise_is_given_a_strong_penalty_and_a_signal_a_weak_one():
    x, noise = rows(120, 30), rows(120, 1, seed=5)[:, 0]
    contents = list(range(120))
    _, strong = fit_head(x, RatingTargets(noise), contents)
    head, weak = fit_head(x, RatingTargets(x[:, 3] + 0.01 * noise), contents)
    assert strong > 100 * weak
    fresh = rows(200, 30, seed=9)
    assert np.corrcoef(head(fresh)[:, 0], fresh[:, 3])[0, 1] > 0.9


def test_contents_are_left_out_whole(monkeypatch):
    seen = []
    original = head_module._fitted

    def watched(features, targets, penalties):
        seen.append({int(value) for value in features[:, 0].round()})
        return original(features, targets, penalties)

    monkeypatch.setattr(head_module, "_fitted", watched)
    x = rows(40, 4)
    x[:, 0] = torch.arange(40) // 4  # the content itself
    fit_head(x, RatingTargets(rows(40, 1, seed=2)[:, 0]), [row // 4 for row in range(40)])
    assert len(seen) == 6
    assert seen[-1] == set(range(10))
    assert all(len(contents) == 8 for contents in seen[:-1])
    left = [set(range(10)) - contents for contents in seen[:-1]]
    assert set().union(*left) == set(range(10))
    assert sum(map(len, left)) == 10


def test_gain_makes_pairs_honest():
    """Opinions drawn from Thurstone's model: the fitted differences say how probable they are."""
    x, generator = rows(300, 4), torch.Generator().manual_seed(1)
    truth = 1.5 * torch.tanh(x[:, 0] / 2)
    first, second = torch.randint(300, (2, 4000), generator=generator)
    noise = torch.randn(2, 4000, generator=generator, dtype=torch.float64)
    better = (truth[first] + noise[0] > truth[second] + noise[1]).double()
    head, _ = fit_head(x, PairTargets(300, first, second, better), list(range(300)))
    gaps = (head(x)[first] - head(x)[second])[:, 0]
    slope = float((gaps * (truth[first] - truth[second])).sum() / gaps.square().sum())
    assert 0.8 < slope < 1.25


def test_spreads_are_learned_where_they_are_known():
    x = rows(400, 6)
    spread = torch.exp(0.5 * torch.tanh(x[:, 1]))
    scorer = OpinionScorer(EXTRACTOR)
    features = torch.cat([x, torch.zeros(400, DIM - 6, dtype=torch.float64)], 1)
    scorer.fit(features.float(), RatingTargets(x[:, 0], spread), list(range(400)))
    found = scorer._head(features.float())[:, 1].exp()
    assert np.corrcoef(found, spread)[0, 1] > 0.8
    assert scorer.spread(torch.rand(2, 3, 16, 16)).shape == (2,)
    assert bool((scorer.spread(torch.rand(2, 3, 16, 16)) > 0).all())
    with pytest.raises(ValueError, match="without people's spreads"):
        fitted().spread(torch.rand(2, 3, 16, 16))


def test_spreads_of_zero_do_not_break_the_fit():
    x = rows(60, 4)
    head, _ = fit_head(x, RatingTargets(x[:, 0], torch.zeros(60, dtype=torch.float64)), list(range(60)))
    assert bool(torch.cat([part.flatten() for part in head]).isfinite().all())
    assert float(head(x)[:, 1].exp().median()) < 1
    assert LEAST_SPREAD > 0


def test_a_feature_that_never_varies_says_nothing():
    x = rows(40, 4)
    x[:, 2] = 5.0
    head, _ = fit_head(x, RatingTargets(x[:, 0]), list(range(40)))
    other = x.clone()
    other[:, 2] = 1e6
    torch.testing.assert_close(head(other), head(x))


def test_an_image_unlike_all_cannot_score_without_end():
    head, _ = fit_head(rows(60, 8), RatingTargets(rows(60, 8)[:, 0]), list(range(60)))
    bound = float(head.weights.abs().sum() * 2 + head.bias.abs())
    assert float(head(1e9 * rows(20, 8, seed=4)).abs().max()) <= bound


@pytest.mark.parametrize("higher", [True, False])
def test_a_file_gives_the_same_scores_and_facts(tmp_path, higher):
    facts = {
        "kind": "ratings",
        "images": 60,
        "held_out": {"srcc": {"value": 0.5, "low": 0.1, "high": 0.8, "n": 9, "clusters": 5}},
    }
    scorer = fitted(higher_is_better=higher, scale="stars", facts=facts)
    scorer.fit_calibration(torch.arange(20.0))
    scorer.save(tmp_path / "mine.safetensors")
    loaded = load_scorer(tmp_path / "mine.safetensors")
    images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded(images), scorer(images), rtol=0, atol=0)
    assert loaded.facts == scorer.facts
    assert loaded.scale == "stars"
    assert loaded.higher_is_better is higher
    assert "srcc 0.500 [0.100, 0.800]" in repr(loaded)
    assert loaded.fingerprint == scorer.fingerprint
    assert loaded.calibrated()(images).shape == (3,)


def test_gradients_reach_the_images_and_are_right():
    scorer = fitted()
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scorer(images).sum().backward()
    step = images.grad.sign() * 1e-3
    with torch.no_grad():
        ends = (images + step).clamp(0, 1), (images - step).clamp(0, 1)
        change = float(scorer(ends[0]) - scorer(ends[1]))
        slope = float((images.grad * (ends[0] - ends[1])).sum())
    assert change == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"facts": {"virus": 1}}, "facts may hold"),
        ({"facts": {"held_out": {"srcc": 0.9}}}, "held_out must have the numbers"),
        ({"facts": {"held_out": {"magic": {"value": 1}}}}, "held_out must have the numbers"),
        ({"facts": {"held_out": [1]}}, "held_out must be a dictionary"),
        ({"facts": {"images": "many"}}, "images must be a whole number"),
        ({"higher_is_better": "yes"}, "higher_is_better"),
    ],
)
def test_broken_options_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        OpinionScorer(EXTRACTOR, **change)


def test_broken_files_are_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "mine.safetensors"
    fitted().save(path)
    with safe_open(path, "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in {"weights": tensors["weights"][:, :-1], "bias": tensors["bias"] * float("nan")}.items():
        save_file({**tensors, name: tensor.contiguous()}, path, header)
        with pytest.raises(ValueError, match=f"{name}.* finite"):
            load_scorer(path)
    broken = json.loads(header["scorer"])
    broken["options"]["facts"] = ["srcc"]
    save_file(tensors, path, {**header, "scorer": json.dumps(broken)})
    with pytest.raises(ValueError, match="does not fit OpinionScorer"):
        load_scorer(path)


def test_what_is_not_fitted_says_how():
    with pytest.raises(ValueError, match="fit_mos"):
        OpinionScorer(EXTRACTOR)(torch.rand(1, 3, 16, 16))
    with pytest.raises(ValueError, match="contents has 3 values for 4 images"):
        OpinionScorer(EXTRACTOR).fit(torch.rand(4, DIM), RatingTargets(torch.rand(4).double()), [0, 1, 2])
