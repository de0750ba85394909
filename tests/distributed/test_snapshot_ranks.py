"""Snapshots of two processes: the first one writes them and trains on them, and both have the scorer of one process."""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
from ranks import two_ranks

from qa_hooks.callbacks import Hooks, SnapshotCollector
from qa_hooks.scorers.giqa.snapshot import BCScorer, MBCScorer


def sample(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(n, 1, 12, 12, generator=generator)


def collect(folder: str) -> None:
    hooks = Hooks([SnapshotCollector(sample, folder=folder, every=2, n=20)])
    for _ in range(4):
        hooks.step()
    hooks.close()


def real_images() -> torch.Tensor:
    return torch.rand(60, 1, 12, 12, generator=torch.Generator().manual_seed(1)) ** 3


def fit(folder: str, real: object) -> dict:
    scorer = MBCScorer(2).fit_snapshots(folder, real, steps=4, progress=False)
    return {"scores": scorer(real_images()), "points": scorer.calibration.points, "report": str(scorer.report)}


def on_two(rank: int, folder: str) -> dict:
    collect(folder)
    dist.barrier()
    mine = real_images()[:40] if rank == 0 else real_images()[40:]
    result = {"shared": fit(folder, real_images()), "parts": fit(folder, iter([mine])), "errors": []}
    # Rank 1 alone fails, while it reads; then rank 0 alone, before it trains.
    for real in (iter([mine if rank == 0 else mine * float("nan")]), real_images()[:19]):
        try:
            BCScorer().fit_snapshots(folder, real, steps=2, progress=False)
        except (ValueError, RuntimeError) as error:
            result["errors"].append(str(error))
    return result


def test_two_processes_collect_and_fit_what_one_does(tmp_path):
    first, second = two_ranks(partial(on_two, folder=str(tmp_path / "two")), tmp_path)
    collect(str(tmp_path / "one"))
    files = [sorted(path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*")) for run in ("one", "two")]
    assert files[0] == files[1]
    for path in (path for path in files[0] if path.suffix):
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()
    alone = fit(str(tmp_path / "one"), real_images())
    for result in (first, second):
        for kind in ("shared", "parts"):
            assert torch.equal(result[kind]["scores"], alone["scores"])
            assert torch.equal(result[kind]["points"], alone["points"])
            assert result[kind]["report"] == alone["report"]
        assert "real: some values are not finite" in result["errors"][0]
        assert "at least 20 real images, got 19" in result["errors"][1]
    assert "(on rank 1)" in first["errors"][0]
    assert "(on rank 0)" in second["errors"][1]
