"""The choice of a ground truth: frequencies against the closed form, limits, what cannot be chosen, crops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qa_hooks.data import select_ground_truth, selection_probabilities
from qa_hooks.data.ground_truth import STRATEGIES
from qa_hooks.scorers import PSNR, Scorer
from toy_scorers import brightness

NAN = float("nan")
SCORES = [62.0, 70.0, 66.5, 55.0, 71.0]


def softmax(values: list[float], temperature: float, width: float) -> np.ndarray:
    """Term by term, in double precision."""
    powers = [math.exp((value - max(values)) / width / temperature) for value in values]
    return np.array([power / sum(powers) for power in powers])


def frequencies(count: int = 100_000, **options) -> np.ndarray:
    generator = torch.Generator().manual_seed(3)
    scores = torch.tensor([SCORES]).expand(count, -1)
    options.setdefault("score_range", (0, 100))
    if "positives" in options:
        options["positives"] = torch.tensor([options["positives"]]).expand(count, -1)
    index = select_ground_truth(scores=scores, generator=generator, **options)
    assert index.dtype == torch.int64
    assert index.shape == (count,)
    return np.bincount(index.numpy(), minlength=len(SCORES))


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """The p-value; classes of probability 0 must be empty."""
    stats = pytest.importorskip("scipy.stats")
    there = expected > 0
    assert counts[~there].sum() == 0
    return float(stats.chisquare(counts[there], expected[there] * counts.sum()).pvalue)


def only(numbers: list[int]) -> np.ndarray:
    return np.array([number in numbers for number in range(len(SCORES))])


@pytest.mark.parametrize("temperature", [0.02, 0.05, 0.5])
def test_sma_draws_with_the_frequencies_of_the_softmax(temperature):
    counts = frequencies(strategy="sma", temperature=temperature)
    assert chi_square(counts, softmax(SCORES, temperature, 100)) > 1e-3
    assert chi_square(counts, softmax(SCORES, 1.5 * temperature, 100)) < 1e-3  # the test can tell


def test_smp_draws_among_the_positives():
    counts = frequencies(strategy="smp", positives=[False, True, True, True, False])
    expected = np.zeros(5)
    expected[1:4] = softmax(SCORES[1:4], 0.05, 100)
    assert chi_square(counts, expected) > 1e-3


def test_random_and_upos_are_uniform():
    assert chi_square(frequencies(strategy="random"), np.full(5, 0.2)) > 1e-3
    counts = frequencies(strategy="upos", positives=[False, True, False, True, False])
    assert chi_square(counts, only([1, 3]) / 2) > 1e-3


def test_lower_is_better_turns_the_order_round():
    expected = softmax([-score for score in SCORES], 0.05, 100)
    assert chi_square(frequencies(strategy="sma", higher_is_better=False), expected) > 1e-3


def test_zscores_are_those_of_each_set():
    scores = torch.tensor([SCORES, [10 * s - 300 for s in SCORES]])
    probabilities = selection_probabilities(scores, temperature=0.7, normalize="zscore")
    expected = softmax(SCORES, 0.7, float(np.std(SCORES)) + 1e-6)
    np.testing.assert_allclose(probabilities[0], expected, rtol=1e-5)
    np.testing.assert_allclose(probabilities[1], expected, rtol=1e-5)


def test_raw_scores_without_normalisation():
    probabilities = selection_probabilities(torch.tensor([SCORES]), temperature=4.0, normalize="none")
    np.testing.assert_allclose(probabilities[0], softmax(SCORES, 4.0, 1), rtol=1e-6)


@pytest.mark.parametrize("normalize", ["range", "zscore", "none"])
def test_limits_of_the_temperature(normalize):
    scores = torch.tensor([[*SCORES, NAN]])
    options = {"normalize": normalize, "score_range": (0, 100)}
    for tiny in (1e-300, 1e-9):
        best = selection_probabilities(scores, temperature=tiny, **options)
        assert best.tolist() == [[0, 0, 0, 0, 1, 0]]
    for huge in (1e300, math.inf):
        uniform = selection_probabilities(scores, temperature=huge, **options)
        torch.testing.assert_close(uniform, torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2, 0.0]]))


@pytest.mark.parametrize("normalize", ["range", "zscore", "none"])
@pytest.mark.parametrize("level", [0.0, 1e-30, 0.1, 63.7, 1e30])
def test_a_set_without_spread_is_uniform(normalize, level):
    noise = 1 + torch.tensor([[0.0, 6e-8, -6e-8, 0.0]])  # the last bit of float32 is no quality
    probabilities = selection_probabilities(level * noise, temperature=1e-3, normalize=normalize, score_range=(0, 100))
    torch.testing.assert_close(probabilities, torch.full((1, 4), 0.25))


def test_what_cannot_be_chosen_is_not():
    scores = torch.tensor([[1.0, NAN, 3.0], [NAN, NAN, NAN], [math.inf, 2.0, -math.inf], [1.0, 2.0, 3.0]])
    allowed = torch.tensor([[True, True, False], [True, True, True], [True, True, True], [False, False, False]])
    for options in (
        {"normalize": "zscore"},
        {"score_range": (0, 1e-3)},
        {"normalize": "none", "temperature": math.inf},
    ):
        probabilities = selection_probabilities(scores, allowed=allowed, **options)
        assert probabilities.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_no_positive_and_no_score_leave_the_original():
    scores = torch.tensor([[NAN, NAN, 5.0], [1.0, 2.0, 3.0], [NAN, NAN, NAN]])
    positives = torch.tensor([[False, True, False], [False, False, False], [False, True, True]])
    options = {"scores": scores, "positives": positives, "normalize": "zscore"}
    assert select_ground_truth(strategy="smp", **options).tolist() == [0, 0, 0]
    assert select_ground_truth(strategy="sma", temperature=1e-9, **options).tolist() == [2, 2, 0]
    assert select_ground_truth(strategy="upos", **options)[:2].tolist() == [1, 0]
    assert select_ground_truth(strategy="originals", **options).tolist() == [0, 0, 0]


def test_amo_is_the_brute_force_argmax_of_the_crops_and_not_of_the_images(photographs):
    images = torch.stack([photographs, photographs.roll(40, -1) * 0.9, photographs.flip(-1) * 1.05], 1).clamp(0, 1)
    crops = images[..., 100:164, 20:84].contiguous()
    brute = [max(range(3), key=lambda k: float(crops[n, k].double().mean())) for n in range(4)]
    whole = [max(range(3), key=lambda k: float(images[n, k].double().mean())) for n in range(4)]
    assert brute != whole
    assert select_ground_truth(crops, strategy="amo", scorer=brightness()).tolist() == brute
    # Image-level scores and positives are of no interest to it.
    others = {"scores": torch.rand(4, 3), "positives": torch.zeros(4, 3, dtype=torch.bool)}
    assert select_ground_truth(crops, strategy="amo", scorer=brightness(), **others).tolist() == brute


def test_amo_takes_the_scorers_own_direction_and_range():
    crops = torch.rand(3, 4, 3, 8, 8) * 2 - 1
    dark = brightness("light", higher_is_better=False, value_range=(-1, 1))
    expected = crops.mean((2, 3, 4)).argmin(1)
    assert torch.equal(select_ground_truth(crops, strategy="amo", scorer=dark), expected)
    plain = select_ground_truth(crops, strategy="amo", scorer=lambda x: x.mean((1, 2, 3)), higher_is_better=False)
    assert torch.equal(plain, expected)


def test_amo_runs_in_chunks_in_float32_without_gradient_and_leaves_the_run_alone(monkeypatch):
    seen = []

    class Witness(torch.nn.Module):
        def forward(self, images):
            seen.append((len(images), images.dtype, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
            torch.rand(3)
            return images.mean((1, 2, 3))

    monkeypatch.setattr("qa_hooks.sources.windows.BATCH_PIXELS", 3 * 8 * 8)
    net = Witness().train()
    crops = torch.rand(2, 5, 3, 8, 8, requires_grad=True)
    state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        index = select_ground_truth(crops.bfloat16(), strategy="amo", scorer=net)
    assert [count for count, *_ in seen] == [3, 3, 3, 1]
    assert {facts for _, *facts in map(tuple, seen) for facts in [tuple(facts)]} == {(torch.float32, False, False)}
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert not index.requires_grad


def test_amo_gives_ties_to_the_original_and_skips_what_has_no_score():
    crops = torch.full((2, 3, 1, 8, 8), 0.5)
    crops[1, 0] = 0.9

    def score(images):
        means = images.mean((1, 2, 3))
        return torch.where(means > 0.8, torch.nan, means)

    assert select_ground_truth(crops, strategy="amo", scorer=score).tolist() == [0, 1]
    assert select_ground_truth(crops, strategy="amo", scorer=lambda x: x.mean((1, 2, 3)) * NAN).tolist() == [0, 0]


def test_amo_with_uint8_crops():
    crops = torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8)
    crops[:, 1] = 200
    assert select_ground_truth(crops, strategy="amo", scorer=brightness()).tolist() == [1]


@pytest.mark.parametrize("strategy", ["random", "upos", "sma", "smp"])
def test_draws_come_from_the_generator_given_or_from_our_own_and_never_from_the_global_one(strategy):
    options = {
        "scores": torch.rand(64, 6),
        "positives": torch.rand(64, 6) > 0.3,
        "strategy": strategy,
        "score_range": (0, 1),
    }
    before = torch.get_rng_state()
    first = select_ground_truth(generator=torch.Generator().manual_seed(5), **options)
    again = select_ground_truth(generator=torch.Generator().manual_seed(5), **options)
    other = select_ground_truth(generator=torch.Generator().manual_seed(6), **options)
    own = [select_ground_truth(**options) for _ in range(2)]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(*own)


def test_a_resumed_generator_goes_on():
    options = {"scores": torch.rand(16, 5), "strategy": "sma", "score_range": (0, 1)}
    generator = torch.Generator().manual_seed(0)
    select_ground_truth(generator=generator, **options)
    state = generator.get_state()
    rest = [select_ground_truth(generator=generator, **options) for _ in range(3)]
    resumed = torch.Generator()
    resumed.set_state(state)
    assert all(torch.equal(a, select_ground_truth(generator=resumed, **options)) for a in rest)


def test_one_call_serves_all_strategies():
    crops = torch.rand(5, 4, 3, 8, 8)
    for strategy in STRATEGIES:
        index = select_ground_truth(
            crops,
            torch.rand(5, 4),
            strategy=strategy,
            positives=torch.ones(5, 4, dtype=torch.bool),
            scorer=brightness(),
            score_range=(0, 1),
        )
        assert index.shape == (5,)
        assert 0 <= int(index.min()) <= int(index.max()) < 4


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, NAN, True, "hot", None])
def test_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match="temperature must be more than 0"):
        selection_probabilities(torch.rand(1, 3), temperature=temperature, normalize="none")


@pytest.mark.parametrize("score_range", [None, (0, math.inf), (-math.inf, 0)])
def test_an_unbounded_score_has_no_range(score_range):
    with pytest.raises(ValueError, match="zscore"):
        select_ground_truth(scores=torch.rand(2, 3), strategy="sma", score_range=score_range)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strategy": "best"}, ValueError, "strategy must be one of"),
        ({"strategy": "random"}, ValueError, "nothing to choose from"),
        ({"strategy": "sma", "candidates": torch.rand(2, 3, 1, 8, 8)}, ValueError, "QualityTable"),
        ({"strategy": "upos", "scores": torch.rand(2, 3)}, ValueError, "pass positives="),
        ({"strategy": "smp", "scores": torch.rand(2, 3), "score_range": (0, 1)}, ValueError, "pass positives="),
        ({"strategy": "amo", "scores": torch.rand(2, 3)}, ValueError, "'amo' scores the crops"),
        ({"strategy": "amo", "candidates": torch.rand(2, 3, 1, 8, 8)}, ValueError, "scorer="),
        ({"strategy": "amo", "candidates": torch.rand(2, 3, 1, 8, 8), "scorer": "niqe"}, TypeError, "create_scorer"),
        ({"strategy": "amo", "candidates": torch.rand(2, 3, 1, 8, 8), "scorer": PSNR()}, ValueError, "reference"),
        (
            {"strategy": "amo", "candidates": torch.rand(2, 3, 1, 8, 8), "scorer": torch.sum},
            ValueError,
            "one score per",
        ),
        ({"strategy": "random", "candidates": torch.rand(2, 3, 8, 8)}, ValueError, r"\(N, K, C, H, W\)"),
        ({"strategy": "random", "candidates": [1]}, TypeError, "candidates must be a tensor"),
        ({"strategy": "sma", "scores": [[1.0]]}, TypeError, "scores must be a tensor"),
        ({"strategy": "sma", "scores": torch.rand(3)}, ValueError, r"scores must be \(N, K\)"),
        ({"strategy": "random", "scores": torch.rand(2, 0)}, ValueError, r"scores must be \(N, K\)"),
        (
            {"strategy": "random", "candidates": torch.rand(2, 3, 1, 8, 8), "scores": torch.rand(2, 4)},
            ValueError,
            r"scores must be \(2, 3\)",
        ),
        ({"strategy": "upos", "positives": torch.tensor([[0, 1, 2]])}, TypeError, "labels == 1"),
        ({"strategy": "upos", "positives": torch.ones(2, dtype=torch.bool)}, ValueError, "positives must be"),
        (
            {"strategy": "upos", "scores": torch.rand(2, 3), "positives": torch.ones(2, 4, dtype=torch.bool)},
            ValueError,
            r"positives must be \(2, 3\)",
        ),
        ({"strategy": "sma", "scores": torch.rand(2, 3), "normalize": "max"}, ValueError, "normalize must be"),
        ({"strategy": "sma", "scores": torch.rand(2, 3), "score_range": (1, 0)}, ValueError, "low < high"),
    ],
)
def test_bad_input(options, error, message):
    with pytest.raises(error, match=message):
        select_ground_truth(**options)


def test_a_scorer_that_needs_a_prompt_is_refused():
    class Prompted(Scorer):
        inputs = frozenset({"prompt"})

    with pytest.raises(ValueError, match="prompt"):
        select_ground_truth(torch.rand(1, 2, 3, 8, 8), strategy="amo", scorer=Prompted())


def test_a_function_gets_no_bytes_whose_arithmetic_wraps_round():
    crops = (torch.rand(1, 2, 3, 4, 4) * 255).byte()
    with pytest.raises(TypeError, match=r"candidates\.float\(\) / 255"):
        select_ground_truth(crops, strategy="amo", scorer=lambda x: (x * x).sum((1, 2, 3)))
