"""Two processes make the table of one, and draw disjoint halves of one sequence."""

from __future__ import annotations

import torch
from ranks import two_ranks

from qa_hooks.data import QualitySampler, QualityTable
from qa_hooks.images import save_image
from qa_hooks.scorers import FunctionScorer


def level() -> FunctionScorer:
    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name="level", higher_is_better=True)


def paint(root) -> None:
    for folder in ("original", "enhanced_1"):
        (root / folder).mkdir(parents=True)
        for index in range(7):
            brightness = 10 * index + 3 * (folder == "enhanced_1") + 1
            save_image(torch.full((3, 8, 8), brightness, dtype=torch.uint8), root / folder / f"{index}.png")


class TwoRanks:
    """Picklable, so that the processes can be told where to work."""

    def __init__(self, root) -> None:
        self.root = root

    def __call__(self, rank: int) -> dict:
        options = {"layout": "folders", "progress": False, "batch_size": 1}
        table = QualityTable.compute(self.root / "data", level(), self.root / "two.csv", **options)
        sampler = QualitySampler(table.values[:, 0], num_samples=9)
        sampler.set_epoch(2)
        drawn = list(sampler)
        resumed = QualitySampler(table.values[:, 0], num_samples=9)
        resumed.load_state_dict(sampler.state_dict(seen=2))
        try:
            other = FunctionScorer(lambda x: x.mean((1, 2, 3)), name="other", higher_is_better=True)
            QualityTable.compute(self.root / "data", other, self.root / "two.csv", **options)
            refused = ""
        except (ValueError, RuntimeError) as error:
            refused = str(error)
        return {"values": table.values, "drawn": drawn, "resumed": list(resumed), "refused": refused}


def test_two_ranks_make_one_table_and_draw_one_sequence(tmp_path):
    paint(tmp_path / "data")
    one = QualityTable.compute(
        tmp_path / "data", level(), tmp_path / "one.csv", layout="folders", progress=False, batch_size=1
    )
    results = two_ranks(TwoRanks(tmp_path), tmp_path)
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    sampler = QualitySampler(one.values[:, 0], num_samples=9)
    whole = sampler.sequence(2).tolist()
    for rank, result in enumerate(results):
        assert torch.equal(result["values"], one.values)
        assert result["drawn"] == [*whole, whole[0]][rank::2]  # nine draws: the tenth is the first again
        assert result["resumed"] == [*whole[4:], whole[4]][rank::2]
        assert "cannot be continued with other settings" in result["refused"]
