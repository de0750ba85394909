"""An A-FINE of one's own: its comparisons, its loss, its stages, and what it learns of pictures it has not seen."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from qa_hooks._base.files import read_safetensors, write_safetensors
from qa_hooks.features import FeatureExtractor
from qa_hooks.functional.degradations import dead_leaves
from qa_hooks.scorers import Comparisons, FittedAFINE, create_scorer, ladder_comparisons, load_scorer
from qa_hooks.scorers.afine.heads import FidelityHead, Level
from qa_hooks.scorers.afine.looking import look
from qa_hooks.scorers.afine.stages import Distances, MomentsHead, distances, fidelity_loss, held_out_agreement

TINY = {"type": "random", "width": 4}
FEW = pytest.mark.filterwarnings("ignore:.*has .* images to learn from:UserWarning")


@pytest.fixture(scope="module")
def photographs():
    pictures = dead_leaves(10, 40, generator=torch.Generator().manual_seed(0), leaves=150)
    return (pictures * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def ladders(photographs):
    return ladder_comparisons(list(photographs))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("statistics")


@pytest.fixture(scope="module")
def fitted(ladders, cache):
    quick = {"steps": 150, "batch_size": 48, "warn_below": 0.0, "progress": False}
    return FittedAFINE(TINY).fit_comparisons(ladders, cache=cache, **quick)


class TestComparisons:
    def test_ladders_know_their_order(self, photographs):
        found = ladder_comparisons(list(photographs[:2]), kind="both")
        assert len(found.pictures) == 2 * 25
        assert len(found.test) == 2 * 6 * 5 * 5
        assert len(found.pairs) == 2 * 6 * 5 * 10
        originals = {0, 25}
        for (a, b), better in zip(found.pairs.tolist(), found.better.tolist(), strict=True):
            first, second = (int(found.test[item]) for item in ((a, b) if better else (b, a)))
            assert first in originals or (second not in originals and second > first)
        for item, beats in enumerate(found.beats_reference.tolist()):
            test, reference = int(found.test[item]), int(found.reference[item])
            assert beats == (
                test != reference and (test in originals or test < reference) and reference not in originals
            )
        assert 0.3 < float(found.better.mean()) < 0.7  # the place in the pair teaches nothing

    def test_kinds_are_parts_of_both(self, photographs):
        worse, better = (ladder_comparisons(list(photographs[:1]), kind=kind) for kind in ("worse", "better"))
        assert not bool(worse.beats_reference.any())
        others = better.test != better.reference
        assert bool(better.beats_reference[others].all())
        with pytest.raises(ValueError, match="kind must be one of worse, better, both"):
            ladder_comparisons(list(photographs[:1]), kind="all")
        with pytest.raises(ValueError, match="no photographs"):
            ladder_comparisons([])

    def test_no_content_is_on_both_sides(self, ladders):
        held, rest = ladders.split(0.2, 0)
        assert not set(held.pair_content) & set(rest.pair_content)
        assert len(set(held.pair_content)) == 2
        assert [len(set(part.pair_content)) for part in held.split(0.5, 0)] == [1, 1]  # two contents are enough
        with pytest.raises(ValueError, match="at least two contents"):
            held.with_pairs(torch.arange(3)).split(0.5, 0)

    def test_what_makes_no_sense_is_refused(self):
        picture, zero = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
        good = {"pictures": [picture], "test": zero, "reference": zero, "content": ["a", "a"]}
        good |= {"pairs": torch.tensor([[0, 1]]), "better": torch.ones(1)}
        Comparisons(**good)
        for change, match in (
            ({"pairs": torch.tensor([[0, 2]])}, "items from 0 to 1"),
            ({"pairs": torch.zeros(0, 2, dtype=torch.int64), "better": torch.zeros(0)}, "pairs must be"),
            ({"better": torch.tensor([2.0])}, "between 0 and 1"),
            ({"test": torch.tensor([0, 1])}, "pictures from 0 to 0"),
            ({"content": ["a"]}, "as many references and contents"),
            ({"pictures": [picture, picture], "reference": torch.tensor([0, 1])}, "items of one reference"),
        ):
            with pytest.raises(ValueError, match=match):
                Comparisons(**{**good, **change})


class TestLoss:
    def test_it_is_the_published_one_where_that_has_digits(self):
        a, b = torch.randn(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
        p = torch.tensor([0.0, 0.5, 1.0, 1.0]).repeat(50).double()
        q = norm.cdf((b - a).numpy() / math.sqrt(2))
        expected = 1 - np.sqrt(p.numpy() * q) - np.sqrt((1 - p.numpy()) * (1 - q))
        np.testing.assert_allclose(fidelity_loss(a, b, p).numpy(), expected, atol=1e-12)

    def test_a_pair_in_the_wrong_order_still_teaches_where_phi_is_zero(self):
        a = torch.tensor([9.0], requires_grad=True)
        (slope,) = torch.autograd.grad(fidelity_loss(a, torch.tensor([-5.0]), torch.ones(1)).sum(), a)
        assert float(slope) > 0
        q = 0.5 * (1 + torch.erf((torch.tensor([-5.0]) - a) / 2))  # as the public trainer computes it
        (lost,) = torch.autograd.grad((1 - (q + 1e-8).sqrt()).sum(), a)
        assert float(lost) < 1e-3 * float(slope)

    def test_finite_at_any_distance(self):
        for gap in (1e4, -1e4):
            a = torch.tensor([gap], requires_grad=True)
            fidelity_loss(a, torch.zeros(1), torch.tensor([0.5])).sum().backward()
            assert bool(a.grad.isfinite().all())


class TestStatistics:
    def test_heads_on_statistics_are_the_heads_on_images(self, fitted, ladders, cache):
        seen = look(fitted.extractor, ladders, cache=cache, progress=False)
        found = distances(fitted.heads, seen, ladders)
        for item in (0, 7, 33, len(ladders.test) - 1):
            x, y = (ladders.pictures[int(p[item])][None].float() / 255 for p in (ladders.reference, ladders.test))
            terms = fitted.terms(y, x)
            assert float(terms.distance) == pytest.approx(float(found.distance[item]), rel=1e-3, abs=1e-3)
            assert float(terms.fidelity) == pytest.approx(float(found.fidelity[item]), rel=1e-3, abs=1e-3)
        torch.testing.assert_close(fitted.judge(ladders, cache=cache, progress=False), found.distance)

    def test_what_was_kept_is_not_taken_again(self, ladders, tmp_path, monkeypatch):
        few = ladders.with_pairs(torch.arange(40))
        extractor = FittedAFINE(TINY).extractor
        calls, own = [], type(extractor).stages
        monkeypatch.setattr(type(extractor), "stages", lambda self, x: calls.append(1) or own(self, x))
        first = look(extractor, few, cache=tmp_path, progress=False)
        for path in sorted(tmp_path.glob("*.safetensors"))[::2]:  # a run that was cut off
            path.unlink()
        before = len(calls)
        second = look(extractor, few, cache=tmp_path, progress=False)
        assert torch.equal(first.moments, second.moments)
        assert torch.equal(first.similar, second.similar)
        assert 0 < len(calls) - before < before
        before = len(calls)
        look(extractor, few, cache=tmp_path, progress=False)
        assert len(calls) == before

    def test_sizes_that_differ_are_named(self, tmp_path):
        pictures = [torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(3, 16, 20, dtype=torch.uint8)]
        rows = torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([[0, 1]])
        items = Comparisons(pictures, *rows, torch.ones(1), ["a", "a"])
        with pytest.raises(ValueError, match="bring them to one size"):
            look(FittedAFINE(TINY).extractor, items, progress=False)

    def test_normalised_heads(self):
        head, rows = MomentsHead((2, 3)), torch.rand(50, 10)
        head.standardise(rows)
        with torch.no_grad():
            before = head.from_moments(rows)
            head.normalise(before)
            after = head.from_moments(rows)
        assert float(after.mean()) == pytest.approx(0, abs=1e-4)
        assert float(after.std()) == pytest.approx(1, rel=1e-3)
        assert float(torch.corrcoef(torch.stack([before, after]))[0, 1]) == pytest.approx(1, abs=1e-4)

    def test_agreement_by_hand_with_ties_apart(self):
        item = torch.arange(4)
        pairs = torch.tensor([[0, 1], [2, 3], [1, 0], [0, 2]])
        items = Comparisons(
            [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4,
            item,
            0 * item,
            pairs,
            torch.tensor([1, 1, 0, 0.5]),
            list("aaaa"),
        )
        found = Distances(item, item, torch.tensor([1.0, 2.0, 3.0, 3.0]))
        said = held_out_agreement(found, items)
        assert said["accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
        assert (said["pairs"], said["ties"]) == (3, 1)
        assert math.isnan(said["low"])


class TestScorer:
    def test_it_has_learned_that_a_reference_can_be_beaten(self, fitted):
        others = (dead_leaves(4, 40, generator=torch.Generator().manual_seed(9), leaves=150) * 255).to(torch.uint8)
        items = ladder_comparisons(list(others))
        found = fitted.judge(items, progress=False)
        gap = (found[items.pairs[:, 1]] - found[items.pairs[:, 0]]).sign()
        right = 0.5 + 0.5 * gap * (2 * items.better - 1)
        beating = items.beats_reference[items.pairs].any(1)
        assert float(right[~beating].mean()) > 0.75
        assert float(right[beating].mean()) > 0.6  # a metric that trusts its reference is far below a half
        assert set(fitted.held_out) >= {"accuracy", "pairs", "contents", "ties"}

    def test_a_file_gives_the_same_scores_and_says_how_good_it_is(self, fitted, tmp_path):
        fitted.save(tmp_path / "a.safetensors")
        again = load_scorer(tmp_path / "a.safetensors")
        x, y = torch.rand(2, 3, 3, 40, 48)
        assert torch.equal(again(y, reference=x), fitted(y, reference=x))
        assert again.held_out == fitted.held_out
        assert again.fingerprint == fitted.fingerprint
        assert (again.name, again.higher_is_better) == ("afine_random4-0", False)
        torch.testing.assert_close(again.against(y, again.describe(x)), fitted(y, reference=x))
        with pytest.raises(ValueError, match="other weights or preprocessing"):
            load_scorer(tmp_path / "a.safetensors", extractor={"type": "random", "width": 5})

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda h, t: h["options"].update(widths=[3, 10**9]), ""),
            (lambda h, t: h["options"].update(widths="ab"), ""),
            (lambda h, t: h["options"].update(held_out={"accuracy": float("nan")}), "held_out"),
            (lambda h, t: h["options"].update(held_out={"praise": 1.0}), "held_out"),
            (lambda h, t: t.pop("adapter.k"), "adapter.k"),
            (lambda h, t: t["natural.scale"].fill_(float("inf")), "natural.scale"),
        ],
    )
    def test_a_broken_file_is_refused_by_name(self, fitted, tmp_path, change, match):
        fitted.save(tmp_path / "a.safetensors")
        tensors, metadata = read_safetensors(tmp_path / "a.safetensors", "")
        header = json.loads(metadata["scorer"])
        change(header, tensors)
        write_safetensors(tmp_path / "b.safetensors", tensors, {**metadata, "scorer": json.dumps(header)})
        with pytest.raises(ValueError, match=rf"(?s)b\.safetensors.*{match}"):
            load_scorer(tmp_path / "b.safetensors")

    @FEW
    def test_from_photographs_by_create_scorer(self, photographs, tmp_path):
        spec = {"type": "afine-fitted", "steps": 3, "crop": 32, "warn_below": 0.0, "progress": False}
        scorer = create_scorer(spec, fit=photographs[:4], extractor=TINY, cache=tmp_path)
        again = create_scorer(spec, fit=photographs[:4], extractor=TINY, cache=tmp_path)
        assert scorer.fingerprint == again.fingerprint
        with pytest.raises(ValueError, match="afine-fitted needs extractor="):
            create_scorer(spec, fit=photographs[:4])

    def test_seeds_decide_and_the_users_random_state_is_left_alone(self, ladders, cache):
        quick = {"steps": 4, "warn_below": 0.0, "progress": False, "cache": cache}
        state = torch.get_rng_state()
        prints = [FittedAFINE(TINY, seed=seed).fit_comparisons(ladders, **quick).fingerprint for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_cannot_work_says_so(self, ladders, cache):
        one = FeatureExtractor(torch.nn.Conv2d(3, 4, 3), name="mine")
        with pytest.raises(ValueError, match="mine gives one vector and no stages"):
            FittedAFINE(one)
        scorer = FittedAFINE(TINY)
        with pytest.raises(ValueError, match="not fitted"):
            scorer(torch.rand(1, 3, 32, 32), reference=torch.rand(1, 3, 32, 32))
        with pytest.warns(UserWarning, match=r"of the held-out pairs in the right order \(1.1 is wanted\)"):
            scorer.fit_comparisons(ladders, steps=2, cache=cache, progress=False, warn_below=1.1)
        for wrong in ({"steps": 0}, {"batch_size": 1}, {"held_out": 1.0}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                scorer.fit_comparisons(ladders, **wrong)

    def test_without_pairs_for_the_fidelity_part_it_says_so(self, photographs, cache):
        better = ladder_comparisons(list(photographs[:3]), kind="better")
        with pytest.warns(UserWarning, match="fidelity part stays untrained"):
            FittedAFINE(TINY).fit_comparisons(better, steps=2, warn_below=0.0, progress=False)


def test_similarities_of_a_family_are_those_of_a_loop():
    x, y = torch.rand(2, 1, 3, 20, generator=torch.Generator().manual_seed(0)).double()
    head = FidelityHead((3,)).double()
    weights = torch.nn.functional.softplus(torch.cat([head.alpha, head.beta], 2).flatten()).detach()
    total, raw = float(weights.sum()), 1.0
    for k in range(3):
        u, v = x[0, k].numpy(), y[0, k].numpy()
        s1 = (2 * u.mean() * v.mean() + 1e-10) / (u.mean() ** 2 + v.mean() ** 2 + 1e-10)
        s2 = (2 * np.cov(u, v, bias=True)[0, 1] + 1e-10) / (u.var() + v.var() + 1e-10)
        raw -= (float(weights[k]) * s1 + float(weights[3 + k]) * s2) / total
    assert head([Level.of(x)], [Level.of(y)]).item() == pytest.approx(raw, rel=1e-6)
