"""Successive halving by hand, and what it saves on real ratings with metrics made of them and noise."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from qa_hooks.ratings import read_ratings
from qa_hooks.ratings.halving import successive_halving


def test_the_better_half_goes_on_and_contents_are_nested():
    seen = []

    def judge(names, contents):
        seen.append((list(names), set(contents)))
        return {name: -ord(name) for name in names}

    phases = successive_halving(list("dcbae"), range(81), judge, phases=4)
    assert [names for names, _ in seen] == [list("dcbae"), list("cba"), list("ba"), ["a"]]
    assert [len(contents) for _, contents in seen] == [5, 9, 27, 81]  # never fewer than an interval needs
    assert all(few < more for (_, few), (_, more) in itertools.pairwise(seen))
    assert [phase.dropped for phase in phases] == [["d", "e"], ["c"], ["b"], []]


def test_one_phase_judges_everything():
    (phase,) = successive_halving(["a", "b"], range(7), lambda names, _: dict.fromkeys(names, 0.5), phases=1)
    assert (phase.contents, list(phase.values), phase.dropped) == (7, ["a", "b"], [])
    with pytest.raises(ValueError, match="phases"):
        successive_halving(["a"], range(7), lambda names, _: dict.fromkeys(names, 0.5), phases=0)


@pytest.mark.slow
@pytest.mark.skipif("QA_HOOKS_RATINGS" not in os.environ, reason="QA_HOOKS_RATINGS=DIR names the real label files")
@pytest.mark.parametrize("file", ["agiqa3k_data.csv", "kadid10k.txt", "pipal.txt", "koniq10k_distributions_sets.csv"])
@pytest.mark.parametrize(("apart", "least"), [(1.12, 95), (1.03, 50)])
def test_halving_finds_the_winner_with_a_third_of_the_scorings(file, apart, least):
    """16 metrics made of the ratings and noise, of which a part is shared by a content; each has `apart` times more.

    Where metrics are close, another one than the best may win: what is lost then is small.
    """
    ratings = read_ratings(Path(os.environ["QA_HOOKS_RATINGS"]) / file)
    truth = ratings.goodness.numpy()
    truth = (truth - truth.mean()) / truth.std()
    labels = ratings.content or ratings.names
    codes = np.unique(labels, return_inverse=True)[1]
    contents, same, near, shares = list(range(codes.max() + 1)), 0, [], []
    for seed in range(100):
        g = np.random.default_rng(seed)
        metrics = {}
        for rank in range(16):
            noise = g.normal(size=len(truth)) + 0.5 * g.normal(size=len(contents))[codes]
            metrics[f"m{rank}"] = truth + 0.5 * apart**rank * noise
        made = []

        def judge(names, some, metrics=metrics, made=made):
            rows = np.isin(codes, list(some))
            made.append((names, rows))
            return {name: spearmanr(metrics[name][rows], truth[rows]).statistic for name in names}

        phases = successive_halving(list(metrics), contents, judge, phases=4, seed=seed)
        winner = max(phases[-1].values, key=phases[-1].values.get)
        everything = judge(list(metrics), contents)
        best = max(everything, key=everything.get)
        same += winner == best
        near.append(everything[best] - everything[winner])
        scored = np.zeros((16, len(truth)), dtype=bool)
        for names, rows in made[:-1]:
            for name in names:
                scored[int(name[1:])] |= rows
        shares.append(scored.mean())
    print(
        f"{file}, noise x {apart}: the same winner in {same} of 100, {np.mean(shares):.1%} of the scorings, "
        f"loses {np.mean(near):.4f}, at most {max(near):.4f} SRCC"
    )
    assert np.mean(shares) <= 1 / 3
    assert same >= least
    assert max(near) < 0.02
