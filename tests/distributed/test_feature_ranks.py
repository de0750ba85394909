"""Extraction on two processes gives the features of one."""

from __future__ import annotations

import torch
from ranks import two_ranks

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
    except RuntimeError as error:
        message = str(error)
    return {
        "shared": shared.values,
        "indices": shared.indices,
        "own": own.values,
        "one": one.values,
        "message": message,
    }


def test_two_processes_share_the_work_and_fail_together(tmp_path):
    extractor = create_extractor("random", width=4)
    expected = extractor(images(7)).detach()
    for result in two_ranks(extraction, tmp_path):
        assert torch.allclose(result["shared"], expected, atol=1e-5)
        assert result["indices"].tolist() == list(range(7))
        assert torch.allclose(result["own"], expected, atol=1e-5)
        assert torch.allclose(result["one"], expected[:1], atol=1e-5)
        assert "non-finite" in result["message"]
        assert "rank 1" in result["message"]
