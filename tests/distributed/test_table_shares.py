"""The shares of two processes are shares of one list, however late one of them looks at what is done."""

from __future__ import annotations

import time
import warnings

import torch
from ranks import two_ranks

from qa_hooks._base.containers import file_state
from qa_hooks.folders import score_folder
from qa_hooks.folders.scoring.growing import GrowingTable, journal_key
from qa_hooks.folders.scoring.journal import keep_suspects
from qa_hooks.folders.scoring.score_table import begun_path
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


class WithSuspects:
    """Picklable; tells which grey levels each process scored."""

    def __init__(self, root) -> None:
        self.root = root

    def __call__(self, rank: int) -> dict:
        seen = []

        def level(images):
            seen.append([round(float(image.max()) * 255) for image in images])
            return images.mean((1, 2, 3))

        warnings.simplefilter("ignore")
        scorer = FunctionScorer(level, name="level", higher_is_better=True)
        table = score_folder(self.root / "images", scorer, self.root / "out.csv", progress=False)
        return {"paths": list(table.paths), "seen": seen}


def test_the_first_process_works_on_the_suspects_and_one_by_one(tmp_path):
    """When it dies, the others are killed with it: an image that was alone in one of them would be accused wrongly."""
    (tmp_path / "images").mkdir()
    for index in range(12):
        save_image(torch.full((3, 8, 8), index, dtype=torch.uint8), tmp_path / "images" / f"{index:02d}.png")
    files = {path.name: file_state(path) for path in (tmp_path / "images").iterdir()}
    for rank, names in enumerate((["03.png"], ["07.png", "08.png"])):
        begun = {journal_key(name, files[name]): 0 for name in names}
        keep_suspects(begun_path(tmp_path / "out.csv", rank), begun)
    first, second = two_ranks(WithSuspects(tmp_path), tmp_path)
    assert first["seen"][:3] == [[3], [7], [8]]
    assert all(len(batch) > 1 for batch in first["seen"][3:] + second["seen"])
    assert not {3, 7, 8} & {level for batch in second["seen"] for level in batch}
    assert first["paths"] == second["paths"] == [f"{index:02d}.png" for index in range(12)]
    assert not list(tmp_path.glob("*.begun*"))
