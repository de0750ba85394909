"""GenerativeMonitor on two processes gives the numbers of one, and a process that fails does not hang the other."""

from __future__ import annotations

import warnings

import pytest
import torch
from ranks import two_ranks
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from qa_hooks.callbacks import GenerativeMonitor, Hooks
from qa_hooks.features.moments import Moments
from qa_hooks.scorers import GMMScorer
from qa_hooks.writers import MemoryWriter

EXTRACTOR = {"type": "random", "width": 4}


def images(count: int, seed: int = 0) -> torch.Tensor:
    smooth = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(smooth, (16, 16), mode="bilinear")


def sample(n: int, generator: torch.Generator) -> torch.Tensor:
    small = torch.rand(n, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")


def brightness_logits(batch: torch.Tensor) -> torch.Tensor:
    return 20 * batch.mean((2, 3))


def make_monitor(real, **options) -> GenerativeMonitor:
    settings = {"extractor": EXTRACTOR, "n": 61, "batch_size": 16, "every": 1, "groups": 5, **options}
    return GenerativeMonitor(settings.pop("sample", sample), real, **settings)


def measured(real, cache=None) -> dict:
    """Every metric at an uneven n, with the points that were written."""
    scorer = GMMScorer(EXTRACTOR, 2, pca=4).fit(images(120, 5), progress=False)
    metrics = ("fd", "kid", "pr", "is", "qs", "ds")
    options = {"metrics": metrics, "scorer": scorer, "classifier": brightness_logits, "cache": cache}
    monitor, writer = make_monitor(real, extractor=scorer.extractor, **options), MemoryWriter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Hooks([monitor], writer=writer) as hooks:
            hooks.step()
    points = {tag: found[0][1] for tag, found in writer.scalars.items() if tag.startswith("qa_eval")}
    return {"last": monitor.last, "spec": monitor.spec, "points": points}


def whole(rank: int) -> dict:
    return measured(images(83))


def padded(rank: int) -> dict:
    """What DDP scripts have: a loader with a distributed sampler, which repeats an image to make the parts even."""
    dataset = TensorDataset(images(83))
    return measured(DataLoader(dataset, 8, sampler=DistributedSampler(dataset, num_replicas=2, rank=rank)))


@pytest.mark.parametrize("function", [whole, padded])
def test_two_processes_give_the_numbers_of_one(tmp_path, function):
    alone = whole(0)
    assert {"fd", "kid", "recall", "is", "qs", "ds"} < set(alone["last"])
    first, second = two_ranks(function, tmp_path)
    assert first["last"] == second["last"]
    assert first["spec"] == second["spec"]
    assert first["last"] == pytest.approx(alone["last"], rel=1e-6, abs=1e-9)
    assert first["points"] == pytest.approx(alone["points"], rel=1e-6, abs=1e-9)
    assert second["points"] == {}
    if function is whole:
        assert first["spec"] == alone["spec"]


def few(rank: int) -> dict:
    """One block, so that one process has nothing to do."""
    monitor = make_monitor(images(60), n=50, batch_size=64, metrics=("fd", "is"), classifier=brightness_logits)
    with Hooks([monitor], writer=MemoryWriter()) as hooks:
        hooks.step()
    return monitor.last


def test_a_process_without_a_block(tmp_path):
    first, second = two_ranks(few, tmp_path)
    assert first == second
    assert first == pytest.approx(few(0), rel=1e-6)


def failures(rank: int) -> dict:
    """One process fails: while it samples, while it measures, and in the statistics of the real images."""

    def breaks(n: int, generator: torch.Generator) -> torch.Tensor:
        if rank == 1:
            raise RuntimeError("no memory left")
        return sample(n, generator)

    late = make_monitor(images(40))
    if rank == 0:
        late._check_spec = lambda spec: 1 / 0
    missing = make_monitor(images(40))
    if rank == 1:
        missing.real = "/nonexistent"
    result = {}
    for name, monitor in {"sample": make_monitor(images(40), sample=breaks), "late": late, "real": missing}.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hooks = Hooks([monitor], writer=MemoryWriter())
            for _ in range(3):
                hooks.step()
            hooks.close()
        result[name] = [str(w.message) for w in caught if "switched off" in str(w.message)]
        result[f"{name} last"] = len(monitor.last)
    return result


def test_a_failing_process_does_not_hang_the_other(tmp_path):
    first, second = two_ranks(failures, tmp_path)
    for name, message in {"sample": "no memory left", "late": "division by zero", "real": "nonexistent"}.items():
        assert len(first[name]) == 1, name
        assert message in first[name][0]
        assert second[name] == []
        assert first[f"{name} last"] == second[f"{name} last"] == 0


def cached(rank: int) -> dict:
    import tempfile

    from qa_hooks._base.processes import broadcast_tensors

    own = torch.tensor(list(tempfile.mkdtemp().encode()), dtype=torch.uint8) if rank == 0 else None
    folder = bytes(broadcast_tensors({"folder": own} if rank == 0 else None)["folder"].tolist()).decode()
    return {"new": measured(images(83), folder)["last"], "kept": measured(images(83), folder)["last"]}


def test_a_kept_reference_reaches_every_process(tmp_path):
    for result in two_ranks(cached, tmp_path):
        assert result["kept"] == result["new"]


def moments(rank: int) -> dict:
    rows = torch.randn(31, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 4000
    own = Moments(4)
    own.update(rows if rank == 0 else rows[:0])
    merged = own.reduced()
    return {"mean": merged.mean(), "covariance": merged.covariance(), "expected": torch.cov(rows.T)}


def test_moments_of_a_process_without_rows(tmp_path):
    for result in two_ranks(moments, tmp_path):
        assert torch.allclose(result["covariance"], result["expected"], rtol=1e-9)


def elsewhere_on_one(rank: int) -> dict:
    """The script asked for another process on rank 1 alone, before there was a process group."""
    monitor, weight = make_monitor(images(83)), torch.zeros(1)
    monitor.where = "process" if rank else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Hooks([monitor], writer=MemoryWriter()) as hooks:
            for _ in range(2):
                hooks.step()
                torch.distributed.all_reduce(weight)  # the training goes on
    said = [str(warning.message) for warning in caught if "where=" in str(warning.message)]
    return {"said": said, "last": dict(monitor.last)}


def test_a_place_that_one_process_asks_for_is_refused_on_all(tmp_path):
    first, second = two_ranks(elsewhere_on_one, tmp_path)
    assert len(first["said"]) == 1
    assert "where='process' is for training in one process" in first["said"][0]
    assert second["said"] == []
    assert first["last"] == second["last"] == {}
