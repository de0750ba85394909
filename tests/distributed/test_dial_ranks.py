"""The quality adapter on two gloo processes: gradients are averaged, and each rank drops its own rows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ranks import two_ranks

pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

import tiny_pipelines as tiny
from diffusers import DDPMScheduler

from qa_hooks.data import QualityTable
from qa_hooks.integrations.diffusers import QualityAdapter, sync_adapter
from qa_hooks.integrations.diffusers.denoising import denoising_loss


def train(rows: slice, drop: float = 0.0) -> dict:
    table = QualityTable([str(i) for i in range(8)], torch.arange(8.0)[:, None], "bright", True)
    unet = tiny.stable_diffusion()[0].unet.requires_grad_(False)
    torch.manual_seed(rows.start)  # ranks whose own random numbers differ make the same adapter
    adapter = QualityAdapter(unet, table, drop=(drop, 0.0, 0.0))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    sync_adapter(optimizer)
    q, dropped = adapter.of_images(table), []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        draws = [torch.randn(8, *shape, generator=generator)[rows] for shape in ((4, 8, 8), (4, 16), (4, 8, 8))]
        adapter.condition(q[rows])
        dropped.append(adapter.dial.next.q.isnan())
        condition, times = {"encoder_hidden_states": draws[1]}, torch.arange(8)[rows]
        options = {"condition": condition, "timesteps": times, "noise": draws[2]}
        denoising_loss(unet, DDPMScheduler(), draws[0], **options).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {"weights": torch.cat([p.detach().flatten() for p in adapter.parameters()]), "dropped": torch.cat(dropped)}


def halves(rank: int) -> dict:
    return {"trained": train(slice(4 * rank, 4 * rank + 4)), "dropping": train(slice(4 * rank, 4 * rank + 4), 0.5)}


def test_two_processes_train_the_adapter_of_one(tmp_path):
    first, second = two_ranks(halves, tmp_path)
    for kind in ("trained", "dropping"):
        assert torch.equal(first[kind]["weights"], second[kind]["weights"])
    torch.testing.assert_close(first["trained"]["weights"], train(slice(0, 8))["weights"], rtol=1e-4, atol=1e-6)
    assert not torch.equal(first["dropping"]["dropped"], second["dropping"]["dropped"])
