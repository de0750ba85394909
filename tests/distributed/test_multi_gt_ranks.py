"""Two ranks draw ground truths of their own, each the same as a single process that is told to be that rank."""

from __future__ import annotations

import os

import torch
from ranks import two_ranks

from qa_hooks.data import MultiGTDataset, select_ground_truth
from qa_hooks.data.low_resolution import HGGTDegradation
from qa_hooks.images import save_image


def write_sets(root):
    generator = torch.Generator().manual_seed(0)
    for folder in ("original", "enhanced_1", "enhanced_2"):
        (root / folder).mkdir(parents=True)
        for name in "abcd":
            image = (torch.rand(3, 40, 40, generator=generator) * 255).byte()
            save_image(image, root / folder / f"{name}.png")


def samples(root, rank=None) -> dict[str, torch.Tensor]:
    data = MultiGTDataset(root, strategy="random", crop=16, degradation=HGGTDegradation(), repeat=4, seed=3, rank=rank)
    data.set_epoch(2)
    items = [data[i] for i in range(len(data))]
    return {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in ("lq", "gt", "gt_index")}


def draw(rank):

    own = select_ground_truth(scores=torch.zeros(200, 5), strategy="random")
    return samples(os.environ["QA_HOOKS_TEST_ROOT"]) | {"own": own}


def test_ranks_draw_differently_and_exactly_again(tmp_path, monkeypatch):
    root = tmp_path / "sets"
    write_sets(root)
    monkeypatch.setenv("QA_HOOKS_TEST_ROOT", str(root))
    found = two_ranks(draw, tmp_path)
    for rank in range(2):
        for key, values in samples(root, rank).items():
            assert torch.equal(found[rank][key], values)
    assert not torch.equal(found[0]["gt_index"], found[1]["gt_index"])
    assert not torch.equal(found[0]["lq"], found[1]["lq"])
    assert float((found[0]["own"] == found[1]["own"]).float().mean()) < 0.4  # one in five, by chance
