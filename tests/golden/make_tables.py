"""Makes the golden tables in tests/golden/tables: `python tests/golden/make_tables.py`, run once, by the first version.

Later versions must still load them and go on from them (tests/unit/folders/test_golden_tables.py), so they are made
again for a new format only, under another name. Folders stand in the files as "@ROOT@".
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from qa_hooks.data import QualityTable
from qa_hooks.folders import score_folder, watch_folder
from qa_hooks.scorers import FunctionScorer

HERE = Path(__file__).resolve().parent / "tables"
NAMES = ("a.png", "b, c.png", "d.png", "sub/e.png", "sub/f.png")
STARTED = 4_000_000_000.0  # later than any checkout: the rows of images that have not changed since then are kept


class Level(FunctionScorer):
    """Mean grey level; refuses images of one level, and is killed before one of another."""

    def __init__(self, *, killed_at: int = -1) -> None:
        super().__init__(self.function, name="level", higher_is_better=True, score_range=(0.0, 1.0))
        self.seen, self.killed_at = 0, killed_at

    def function(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        levels = images.mean((1, 2, 3))
        if (levels * 255).round().eq(self.killed_at).any():
            raise KeyboardInterrupt
        return levels


def paint(root: Path) -> None:
    """Five pictures of one level each, 10, 20, ..., and a file that is none."""
    for index, name in enumerate(NAMES, 1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 12, 3), 10 * index, dtype=np.uint8)).save(root / name)
    (root / "broken.png").write_bytes(b"not a picture")


def make(work: Path) -> None:
    """All tables, of the pictures in `work / "images"`."""
    images = work / "images"
    calibrated = Level().fit_calibration(torch.linspace(0, 0.3, 50))
    score_folder(images, calibrated, work / "scores.csv", progress=False)
    for name, options in (("half", {}), ("tiles", {"tiles": 8})):
        path = work / f"{name}.csv"
        with contextlib.suppress(KeyboardInterrupt):
            score_folder(images, Level(killed_at=40), path, batch_size=1, progress=False, **options)
        torn = path.read_bytes()  # as a second process and a machine that lost power leave it
        path.write_bytes(torn[:-6])
    shutil.copy(work / "half.csv.json", work / "parts.csv.json")
    (work / "parts.csv").write_text("path,level\na.png,0.039215688\n")
    (work / "parts.csv.part1").write_text('path,level\n"b, c.png",0.078431375\nd.png,0.1')
    QualityTable.compute(images, Level(), work / "quality.csv", progress=False)
    with contextlib.suppress(KeyboardInterrupt):
        QualityTable.compute(images, Level(killed_at=40), work / "half_quality.csv", batch_size=1, progress=False)
    for step in (100, 200):
        (work / f"samples/step_{step}").mkdir(parents=True)
        for name in NAMES[:3]:
            picture = np.asarray(Image.open(images / name)) + step // 10
            Image.fromarray(picture.astype(np.uint8)).save(work / f"samples/step_{step}" / name)
    watch_folder(
        work / "samples",
        scorers=Level(),
        once=True,
        every=0.01,
        log_dir=work / "watch",
        alarms=["level>0.15"],
        say=lambda line: None,
    )
    for events in (work / "watch").glob("events.*"):
        events.unlink()


def main() -> None:
    """Make them and replace what differs from machine to machine."""
    with tempfile.TemporaryDirectory() as made:
        work = Path(made).resolve() / "tables"
        paint(work / "images")
        make(work)
        for path in (*work.glob("*.json"), *work.glob("watch/*.json*")):
            text = path.read_text().replace(str(work), "@ROOT@")
            if '"started"' in text:
                text = json.dumps({**json.loads(text), "started": STARTED}, indent=1) + "\n"
            path.write_text(text)
        shutil.rmtree(HERE, ignore_errors=True)
        shutil.copytree(work, HERE)


if __name__ == "__main__":
    main()
