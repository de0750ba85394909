"""The shares of two processes are shares of one list, however late one of them looks at what is done."""

from __future__ import annotations

import time

import torch
from ranks import two_ranks

from qa_hooks.folders import score_folder
from qa_hooks.folders.scoring.growing import GrowingTable
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer


class LateSecondRank:
    """Picklable, so that the processes can be told where to work."""

    def __init__(self, root) -> None:
        self.root = root

    def __call__(self, rank: int) -> dict:
        look = GrowingTable.done

        def late(self):
            if rank:
                time.sleep(0.5)  # the first process would have written its first lines by now
            return look(self)

        GrowingTable.done = late
        scorer = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True)
        table = score_folder(self.root / "images", scorer, self.root / "out.csv", progress=False, batch_size=1)
        return {"paths": list(table.paths)}


def test_a_process_that_looks_late_has_its_own_share(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(7):
        save_image(torch.full((3, 8, 8), 10 * index + 1, dtype=torch.uint8), tmp_path / "images" / f"{index}.png")
    for found in two_ranks(LateSecondRank(tmp_path), tmp_path):
        assert found["paths"] == [f"{index}.png" for index in range(7)]
