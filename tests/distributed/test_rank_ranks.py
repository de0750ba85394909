"""A ranking scorer of two processes: the first one trains, and both have the scorer of one process."""

from __future__ import annotations

import pytest
import torch
from ranks import two_ranks

from qa_hooks.scorers.rank.scorer import RankScorer


def images() -> torch.Tensor:
    return torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def fit(source: object) -> dict:
    settings = {"steps": 4, "crop": 16, "crops": 1, "calibration": "ecdf", "held_out": 0.9, "warn_below": 0}
    scorer = RankScorer().fit(source, **settings, progress=False)
    facts = {"real_level": scorer.real_level, "accuracies": scorer.accuracies, "fingerprint": scorer.fingerprint}
    return {"scores": scorer(images()), "points": scorer.calibration.points, **facts}


def on_two(rank: int) -> dict:
    mine = images()[:6] if rank == 0 else images()[6:]
    result = {"shared": fit(images()), "parts": fit(iter([mine])), "errors": []}
    # Rank 1 alone fails, while it reads; then rank 0 alone, before it trains.
    for source in (iter([mine if rank == 0 else mine * float("nan")]), torch.full((9, 1, 16, 16), 0.5)):
        try:
            fit(source)
        except (ValueError, RuntimeError) as error:
            result["errors"].append(str(error))
    return result


@pytest.mark.filterwarnings("ignore:a ranking scorer has .* images to learn from")
def test_two_processes_fit_what_one_does(tmp_path):
    first, second = two_ranks(on_two, tmp_path)
    alone = fit(images())
    for result in (first, second):
        assert torch.equal(result["shared"]["scores"], alone["scores"])
        assert torch.equal(result["shared"]["points"], alone["points"])
        assert {name: result["shared"][name] for name in ("real_level", "accuracies", "fingerprint")} == {
            name: alone[name] for name in ("real_level", "accuracies", "fingerprint")
        }
        assert torch.equal(result["parts"]["scores"], first["parts"]["scores"])
        assert len(result["parts"]["points"]) == 11  # of all images, not of one process's
        assert "images: some values are not finite" in result["errors"][0]
        assert "at least two images" in result["errors"][1]
    assert "(on rank 1)" in first["errors"][0]
    assert "(on rank 0)" in second["errors"][1]
