"""A comparison on two processes gives the numbers of one, and a model that fails on one rank fails on both."""

from __future__ import annotations

import pytest
import torch
from ranks import two_ranks

from qa_hooks.evaluation.checkpoints import compare_checkpoints
from toy_scorers import brightness


def compared() -> list:
    real = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scorer = brightness()
    result = compare_checkpoints(
        lambda n, g: torch.rand(n, 3, 8, 8, generator=g),
        lambda n, g: torch.rand(n, 3, 8, 8, generator=g) ** 1.1,
        scorer, n=50, batch_size=16, real=real, extractor={"type": "random", "width": 8},
    )  # fmt: skip
    return [value for comparison in result.comparisons["B"].values() for value in comparison[:3]]


def on_rank(rank: int) -> list:
    def fails(n, generator):
        if rank == 1:
            raise ValueError("no samples here")
        return torch.rand(n, 3, 8, 8, generator=generator)

    scorer = brightness()
    try:
        compare_checkpoints(fails, fails, scorer, n=40, batch_size=10)
        message = ""
    except (RuntimeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    return [compared(), message]


def test_two_ranks_are_one(tmp_path):
    alone = compared()
    results = two_ranks(on_rank, tmp_path)
    for values, _ in results:
        assert values == pytest.approx(alone, rel=1e-6, abs=1e-9)
    # The rank that failed raises its own error, the other says whose it is.
    assert results[1][1] == "ValueError: no samples here"
    assert results[0][1].startswith("RuntimeError: ")
    assert "no samples here (on rank 1)" in results[0][1]
