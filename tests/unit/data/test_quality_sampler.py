"""Draws by quality: frequencies against the closed form, PyTorch's own sampler as the limit, ranks, workers, resume."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from qa_hooks.data import QualitySampler, QualityTable, quality_weights
from qa_hooks.images import save_image
from toy_scorers import brightness


def softmax(scores: list[float], tau: float, floor: float = 0.0) -> np.ndarray:
    """The formula of the module, in NumPy; of mean 1."""
    exponent = np.exp((np.array(scores) - max(scores)) / tau)
    return floor + (1 - floor) * len(scores) * exponent / exponent.sum()


class TestWeights:
    def test_closed_forms(self):
        scores = torch.tensor([30.0, 60.0, 45.0, 60.0, 10.0])
        raw = scores.double().numpy()
        z = (raw - raw.mean()) / raw.std()
        ranks = np.array([1, 3.5, 2, 3.5, 0]) / 4
        for normalized, options in (
            (z, {"normalize": "zscore"}),
            (raw / 100, {"normalize": "range", "score_range": (0, 100)}),
            (ranks, {"normalize": "rank"}),
            (raw, {"normalize": "none"}),
        ):
            for tau, floor in ((0.3, 0.0), (2.0, 0.25)):
                got = quality_weights(scores, temperature=tau, floor=floor, **options)
                assert np.allclose(got, softmax(list(normalized), tau, floor), rtol=1e-4, atol=1e-6), options
                reverse = quality_weights(-scores, temperature=tau, floor=floor, higher_is_better=False, **options)
                if "score_range" not in options:
                    assert torch.allclose(got, reverse)

    def test_mean_one_and_a_floor(self):
        scores = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 5 + 30
        with pytest.raises(ValueError, match=r"one of \('zscore', 'range', 'rank', 'none'\), got 'x'"):
            quality_weights(scores, normalize="x")
        for normalize in ("zscore", "rank", "none"):
            weights = quality_weights(scores, normalize=normalize, temperature=0.1, floor=0.2)
            assert float(weights.double().mean()) == pytest.approx(1, abs=1e-6)
            assert float(weights.min()) >= 0.2 - 1e-7
            assert weights.argmax() == scores.argmax()

    @pytest.mark.parametrize("options", [{"temperature": math.inf}, {"floor": 1.0}])
    def test_uniform_is_exactly_one(self, options):
        for count in (1, 3, 7, 49, 1000):
            scores = torch.arange(count) * 1.0
            for normalize in ("zscore", "rank", "none"):
                weights = quality_weights(scores, normalize=normalize, **options)
                assert torch.equal(weights, torch.ones(count))
        assert torch.equal(quality_weights(torch.full((49,), 0.1)), torch.ones(49))  # no spread

    def test_the_cold_limit_is_the_best_alone(self):
        weights = quality_weights(torch.tensor([1.0, 3.0, 2.0]), temperature=1e-6, floor=0.0)
        assert weights.tolist() == [0.0, 3.0, 0.0]

    def test_missing_scores(self):
        scores = torch.tensor([1.0, math.nan, 3.0, math.inf])
        with pytest.raises(ValueError, match=r"2 of 4 scores are not finite, the first at 1: .*'never'.*'average'"):
            quality_weights(scores)
        known = quality_weights(torch.tensor([1.0, 3.0]))
        assert torch.allclose(quality_weights(scores, missing="never"), torch.tensor([known[0], 0, known[1], 0]) * 2)
        expected = torch.tensor([known[0], 1, known[1], 1])
        assert torch.equal(quality_weights(scores, missing="average"), expected)
        with pytest.raises(ValueError, match="not one of 2 scores is finite"):
            quality_weights(torch.full((2,), math.nan), missing="never")

    def test_bad_input(self):
        scores = torch.tensor([1.0, 2.0])
        for options, complaint in (
            ({"temperature": 0.0}, "temperature must be more than 0"),
            ({"temperature": -1.0}, "temperature must be more than 0"),
            ({"normalize": "range"}, "zscore"),
            ({"normalize": "softmax"}, "normalize must be one of"),
            ({"floor": 1.5}, "floor must be a share"),
            ({"floor": math.nan}, "floor must be a share"),
            ({"missing": "drop"}, "missing must be one of"),
        ):
            with pytest.raises(ValueError, match=complaint):
                quality_weights(scores, **options)
        with pytest.raises(ValueError, match=r"scores must be \(N,\)"):
            quality_weights(torch.ones(2, 3))
        with pytest.raises(TypeError, match="tensor"):
            quality_weights([1.0, 2.0])


def scores_of(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


class TestDraws:
    def test_frequencies_are_the_closed_form(self):
        """400 epochs: each count is within 4 standard errors of Bernoulli rounding, and of floor or ceil in each."""
        scores, epochs = scores_of(40), 400
        sampler = QualitySampler(scores, temperature=0.7, floor=0.1, num_samples=33)
        raw = scores.double().numpy()
        expected = softmax(list((raw - raw.mean()) / raw.std()), 0.7, 0.1) * 33 / 40
        assert np.allclose(sampler.expected_counts(), expected, rtol=1e-4)
        counts = torch.stack([sampler.sequence(epoch).bincount(minlength=40) for epoch in range(epochs)]).numpy()
        assert (counts.sum(1) == 33).all()
        assert ((counts == np.floor(expected)) | (counts == np.ceil(expected))).all()
        fraction = expected - np.floor(expected)
        error = np.sqrt(fraction * (1 - fraction) / epochs)
        assert (np.abs(counts.mean(0) - expected) < 4 * error + 1e-9).all()

    def test_neighbours_are_drawn_independently_enough(self):
        """Systematic sampling in the data set's own order would take all even or all odd positions."""
        sampler = QualitySampler(torch.zeros(40), num_samples=20)
        even = np.array([int((sampler.sequence(epoch) % 2 == 0).sum()) for epoch in range(300)])
        expected = 20 * 0.25 * 20 / 39  # hypergeometric variance: 20 of 40, of which 20 are even
        assert even.mean() == pytest.approx(10, abs=4 * math.sqrt(expected / 300))
        assert even.var() == pytest.approx(expected, rel=0.35)

    def test_repeats_are_spread_over_the_epoch(self):
        sampler = QualitySampler(torch.tensor([0.0] * 99 + [30.0]), normalize="none", floor=0.5)
        places = (sampler.sequence(0) == 99).nonzero()[:, 0].double()
        assert len(places) in (50, 51)
        assert float(places.mean()) == pytest.approx(49.5, abs=4 * 28.9 / math.sqrt(50))
        assert float(places.diff().max()) < 20

    def test_without_replacement(self):
        """Inclusion min(1, c w), c by bisection; frequencies within 4 standard errors."""
        scores = scores_of(30) * 2
        sampler = QualitySampler(scores, normalize="none", num_samples=12, replacement=False)
        weights = softmax(scores.double().tolist(), 1.0, 0.1)
        low, high = 0.0, 1e3
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, middle * weights).sum() < 12 else (low, middle)
        expected = np.minimum(1, low * weights)
        assert np.allclose(sampler.expected_counts(), expected, atol=1e-5)
        assert 1 <= (expected == 1).sum() < 12
        counts = torch.stack([sampler.sequence(epoch).bincount(minlength=30) for epoch in range(400)]).numpy()
        assert counts.max() == 1
        assert (counts.sum(1) == 12).all()
        error = np.sqrt(expected * (1 - expected) / 400)
        assert (np.abs(counts.mean(0) - expected) < 4 * error + 1e-4).all()

    def test_without_replacement_needs_a_choice(self):
        with pytest.raises(ValueError, match="quality decides nothing"):
            QualitySampler(scores_of(10), replacement=False)
        with pytest.raises(ValueError, match="11 draws without replacement from 10"):
            QualitySampler(scores_of(10), replacement=False, num_samples=11)
        uniform = QualitySampler(scores_of(10), replacement=False, temperature=math.inf)
        assert sorted(uniform) == list(range(10))

    def test_never_means_never(self):
        scores = torch.tensor([1.0, math.nan, 2.0, math.nan])
        sampler = QualitySampler(scores, missing="never", num_samples=50)
        assert {int(i) for epoch in range(20) for i in sampler.sequence(epoch)} == {0, 2}

    @pytest.mark.parametrize("count", [1, 2, 49, 1000])
    @pytest.mark.parametrize("world_size", [1, 2, 3])
    @pytest.mark.parametrize("drop_last", [False, True])
    def test_the_uniform_limit_is_pytorchs_sampler(self, count, world_size, drop_last):
        for rank in range(world_size):
            place = {"rank": rank, "drop_last": drop_last, "seed": 5}
            theirs = DistributedSampler(range(count), num_replicas=world_size, **place)
            ours = QualitySampler(scores_of(count), temperature=math.inf, world_size=world_size, **place)
            for epoch in range(3):
                theirs.set_epoch(epoch)
                ours.set_epoch(epoch)
                if drop_last and count < world_size:
                    assert list(ours) == []  # PyTorch's fails here
                    continue
                assert list(ours) == list(theirs)
                assert len(ours) == len(theirs)

    def test_ranks_share_one_sequence(self):
        samplers = [QualitySampler(scores_of(50), num_samples=42, rank=r, world_size=3) for r in range(3)]
        parts = [list(sampler) for sampler in samplers]
        joint = [index for group in zip(*parts, strict=True) for index in group]
        assert joint == samplers[0].sequence(0).tolist()

    def test_epochs_and_seeds_differ_and_repeat(self):
        sampler, same = (QualitySampler(scores_of(50), seed=1) for _ in range(2))
        first, second = list(sampler), list(sampler)  # without set_epoch it goes on by itself
        assert first != second
        assert sorted(first) != sorted(second)
        same.set_epoch(1)
        assert list(same) == second
        same.set_epoch(0)
        assert list(same) == first
        assert list(QualitySampler(scores_of(50), seed=2)) != first
        iterator = iter(same)
        assert [next(iterator) for _ in range(3)] == list(same)[:3]  # given up, so it starts anew

    def test_the_users_run_is_not_touched(self):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        list(QualitySampler(scores_of(50)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])

    def test_tables(self, tmp_path):
        table = QualityTable(["a", "b", "c"], torch.tensor([[9.0], [5.0], [1.0]]), "niqe", False)
        assert QualitySampler(table).weights.argmax() == 2  # lower is better
        by_hand = QualitySampler(table.values[:, 0], higher_is_better=False)
        assert torch.equal(QualitySampler(table).weights, by_hand.weights)
        with pytest.raises(ValueError, match="the table says that lower values of niqe are better"):
            QualitySampler(table, higher_is_better=True)
        ranged = QualityTable(["a", "b"], torch.tensor([[20.0], [70.0]]), "musiq", True, (0.0, 100.0))
        sampler = QualitySampler(ranged, normalize="range", temperature=0.5, floor=0.0)
        assert sampler.weights.tolist() == pytest.approx(list(softmax([0.2, 0.7], 0.5)), rel=1e-5)
        several = QualityTable(["a"], torch.ones(1, 5), "musiq", True)
        assert torch.equal(quality_weights(table), quality_weights(table.values[:, 0], higher_is_better=False))
        with pytest.raises(ValueError, match=r"5 candidates per sample, .* table\.values\[:, 0\]"):
            QualitySampler(several)

    def test_tiles_of_a_real_table(self, tmp_path):

        image = torch.zeros(3, 16, 32, dtype=torch.uint8)
        image[:, :, 16:] = 200
        (tmp_path / "data").mkdir()
        save_image(image, tmp_path / "data" / "a.png")
        level = brightness("level")
        table = QualityTable.compute(tmp_path / "data", level, tmp_path / "t.csv", tiles=16, progress=False)
        drawn = torch.tensor(list(QualitySampler(table, floor=0.0, temperature=0.1, num_samples=30)))
        assert [table.keys[int(i)] for i in drawn.unique()] == ["a.png@16,0"]

    def test_bad_input(self):
        for options, complaint in (
            ({"num_samples": 0}, "num_samples"),
            ({"rank": 0}, "both rank and world_size"),
            ({"rank": 2, "world_size": 2}, "rank must lie"),
        ):
            with pytest.raises(ValueError, match=complaint):
                QualitySampler(scores_of(4), **options)
        with pytest.raises(ValueError, match="epoch"):
            QualitySampler(scores_of(4)).set_epoch(-1)


class Numbers(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, index):
        return index


class TestResume:
    @pytest.mark.parametrize("world_size", [1, 2])
    def test_every_cut_goes_on_exactly(self, world_size):
        def make(rank):
            return QualitySampler(scores_of(20), num_samples=14, rank=rank, world_size=world_size)

        for rank in range(world_size):
            whole = make(rank)
            epochs = [list(whole) for _ in range(3)]
            for cut in range(len(epochs[1]) + 1):
                running, resumed = make(rank), make(rank)
                running.set_epoch(1)
                iterator = iter(running)
                for _ in range(cut):
                    next(iterator)
                resumed.load_state_dict(running.state_dict())
                assert resumed.epoch == (1 if cut < len(epochs[1]) else 2)
                resumed.set_epoch(resumed.epoch)  # as a loop does; it keeps the position
                rest = epochs[1][cut:] if cut < len(epochs[1]) else epochs[2]
                assert list(resumed) == rest
                if cut < len(epochs[1]):
                    assert list(resumed) == epochs[2]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_loader_draws_ahead_and_the_run_resumes_where_it_trained(self, workers):
        def loader(sampler):
            return DataLoader(Numbers(), batch_size=4, sampler=sampler, num_workers=workers)

        whole = [batch.tolist() for batch in loader(QualitySampler(scores_of(60)))]
        sampler, trained = QualitySampler(scores_of(60)), []
        for batch in loader(sampler):
            trained.append(batch.tolist())
            if len(trained) == 5:
                state = sampler.state_dict(seen=5 * 4)
                break
        resumed = QualitySampler(scores_of(60))
        resumed.load_state_dict(state)
        for batch in loader(resumed):
            trained.append(batch.tolist())
            if len(trained) == 9:
                state = resumed.state_dict(seen=4 * 4)  # since the resume
                break
        third = QualitySampler(scores_of(60))
        third.load_state_dict(state)
        trained += [batch.tolist() for batch in loader(third)]
        assert trained == whole

    def test_on_another_number_of_ranks(self):
        one = QualitySampler(scores_of(20), num_samples=16)
        iterator = iter(one)
        for _ in range(6):
            next(iterator)
        parts = []
        for rank in range(2):
            resumed = QualitySampler(scores_of(20), num_samples=16, rank=rank, world_size=2)
            resumed.load_state_dict(one.state_dict())
            parts.append(list(resumed))
        joint = [index for pair in zip(*parts, strict=True) for index in pair]
        assert joint == one.sequence(0)[6:].tolist()

    @pytest.mark.parametrize("world_size", [1, 3, 4])
    def test_after_an_epoch_with_a_dropped_remainder_comes_the_next(self, world_size):
        options = {"rank": 0, "world_size": world_size, "drop_last": True}
        first, resumed = QualitySampler(scores_of(50), **options), QualitySampler(scores_of(50), **options)
        list(first)
        resumed.load_state_dict(first.state_dict())
        assert resumed.epoch == 1
        assert list(resumed) == list(first)

    def test_a_state_of_other_draws_is_refused(self):
        state = QualitySampler(scores_of(20)).state_dict()
        for other in (
            QualitySampler(scores_of(20, seed=1)),
            QualitySampler(scores_of(20), temperature=2.0),
            QualitySampler(scores_of(20), num_samples=10),
            QualitySampler(scores_of(20), seed=1),
        ):
            with pytest.raises(ValueError, match="of other draws"):
                other.load_state_dict(state)
        with pytest.raises(ValueError, match="expected the state of a QualitySampler"):
            QualitySampler(scores_of(20)).load_state_dict({"epoch": 1})

    def test_the_state_is_plain(self):
        import json

        state = QualitySampler(scores_of(20)).state_dict()
        assert json.loads(json.dumps(state)) == state
