from __future__ import annotations

import numpy as np
import pytest
import torch

from qa_hooks.functional.distributions import histogram_overlap, ks_distance, score_histograms


@pytest.mark.parametrize("sizes", [(1, 1), (50, 50), (200, 31)])
def test_ks_is_that_of_scipy(sizes):
    stats = pytest.importorskip("scipy.stats")
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        a = torch.randn(sizes[0], generator=generator).round(decimals=1)  # ties
        b = torch.randn(sizes[1], generator=generator).round(decimals=1) + 0.1 * seed
        assert ks_distance(a, b) == pytest.approx(stats.ks_2samp(a.numpy(), b.numpy()).statistic, abs=1e-12)


def test_overlap_is_that_of_numpy_histograms():
    a, b = torch.randn(400), torch.randn(300) * 1.5 + 0.7
    edges, first, second = score_histograms(a, b, bins=20)
    clipped = [np.clip(part.double().numpy(), float(edges[0]), float(edges[-1])) for part in (a, b)]
    expected = [np.histogram(part, bins=edges.numpy())[0] / len(part) for part in clipped]
    assert np.allclose(first, expected[0])
    assert np.allclose(second, expected[1])
    assert histogram_overlap(a, b, bins=20) == pytest.approx(np.minimum(*expected).sum())
    bounds = [np.quantile(part.double().numpy(), share) for part in (a, b) for share in (0.005, 0.995)]
    assert [float(edges[0]), float(edges[-1])] == pytest.approx([min(bounds), max(bounds)])


def test_the_ends():
    same, apart = torch.randn(100), torch.randn(100) + 50
    assert (ks_distance(same, same), ks_distance(same, apart)) == (0.0, 1.0)
    assert histogram_overlap(same, same) == pytest.approx(1.0)
    assert histogram_overlap(same, apart) == 0.0
    constant = torch.full((10,), 3.0)
    assert histogram_overlap(constant, constant) == 1.0
    # One outlier of a thousand leaves the bins where they were.
    body = torch.randn(1000)
    assert score_histograms(torch.cat([body, torch.tensor([1e6])]), body)[0][-1] < 10


def test_the_documented_size_of_chance():
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 256, generator=generator) for _ in range(100)]
    mean = sum(histogram_overlap(a, b) for a, b in pairs) / len(pairs)
    assert 0.78 < mean < 0.86


@pytest.mark.parametrize("function", [ks_distance, histogram_overlap])
def test_bad_input(function):
    good = torch.randn(5)
    with pytest.raises(ValueError, match=r"a must be a tensor \(n,\) of at least one number, got \(0,\)"):
        function(torch.zeros(0), good)
    with pytest.raises(ValueError, match=r"b must be .* got list"):
        function(good, [1.0])
    with pytest.raises(ValueError, match="b holds 1 values that are not finite"):
        function(good, torch.tensor([1.0, float("nan")]))
