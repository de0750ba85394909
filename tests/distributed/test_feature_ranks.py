"""Extraction on two processes gives the features of one."""

from __future__ import annotations

import torch
from ranks import two_ranks
from torch.utils.data import DataLoader, DistributedSampler

from qa_hooks.features import create_extractor, extract_features


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def extraction(rank: int) -> dict:
    extractor = create_extractor("random", width=4)
    shared = extract_features(extractor, images(7), batch_size=2)
    own = extract_features(extractor, iter([images(7)[:5] if rank == 0 else images(7)[5:]]))
    one = extract_features(extractor, images(1))
    try:
        extract_features(extractor, iter([images(2) if rank == 0 else images(2) * float("nan")]))
        message = ""
    except (RuntimeError, ValueError) as error:
        message = f"{type(error).__name__}: {error}"
    sampler = DistributedSampler(images(7), num_replicas=2, rank=rank, shuffle=True)
    loader = DataLoader(images(7), batch_size=3, sampler=sampler)
    padded = extract_features(extractor, loader)
    return {
        "shared": shared.values,
        "indices": shared.indices,
        "own": own.values,
        "one": one.values,
        "message": message,
        "padded": padded.values,
    }


def test_two_processes_share_the_work_and_fail_together(tmp_path):
    extractor = create_extractor("random", width=4)
    expected = extractor(images(7)).detach()
    results = two_ranks(extraction, tmp_path)
    assert results[0]["message"].startswith("RuntimeError: ValueError: images: some values are not finite")
    assert "on rank 1" in results[0]["message"]
    assert results[1]["message"].startswith("ValueError: images: some values are not finite")
    for result in results:
        assert torch.allclose(result["padded"], expected, atol=1e-5)
        assert torch.allclose(result["shared"], expected, atol=1e-5)
        assert result["indices"].tolist() == list(range(7))
        assert torch.allclose(result["own"], expected, atol=1e-5)
        assert torch.allclose(result["one"], expected[:1], atol=1e-5)
