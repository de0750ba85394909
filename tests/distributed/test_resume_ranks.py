"""On two processes ten steps equal five, each rank's own state, and five more; pending means included."""

from __future__ import annotations

import torch
from ranks import two_ranks

from qa_hooks.callbacks import Hooks, ScoreMonitor
from qa_hooks.writers import MemoryWriter
from toy_scorers import brightness


def steps(hooks: Hooks, numbers: range, rank: int) -> None:
    for number in numbers:
        hooks.record(loss=float(number + 10 * rank))
        hooks.step()


def make() -> tuple[Hooks, MemoryWriter]:
    scorer = brightness()
    sample = lambda n, rng: torch.rand(n, 1, 4, 4, generator=rng)  # noqa: E731
    writer = MemoryWriter()
    return Hooks([ScoreMonitor(scorer, every=5, sample=sample, n=40)], writer=writer, log_every=10), writer


def resume(rank: int) -> dict:
    whole, curve = make()
    steps(whole, range(10), rank)
    first, _ = make()
    steps(first, range(5), rank)
    second, resumed = make()
    second.load_state_dict(first.state_dict())
    steps(second, range(5, 10), rank)
    shown = [{k: v for k, v in w.scalars.items() if "perf" not in k} for w in (curve, resumed)]
    return {"whole": shown[0], "resumed": shown[1]}


def test_means_that_are_being_gathered_survive(tmp_path):
    first, second = two_ranks(resume, tmp_path)
    (tag,) = [tag for tag in first["whole"] if tag.startswith("qa_train/")]
    assert first["whole"][tag] == first["resumed"][tag] == [(10, 9.5)]
    for tag, points in first["whole"].items():
        assert first["resumed"][tag][-1] == points[-1]
    assert second["whole"] == {}
