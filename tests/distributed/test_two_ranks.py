"""Two gloo processes give the numbers of one, and a rank that fails does not leave the other waiting."""

from __future__ import annotations

import warnings

import pytest
import torch
from ranks import two_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from qa_hooks._base.processes import all_reduce_sum, first_error, gather_rows
from qa_hooks._base.random import OwnRandom
from qa_hooks.callbacks import Hooks, Monitor, NaNGuard, SampleGrid, ScoreMonitor, TrainingStopped
from qa_hooks.callbacks.means import Means
from qa_hooks.features.moments import Moments
from qa_hooks.penalties import NIQEPenalty, QAGANPenalty, fit_gradient_model
from qa_hooks.scorers import FunctionScorer
from qa_hooks.writers import MemoryWriter


def rows() -> torch.Tensor:
    return torch.randn(31, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 50


def statistics(rank: int) -> dict:
    mine = rows()[:20] if rank == 0 else rows()[20:]
    moments = Moments(4)
    moments.update(mine)
    merged = moments.reduced()
    means = Means()
    means.add("a", float(rank))
    means.add("a", 4.0 * rank)
    flushed = means.flush()
    means.add(f"only on {rank}", 1.0)
    try:
        means.flush()
        disagreement = ""
    except ValueError as error:
        disagreement = str(error)
    try:
        gather_rows(torch.zeros(2, 3 + rank))
        shapes = ""
    except ValueError as error:
        shapes = str(error)
    return {
        "rows": gather_rows(mine),
        "rows of rank 1 alone": gather_rows(torch.zeros(0, 0) if rank == 0 else torch.ones(2, 3)),
        "no rows": gather_rows(torch.zeros(0, 4)),
        "shapes": shapes,
        "mean": merged.mean(),
        "covariance": merged.covariance(),
        "count": merged.count,
        "sum": all_reduce_sum(torch.tensor([rank + 1.0])),
        "flushed": flushed,
        "disagreement": disagreement,
        "well": first_error(None),
        "ill": first_error(ValueError("disk on fire") if rank == 1 else None),
        "draw": torch.rand(3, generator=OwnRandom(0).generator()),
    }


def test_statistics(tmp_path):
    results = two_ranks(statistics, tmp_path)
    for result in results:
        assert torch.equal(result["rows"], rows())
        assert torch.equal(result["rows of rank 1 alone"], torch.ones(2, 3))
        assert result["no rows"].shape == (0, 4)
        assert "one shape, got [(3,), (4,)]" in result["shapes"]
        assert torch.allclose(result["mean"], rows().mean(0), rtol=1e-12)
        assert torch.allclose(result["covariance"], torch.cov(rows().T), rtol=1e-10)
        assert result["count"] == 31
        assert result["sum"].item() == 3
        assert result["flushed"] == {"a": 1.25}
        assert "the ranks recorded different scalars" in result["disagreement"]
        assert result["well"] is None
        assert result["ill"] == "ValueError: disk on fire (on rank 1)"
    assert not torch.equal(results[0]["draw"], results[1]["draw"])


def make_critic() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 1)]
    return nn.Sequential(*layers).double()


def real_images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)).double()


def critic_step(critic: nn.Module, images: torch.Tensor, mode: str, fitted_on: list[torch.Tensor]) -> dict:
    """A critic's gradient with every penalty. Real and fake are the same, so that no random mix enters."""
    model = fit_gradient_model(make_critic(), fitted_on, progress=False)
    penalty = QAGANPenalty(
        "both", value_range=(0, 1), model=model, niqe_mode=mode, quality_weight=0.3, drift_weight=0.01, gp_weight=1.0
    )
    shifted = images.flip(-1)
    loss = critic(images).mean() - critic(shifted).mean() + penalty(critic, images, images)
    loss = loss + QAGANPenalty("ssim", value_range=(0, 1), gp_weight=0)(critic, images, shifted)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in critic.parameters()])
    return {"gradient": gradient, "niqe": float(penalty.terms["niqe"])}


def mvg_rank(rank: int) -> dict:
    return _critic_rank(rank, "mvg")


def sample_rank(rank: int) -> dict:
    return _critic_rank(rank, "sample")


def _critic_rank(rank: int, mode: str) -> dict:
    critic = DistributedDataParallel(make_critic())
    return critic_step(critic, real_images(64, 9)[32 * rank : 32 * rank + 32], mode, [real_images(400, 5 + rank)])


@pytest.mark.parametrize(("mode", "function"), [("mvg", mvg_rank), ("sample", sample_rank)])
def test_a_critic_step_under_ddp_is_that_of_the_joint_batch(tmp_path, mode, function):
    expected = critic_step(make_critic(), real_images(64, 9), mode, [real_images(400, 5), real_images(400, 6)])
    results = two_ranks(function, tmp_path)
    if mode == "mvg":  # global statistics: each rank knows the distance of the joint batch
        assert all(result["niqe"] == pytest.approx(expected["niqe"], rel=1e-6) for result in results)
    else:
        assert sum(result["niqe"] for result in results) / 2 == pytest.approx(expected["niqe"], rel=1e-6)
    assert torch.equal(results[0]["gradient"], results[1]["gradient"])
    error = (results[0]["gradient"] - expected["gradient"]).abs().max()
    assert error < 1e-6 * expected["gradient"].abs().max()


def warmup(rank: int) -> dict:
    penalty = NIQEPenalty(value_range=(0, 1), warmup=4)
    for call in range(5):
        images = real_images(128, 100 + call)
        penalty(make_critic(), *[images[64 * rank : 64 * rank + 64]] * 2)
    return {"mean": penalty.model.mean, "count": penalty.model.count}


def test_warmup_gathers_from_all_ranks(tmp_path):
    results = two_ranks(warmup, tmp_path)
    alone = fit_gradient_model(make_critic(), [real_images(128, 100 + call) for call in range(4)], progress=False)
    for result in results:
        assert result["count"] == alone.count == 512
        assert torch.allclose(result["mean"], alone.mean, rtol=1e-6)


class Fails(Monitor):
    """Raises on one rank, in one of its two parts."""

    def __init__(self, where: str) -> None:
        super().__init__(every=1)
        self.where, self.runs = where, 0

    def local(self, ctx):
        if self.where == "local" and ctx.rank == 1:
            raise RuntimeError("no memory left")
        return torch.ones(1)

    def reduce(self, ctx, part):
        gather_rows(part)
        self.runs += 1
        if self.where == "reduce" and ctx.rank == 1:
            raise RuntimeError("no space left")


def brightness() -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="brightness", higher_is_better=True)


def monitor_run() -> dict:
    writer = MemoryWriter()
    sample = lambda n, rng: torch.rand(n, 1, 4, 4, generator=rng)  # noqa: E731
    callbacks = [ScoreMonitor(brightness(), every=1, sample=sample, n=100, batch_size=32), SampleGrid(sample, every=1)]
    with Hooks(callbacks, writer=writer, log_every=1) as hooks:
        hooks.record(loss=1.0)
        hooks.step()
    return {"scalars": {k: v for k, v in writer.scalars.items() if "perf" not in k}, "grids": len(writer.images)}


def guards(rank: int) -> dict:
    """Something is not finite on rank 1 only; both ranks must skip, and stop, at the same step."""
    result = {"steps": [], "stopped": 0}
    for action in ("skip", "stop"):
        parameter = nn.Parameter(torch.zeros(2))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooks = Hooks([NaNGuard(action)]).attach(optimizer)
            try:
                for step in range(3):
                    parameter.grad = torch.ones(2) * (float("nan") if step == 1 and rank == 1 else 1.0)
                    optimizer.step()
            except TrainingStopped:
                result["stopped"] = step
            hooks.close()
        result["steps"].append(float(parameter[0]))
    return result


def test_nan_guards_act_together(tmp_path):
    for result in two_ranks(guards, tmp_path):
        assert result == {"steps": [-2.0, -1.0], "stopped": 1}


def monitors(rank: int) -> dict:
    result = monitor_run()
    for where in ("local", "reduce"):
        monitor = Fails(where)
        hooks = Hooks([monitor])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                hooks.step()
        result[where] = [str(w.message) for w in caught if "switched off" in str(w.message)]
        result[f"{where} runs"] = monitor.runs
    slow = Hooks([ScoreMonitor(brightness(), every=1, images="x")], budget=0.01)
    for _ in range(20):  # the ranks' clocks differ, their decisions must not
        slow.step(x=torch.zeros(2 + rank, 1, 4, 4))
    return result


def test_monitors(tmp_path):
    first, second = two_ranks(monitors, tmp_path)
    alone = monitor_run()
    assert set(first["scalars"]) == set(alone["scalars"])
    for tag, points in alone["scalars"].items():
        assert first["scalars"][tag][0][1] == pytest.approx(points[0][1], rel=1e-6)
    assert first["grids"] == 1
    assert second["scalars"] == {}
    assert second["grids"] == 0
    assert len(first["local"]) == 1
    assert "no memory left (on rank 1)" in first["local"][0]
    assert second["local"] == []
    assert first["local runs"] == 0
    assert "no space left (on rank 1)" in first["reduce"][0]
    assert first["reduce runs"] == second["reduce runs"] == 1
