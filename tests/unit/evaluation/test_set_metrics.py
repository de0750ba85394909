"""The table of set metrics: values of the pure functions, intervals that cover, verdicts that do not err."""

from __future__ import annotations

import math

import pytest
import torch

from qa_hooks.evaluation.estimate import Estimate
from qa_hooks.evaluation.reference import Reference
from qa_hooks.evaluation.set_metrics import Sets, check_metrics, estimate_metrics, metric_name
from qa_hooks.evaluation.verdicts import Verdicts
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.functional.intervals import jackknife_error, jackknife_subsets, t_interval, wilson_interval
from qa_hooks.functional.kid import kernel_distance
from qa_hooks.functional.precision_and_recall import precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def estimate(real, fake, metric="fd", **options):
    return estimate_metrics(Sets(Reference.of(real), fake, **options), [metric])[metric]


def test_the_jackknife_interval_covers_the_frechet_distance_expected_at_this_n():
    """Known Gaussians; FD is biased in n, so what is covered is its mean over draws of this size."""
    dim, n, repeats = 4, 200, 200
    real = normal(4000, dim, seed=5)
    rows = [estimate(real, normal(n, dim, seed=100 + i) * 1.2 + 0.3, seed=i) for i in range(repeats)]
    values = torch.tensor([found.value for found in rows])
    expected = float(values.mean())
    covered = sum(i.low <= expected <= i.high for i in (r.interval() for r in rows)) / repeats
    assert 0.90 <= covered <= 0.99
    errors = torch.tensor([(row.interval().high - row.value) / 2.262157 for row in rows])
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.2)


def test_a_frechet_verdict_needs_the_bias_out_of_the_way():
    """At n near the dimension the wider model seems worse than it is: the true order is the other one."""
    dim, n = 64, 100
    real = normal(5000, dim, seed=6)
    noise = normal(n, dim, seed=7)
    a = noise * torch.linspace(0.7, 1.3, dim).double() + 0.3
    b = (noise + 0.3) * 1.1
    rows = [estimate(real, part) for part in (a, b)]
    difference = rows[1].row - rows[0].row
    assert (
        t_interval(float(difference[0]), jackknife_error(difference[1:])).low > 0
    )  # FD says that A is better, and is sure of it
    means, scales = (0.3, 0.33), (torch.linspace(0.7, 1.3, dim).double(), torch.full((dim,), 1.1).double())
    truth = [dim * m**2 + float(((s - 1) ** 2).sum()) for m, s in zip(means, scales, strict=True)]
    assert truth[1] < truth[0]
    assert rows[0].compare(rows[1], paired=True).verdict == "cannot tell"
    many = normal(4000, 4, seed=8)
    clear = [estimate(normal(4000, 4, seed=9), part) for part in (many + 0.5, many)]
    assert clear[0].compare(clear[1], paired=True).verdict == "B better"
    assert clear[0].compare(clear[1], paired=False).verdict == "B better"


def test_set_metrics_are_those_of_the_pure_functions():
    real, fake = normal(90, 5, seed=11).float(), normal(60, 5, seed=12).float() * 1.3
    estimates = estimate_metrics(Sets(Reference.of(real), fake, groups=5, seed=1), ["kid", "pr"])
    for position, subset in enumerate([torch.arange(60), *jackknife_subsets(60, groups=5, seed=1)]):
        found = precision_recall(real[:60], fake[subset], k=3)
        assert [float(estimates[k].row[position]) for k in found._fields] == pytest.approx(list(found))
    kid = estimates["kid"].row
    assert len(kid) == 61
    for image in range(0, 60, 7):
        others = fake[torch.arange(60) != image]
        assert float(kid[1 + image]) == pytest.approx(kernel_distance(real, others).value, abs=1e-5)
    big = estimate(real + 300, fake + 300, "kid")
    assert big.value == pytest.approx(kernel_distance(real.double() + 300, fake.double() + 300).value, rel=1e-3)


def test_the_kernel_distance_has_the_error_of_the_function_and_no_other():
    real, fake = normal(90, 5, seed=11), normal(60, 5, seed=12) * 1.3
    value, error = kernel_distance(real, fake, fixed_real=True)
    assert estimate(real, fake, "kid").interval() == pytest.approx(t_interval(value, error, degrees=59), rel=1e-9)


def test_only_the_canonical_network_makes_a_fid():
    network = torch.nn.Conv2d(3, 4, 3)
    canonical = FeatureExtractor(network, name="inception", spec={"type": "inception"})
    own, other = FeatureExtractor(network, name="inception"), create_extractor("random")
    assert [metric_name(key, canonical) for key in ("fd", "kid", "recall")] == ["fid", "kid", "recall_inception"]
    assert [metric_name(key, own) for key in ("fd", "kid")] == ["fd_own-inception", "kd_own-inception"]
    assert [metric_name(key, other) for key in ("fd", "kid")] == ["fd_random", "kd_random"]


@pytest.mark.parametrize("share", [0.98, 0.5])
def test_the_interval_of_precision_covers_the_share(share):
    """With exact binomial probabilities; the jackknife's has no width where all images count, or none."""
    n = 100
    rows = [torch.full((11,), count / n, dtype=torch.float64) for count in range(n + 1)]
    intervals = [Estimate("precision", n, row, (0.0, 1.0), higher_is_better=True).interval() for row in rows]
    chances = [math.comb(n, count) * share**count * (1 - share) ** (n - count) for count in range(n + 1)]
    covered = sum(p for p, i in zip(chances, intervals, strict=True) if i.low <= share <= i.high)
    assert 0.93 < covered < 0.99
    ends = pytest.importorskip("scipy.stats").binomtest(93, 100).proportion_ci(method="wilson")
    assert intervals[93][1:] == pytest.approx((ends.low, ends.high), rel=1e-9)
    assert (intervals[0].low, intervals[100].high) == (0, 1)
    with pytest.raises(ValueError, match="share must be a share in"):
        wilson_interval(1.2, 10)


def test_there_is_one_word_for_each_metric():
    assert check_metrics(["pr", "fd", "pr"]) == ("pr", "fd")
    for word in ("fad", "precision_recall", "fid"):
        with pytest.raises(ValueError, match=f"unknown metric '{word}'.*; known are fd, kid, pr, is, qs, ds"):
            check_metrics([word])


@pytest.mark.parametrize(
    ("printed", "said"),
    [("kd_random", "a value of 'kid'; .* the extractor, random"), ("precision", r"a value of 'pr'\)")],
)
def test_what_is_printed_of_a_metric_is_answered_with_the_metric(printed, said):
    with pytest.raises(ValueError, match=said):
        check_metrics([printed])


@pytest.mark.parametrize("scale", [0.3, 1.0, 1.6])
def test_intervals_lie_within_the_range_and_cover(scale):
    """Wide, equal and collapsed sets: shares near 0 and 1, where a plain jackknife leaves the range or has no width."""
    n, repeats = 60, 40
    real = normal(n, 3, seed=1)
    found = [
        estimate_metrics(Sets(Reference.of(real), normal(n, 3, seed=2 + i) * scale), ["fd", "kid", "pr"])
        for i in range(repeats)
    ]
    for key in ("fd", "precision", "recall", "density", "coverage"):
        mean = sum(own[key].value for own in found) / repeats
        intervals = [own[key].interval() for own in found]
        top = math.inf if key in ("fd", "density") else 1.0
        assert all(0 <= i.low <= i.value <= i.high <= top for i in intervals)
        assert sum(i.low <= mean <= i.high for i in intervals) >= 0.85 * repeats  # 34 of 40: three errors below 0.95
        if top == 1.0:
            assert min(i.high - i.low for i in intervals) > 0.01


@pytest.mark.parametrize("key", ["ds", "qs", "is", "density"])
def test_a_value_that_no_group_changes_has_no_known_interval(key):
    a, b = (Estimate(key, 60, torch.full((11,), value), (0.0, math.inf), higher_is_better=True) for value in (0, 1.0))
    interval, found = a.interval(), a.compare(b, paired=False)
    assert (interval.value, math.isnan(interval.low), math.isnan(interval.high)) == (0, True, True)
    assert (found.difference, found.verdict, math.isnan(found.low)) == (1, "cannot tell", True)


def test_a_density_of_nothing_has_no_known_interval():
    far = estimate_metrics(Sets(Reference.of(normal(60, 3)), normal(60, 3, seed=2) + 100), ["pr"])
    assert [far[key].value for key in ("precision", "density")] == [0, 0]
    density = far["density"].interval()
    assert (density.value, math.isnan(density.low), math.isnan(density.high)) == (0, True, True)
    assert far["precision"].interval().high > 0.03
    assert far["density"].compare(far["density"], paired=False).verdict == "cannot tell"


def test_differences_lie_within_the_range_of_differences():
    rows = torch.tensor([[0.0, *[0.0] * 9, 0.4], [1.0, *[1.0] * 9, 0.5]], dtype=torch.float64)
    a, b = (Estimate("recall", 60, row, (0.0, 1.0), higher_is_better=True) for row in rows)
    found = a.compare(b, paired=False)
    assert found.high == 1.0
    assert found.low < 1.0
    classes = Sets(Reference.of(normal(30, 2)), normal(30, 2), logits=50 * torch.eye(2)[torch.arange(30) % 2])
    score = estimate_metrics(classes, ["is"])["is"].interval()
    assert score.low <= score.value <= score.high <= 2


def test_few_images_are_counted_in_the_message():
    with pytest.raises(ValueError, match="fd of 9 generated and 30 real images: at least 10 images of each"):
        estimate(normal(30, 2), normal(9, 2))
    with pytest.raises(ValueError, match="of 30 generated and 5 real images: at least 10"):
        estimate(normal(5, 2), normal(30, 2), "pr", groups=2)


class TestVerdicts:
    def compared(self, a, b, *, extractor, n=60, **options):
        real = normal(n, 2, seed=1).float()
        found = Verdicts(labels=["one B better", "A"], paired=False, seed=0, confidence=0.95, **options)
        sets = {"one B better": real + a + 0.1 * normal(n, 2).float(), "A": real + b}
        found.add_sets(extractor, real, sets, ["kid"])
        return found

    def extractor(self, **spec):
        return FeatureExtractor(torch.nn.Conv2d(3, 2, 3), name="net", spec=spec or None)

    def test_the_whole_name_of_the_better_set(self):
        found = self.compared(0.0, 2.0, extractor=self.extractor())
        assert str(found).splitlines()[-1].endswith("] one B better better")
        found = self.compared(2.0, 0.1, extractor=self.extractor())
        assert str(found).splitlines()[-1].endswith("] A better")

    @pytest.mark.parametrize(
        ("spec", "n", "word"),
        [
            ({"type": "random"}, 60, "untrained"),
            ({"type": "resnet18", "weights": None}, 60, "untrained"),
            ({"type": "resnet18"}, 40, "40 images are few"),
        ],
    )
    def test_untrained_features_and_few_images_give_numbers_only(self, spec, n, word):
        extractor = self.extractor(**spec)
        found = self.compared(0.5, 2.0, extractor=extractor, n=n)
        difference = found.comparisons["A"]["kd_net"]
        assert difference.low > 0
        assert difference.verdict == "no verdict"
        assert word in str(found)
        judged = self.compared(0.5, 2.0, extractor=extractor, n=n, always_judge=True)
        assert judged.comparisons["A"]["kd_net"].verdict == "A better"
        assert judged.comparisons["A"]["kd_net"][:3] == difference[:3]
        assert judged.notes == []

    def test_the_real_images_themselves_are_the_best_in_any_features(self):
        found = self.compared(2.0, 0.0, extractor=self.extractor(type="random"))
        assert found.comparisons["A"]["kd_net"].verdict == "B better"
        assert found.notes == []

    def test_trained_features_and_enough_images_are_judged(self):
        extractor = self.extractor(type="resnet18")
        assert self.compared(0.5, 2.0, extractor=extractor).comparisons["A"]["kd_net"].verdict == "A better"


@pytest.mark.parametrize("key", ["recall", "coverage"])
def test_shares_that_no_group_changes_differ_by_an_interval_with_a_width(key):
    limits, row = (0.0, 1.0), torch.ones(11, dtype=torch.float64)
    all_found, none_found = (Estimate(key, 12, own, limits, higher_is_better=True) for own in (row, 0 * row))
    for paired in (False, True):
        found = none_found.compare(all_found, paired=paired)
        # Newcombe (1998), method 10, of 0 of 12 and 12 of 12: Wilson's limits, 0.2425 apart from each end.
        assert found.low == pytest.approx(1 - 0.2425 * 2**0.5, abs=1e-3)
        assert found.high == 1.0
        assert found.verdict == "B better"
        same = all_found.compare(all_found, paired=paired)
        assert same.low < 0 < same.high
        assert same.verdict == "cannot tell"
