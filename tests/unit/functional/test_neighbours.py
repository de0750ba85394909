from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from qa_hooks.functional import nearest_neighbours, neighbours, precision_recall
from qa_hooks.functional import precision_recall as pr
from qa_hooks.functional.neighbours import prepare_bank


def distance_matrix(a, b, metric="euclidean"):
    """Differences in float64, one pair at a time."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if metric == "l1":
        return np.stack([np.abs(row - b).sum(1) for row in a])
    return np.stack([np.sqrt(((row - b) ** 2).sum(1)) for row in a])


def naive(queries, bank, k, metric="euclidean", exclude_self=False):
    distances = distance_matrix(queries, bank, metric)
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, indices, 1), indices


def check(queries, bank, k, **options):
    found = nearest_neighbours(queries, bank, k, **options)
    distances, indices = naive(queries, bank, k, **options)
    assert np.allclose(found.distances.double(), distances, rtol=1e-6, atol=0)
    assert (found.indices.numpy() == indices).all()


class TestNearestNeighbours:
    @pytest.mark.parametrize("metric", ["euclidean", "l1"])
    @pytest.mark.parametrize("k", [1, 3, 40, 60])
    def test_equal_to_the_plain_loop(self, k, metric):
        check(torch.randn(23, 7), torch.randn(60, 7), k, metric=metric)

    @pytest.mark.parametrize("metric", ["euclidean", "l1"])
    @pytest.mark.parametrize("k", [1, 5, 59])
    def test_leave_one_out(self, k, metric):
        bank = torch.randn(60, 7)
        bank[7] = bank[30]  # a duplicate is a neighbour, the row itself is not
        check(bank, bank, k, metric=metric, exclude_self=True)
        assert nearest_neighbours(bank, bank, 1, exclude_self=True).indices[7].item() == 30

    @pytest.mark.parametrize("metric", ["euclidean", "l1"])
    def test_chunks_give_the_same(self, metric, monkeypatch):
        queries, bank = torch.randn(23, 7), torch.randn(60, 7)
        monkeypatch.setattr(neighbours, "CHUNK", 40)
        monkeypatch.setattr(neighbours, "ROWS", 5)
        check(queries, bank, 3, metric=metric)
        check(bank, bank, 3, metric=metric, exclude_self=True)

    @pytest.mark.parametrize("k", [1, 5, 59])
    def test_a_bank_in_itself_by_blocks(self, k, monkeypatch):
        monkeypatch.setattr(neighbours, "ROWS", 16)
        bank = torch.randn(60, 7)
        bank[7] = bank[50]
        check(bank, bank, k, exclude_self=True)

    def test_scikit_learn_agrees_on_digits(self, digits):
        from sklearn.neighbors import NearestNeighbors

        rows = digits.flatten(1)
        bank, queries = rows[:1000], rows[1000:]
        peer = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(bank.double())
        found = nearest_neighbours(queries, bank, 5)  # equally near ones make the indices ambiguous
        assert np.allclose(found.distances, peer.kneighbors(queries.double())[0], rtol=1e-6)
        recomputed = (queries[:, None] - bank[found.indices]).double().norm(dim=2)
        assert torch.allclose(found.distances.double(), recomputed, rtol=1e-6)

    @pytest.mark.parametrize("offset", [0.0, 100.0, 10000.0])
    def test_near_duplicates_far_from_the_origin(self, offset):
        """|q|^2 - 2qb + |b|^2 alone would find anything here: its rounding is larger than these distances."""
        bank = torch.randn(200, 64) + offset
        queries = bank[50:60].clone()
        queries[:, 3] = torch.nextafter(queries[:, 3], torch.tensor(torch.inf))
        check(queries, bank, 1)
        check(queries, bank, 3)

    @pytest.mark.parametrize("metric", ["euclidean", "l1"])
    def test_a_tight_cluster_far_from_the_rest(self, metric):
        """More near-duplicates than spare candidates, all closer together than the product's rounding."""
        cluster = 30 + 1e-4 * torch.randn(40, 32)
        bank = torch.cat([torch.randn(100, 32), cluster])
        plain = (bank[:, None] - bank[None]).square().sum(2)
        assert plain[100:, 100:].max() < 1e-6 * bank.square().sum(1).max()
        check(cluster[:10] + 1e-5, bank, 3, metric=metric)
        check(bank, bank, 3, metric=metric, exclude_self=True)

    def test_the_users_autocast_does_not_reach_the_products(self):
        queries, bank = torch.randn(200, 64), torch.randn(3000, 64)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = (queries @ bank.T).float()
            check(queries, bank, 3)
        assert (rounded - queries @ bank.T).abs().max() > 0.01

    @pytest.mark.parametrize("switch", ["high", "medium", "tf32"])
    def test_the_users_precision_of_products_changes_nothing(self, switch):
        queries, bank = torch.randn(23, 7), torch.randn(60, 7)
        before = torch.get_float32_matmul_precision()
        newer = hasattr(torch.backends.mkldnn, "matmul")
        try:
            if switch == "tf32" and newer:
                torch.backends.cuda.matmul.fp32_precision = "tf32"
            elif switch != "tf32":
                torch.set_float32_matmul_precision(switch)
            check(queries, bank, 3)
        finally:
            if newer:
                torch.backends.cuda.matmul.fp32_precision = "none"
            torch.set_float32_matmul_precision(before)

    def test_a_bank_of_equal_rows(self):
        bank = torch.ones(5000, 16)
        found = nearest_neighbours(bank, bank, 3, exclude_self=True)
        assert found.distances.abs().max() == 0
        assert (found.indices != torch.arange(5000)[:, None]).all()

    @pytest.mark.parametrize("metric", ["euclidean", "l1"])
    def test_gradient(self, metric):
        bank = prepare_bank(torch.randn(20, 4))
        queries = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda q: nearest_neighbours(q, bank, 3, metric=metric).distances, queries)

    def test_gradient_at_distance_zero(self):
        bank = torch.randn(20, 4)
        queries = bank[:3].clone().requires_grad_()
        nearest_neighbours(queries, bank).distances.sum().backward()
        assert (queries.grad == 0).all()

    def test_non_finite_queries_are_visible(self):
        queries = torch.zeros(3, 4)
        queries[1] = float("nan")
        found = nearest_neighbours(queries, torch.randn(20, 4))
        assert torch.isfinite(found.distances).flatten().tolist() == [True, False, True]

    def test_bad_input(self):
        bank = torch.randn(20, 4)
        with pytest.raises(ValueError, match="k must not exceed the bank: k=21, but it has 20"):
            nearest_neighbours(bank, bank, 21)
        with pytest.raises(ValueError, match="k=20, but it has 19 others"):
            nearest_neighbours(bank, bank, 20, exclude_self=True)
        with pytest.raises(ValueError, match="whole number of at least 1"):
            nearest_neighbours(bank, bank, 0)
        with pytest.raises(ValueError, match=r"queries must be \(n, 4\)"):
            nearest_neighbours(torch.zeros(3, 5), bank)
        with pytest.raises(ValueError, match="metric must be one of"):
            nearest_neighbours(bank, bank, metric="cosine")
        with pytest.raises(ValueError, match="needs the bank itself"):
            nearest_neighbours(bank[:5], bank, exclude_self=True)
        with pytest.raises(ValueError, match="non-finite"):
            prepare_bank(torch.full((3, 2), float("nan")))
        with pytest.raises(ValueError, match="not empty"):
            prepare_bank(torch.zeros(0, 2))


def naive_precision_recall(real, fake, k):
    radii = {}
    for name, rows in (("real", real), ("fake", fake)):
        own = distance_matrix(rows, rows)
        np.fill_diagonal(own, np.inf)
        radii[name] = np.sort(own, axis=1)[:, k - 1]
    between = distance_matrix(real, fake)
    in_real, in_fake = between <= radii["real"][:, None], between <= radii["fake"][None]
    return in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


class TestPrecisionRecall:
    @pytest.mark.parametrize("k", [1, 3, 5])
    def test_equal_to_the_plain_loop(self, k, digits, monkeypatch):
        rows = digits.flatten(1)
        real, fake = rows[:300], torch.cat([rows[300:500] + 0.3 * torch.randn(200, 256), rows[:40]])
        expected = naive_precision_recall(real, fake, k)
        assert np.allclose(pr(real, fake, k=k), expected, atol=1e-12)
        assert np.allclose(pr(real + 50, fake + 50, k=k), naive_precision_recall(real + 50, fake + 50, k), atol=1e-12)
        monkeypatch.setattr(importlib.import_module("qa_hooks.functional.precision_and_recall"), "CHUNK", 5000)
        assert np.allclose(pr(real, fake, k=k), expected, atol=1e-12)

    def test_distances_that_equal_the_radius_count(self):
        """On a grid most distances tie with a radius."""
        grid = torch.cartesian_prod(torch.arange(7.0), torch.arange(7.0)) * 0.1 + 3
        for fake in (grid[::2], grid.clone(), grid[:20] + 0.1):
            assert np.allclose(pr(grid, fake, k=2), naive_precision_recall(grid, fake, 2), atol=1e-12)

    def test_a_known_case(self):
        real = torch.randn(400, 4)
        same = pr(real, torch.randn(400, 4))
        dropped = pr(real, real[real[:, 0] > 0.8][:50] + 0.01 * torch.randn(50, 4).clamp(-1, 1))
        far = pr(real, torch.randn(400, 4) + 100)
        assert min(same.precision, same.recall, same.coverage) > 0.8
        assert same.density == pytest.approx(1, abs=0.15)
        assert dropped.precision > 0.9 > 0.5 > dropped.recall
        assert dropped.coverage < 0.5
        assert far == (0, 0, 0, 0)

    def test_a_collapsed_generator(self):
        real = torch.randn(300, 16)
        fake = real[:1].expand(300, -1)
        assert np.allclose(pr(real, fake), naive_precision_recall(real, fake, 3), atol=1e-12)

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"got \(5, 3\) and \(5, 4\)"):
            precision_recall(torch.zeros(5, 3), torch.zeros(5, 4))
        with pytest.raises(ValueError, match="fake needs more than k=3 rows, got 3"):
            precision_recall(torch.randn(5, 3), torch.randn(3, 3))
        with pytest.raises(ValueError, match="non-finite"):
            precision_recall(torch.randn(5, 3), torch.full((5, 3), float("inf")))
