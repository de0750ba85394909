"""Two processes decide, draw and save what one does, also when one of them cannot save."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import two_ranks

from qa_hooks.callbacks import (
    BestCheckpoint,
    EarlyStop,
    Hooks,
    Monitor,
    PerceptionDistortion,
    ScoreHistogram,
    ScoreMonitor,
    ScorePanel,
)
from qa_hooks.scorers import PSNR
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness


class Model:
    """Samples that grow brighter until step 3 and darker after it."""

    step = 0

    def __call__(self, n: int, generator: torch.Generator) -> torch.Tensor:
        strength = 1 - 0.2 * abs(self.step - 3)
        return torch.rand(n, 1, 12, 12, generator=generator) * strength


def run(rank: int, world: int, folder: str) -> dict:
    """A run with every panel and decision; what it wrote, decided and called."""
    model, saved, writer = Model(), [], MemoryWriter()

    def save(path: Path) -> None:
        saved.append(model.step)
        path.write_text(f"{model.step} of rank {rank}")

    def save_all(path: Path) -> None:  # a sharded checkpoint, which communicates
        path.mkdir(exist_ok=True)
        (path / f"shard_{rank}").write_text(str(model.step))
        if world > 1:
            dist.barrier()

    truth = torch.rand(10, 1, 12, 12, generator=torch.Generator().manual_seed(5))
    real = torch.rand(50, 1, 12, 12, generator=torch.Generator().manual_seed(6))
    monitor = ScoreMonitor(brightness(), every=1, sample=model, n=20, batch_size=6)
    callbacks = [
        monitor,
        ScorePanel(model, brightness(), every=1, n=6),
        ScoreHistogram(model, real, brightness(), every=1, n=20, batch_size=6),
        PerceptionDistortion(brightness(), PSNR(), images="pred", reference="target", every=1, name="loop"),
        PerceptionDistortion(brightness(), PSNR(), images=model, reference=truth, every=1, name="fixed"),
        BestCheckpoint(monitor, "mean", mode="max", save=save, folder=f"{folder}/one"),
        BestCheckpoint(monitor, "std", mode="max", save=save_all, folder=f"{folder}/all", all_ranks=True),
        EarlyStop(monitor, "mean", mode="max", patience=2),
    ]
    hooks = Hooks(callbacks, writer=writer)
    mine = truth if world == 1 else truth[:7] if rank == 0 else truth[7:]
    for step in range(1, 9):
        model.step = step
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            hooks.step(pred=mine * (0.5 + 0.05 * step), target=mine)
        if hooks.should_stop:
            break
    return {
        "stopped": hooks.step_count,
        "saved": saved,
        "last": {callback.state_key: callback.last for callback in callbacks[:5]},
        "best": [callback.best for callback in callbacks[5:7]],
        "decisions": [callback.state_dict() for callback in callbacks[5:]],
        "scalars": {tag: points for tag, points in writer.scalars.items() if "qa_perf" not in tag},
        "images": {tag: [picture for _, picture in pictures] for tag, pictures in writer.images.items()},
    }


def close(a, b) -> bool:
    return str(a) == str(b) or torch.allclose(torch.tensor(a), torch.tensor(b), rtol=1e-6, atol=1e-6)


def test_two_ranks_decide_and_draw_what_one_does(tmp_path):
    (tmp_path / "ranks").mkdir()
    first, second = two_ranks(partial(run, world=2, folder=str(tmp_path / "two")), tmp_path / "ranks")
    alone = run(0, 1, str(tmp_path / "alone"))
    assert [result["stopped"] for result in (alone, first, second)] == [5, 5, 5]
    assert (alone["saved"], first["saved"], second["saved"]) == ([1, 2, 3], [1, 2, 3], [])
    assert str(first["last"]) == str(second["last"])
    assert str(first["decisions"]) == str(second["decisions"])
    for key, values in alone["last"].items():
        assert values.keys() == first["last"][key].keys()
        assert all(close(value, first["last"][key][name]) for name, value in values.items()), key
    assert [entry["path"] for entry in first["best"]] == [entry["path"] for entry in alone["best"]]
    assert second["scalars"] == {}
    assert second["images"] == {}
    assert first["scalars"].keys() == alone["scalars"].keys()
    assert all(close(points, first["scalars"][tag]) for tag, points in alone["scalars"].items())
    for tag, pictures in alone["images"].items():
        assert all(torch.equal(a, b) for a, b in zip(pictures, first["images"][tag], strict=True)), tag
    assert (tmp_path / "two" / "one" / "step_00000003").read_text() == "3 of rank 0"
    sharded = json.loads((tmp_path / "two" / "all" / "best.json").read_text())["path"]
    assert sorted(path.name for path in (tmp_path / "two" / "all" / sharded).iterdir()) == ["shard_0", "shard_1"]


class Told(Monitor):
    def __init__(self, values) -> None:
        super().__init__(every=1)
        self.values, self.last = values, {}

    def reduce(self, ctx, part):
        self.last = {"step": ctx.step, "fd": self.values[ctx.step - 1]}


def failing(rank: int, folder: str) -> dict:
    """Each rank in turn cannot save; then one of them measures something else."""
    values, results = [5.0, 4.0, 3.0, 2.0], {}
    step = 0

    def save(path: Path) -> None:
        path.mkdir(exist_ok=True)
        (path / str(rank)).write_text("")
        if (rank, step) in ((0, 2), (1, 3)):
            raise OSError("No space left on device")

    monitor = Told(values)
    best = BestCheckpoint(monitor, "fd", mode="min", save=save, folder=folder, all_ranks=True)
    hooks = Hooks([monitor, best])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 5):
            hooks.step()
            results[f"best {step}"] = best.best["step"]
    results["warnings"] = [str(warning.message) for warning in caught]
    results["failures"] = best.failures

    monitor = Told([1.0, 1.0] if rank == 0 else [1.0, 0.0])  # they disagree: the first one's number counts
    hooks = Hooks([monitor, EarlyStop(monitor, "fd", mode="min", patience=1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hooks.step()
        hooks.step()
    results["stopped"] = hooks.should_stop
    return results


def test_a_rank_that_cannot_save_keeps_all_from_it(tmp_path):
    (tmp_path / "ranks").mkdir()
    first, second = two_ranks(partial(failing, folder=str(tmp_path / "best")), tmp_path / "ranks")
    for result in (first, second):
        assert [result[f"best {step}"] for step in range(1, 5)] == [1, 1, 1, 4]
        assert result["failures"] == 2
        assert result["stopped"]
    assert second["warnings"] == []
    assert len(first["warnings"]) == 1
    assert "No space left on device (on rank 0)" in first["warnings"][0]
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["best.json", "step_00000004"]
