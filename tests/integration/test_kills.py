"""Two hundred processes killed with SIGKILL at any moment: nothing is lost, and nothing is left over afterwards.

Each process is forked from a warm one and works for itself. Seven of ten are killed by themselves just before a file
operation that a seed has drawn (an audit hook counts what happens below the folder: open, rename, remove, make, list),
three of ten by a thread of their own after a time that it has drawn. What must hold is checked after each kill, and
the last process of a chain runs to its end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from qa_hooks.callbacks import BestCheckpoint, Hooks
from qa_hooks.callbacks.callback import Monitor
from qa_hooks.folders import score_folder, watch_folder
from qa_hooks.images import list_images, load_image, save_image
from qa_hooks.scorers import FunctionScorer, GMMScorer, load_scorer
from qa_hooks.writers import MemoryWriter

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="SIGKILL")]
KILLS, IN_A_ROW = 50, 5  # of each activity, and before a process may run to its end
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "shutil.rmtree"}
VALUES = [9.0, 7.0, 8.0, 5.0, 6.0, 4.0, 4.5, 3.0]


def level(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


class Told(Monitor):
    """A monitor that measures what it was told."""

    def __init__(self) -> None:
        super().__init__(every=1)
        self.last: dict[str, float] = {}

    def reduce(self, ctx, part) -> None:
        self.last = {"step": ctx.step, "fd": VALUES[ctx.step - 1]}


def score(images: Path, folder: Path) -> None:
    scorer = FunctionScorer(level, name="level", higher_is_better=True)
    score_folder(images, scorer, folder / "scores.csv", batch_size=2, progress=False)


def watch(images: Path, folder: Path) -> None:
    scorer = FunctionScorer(level, name="level", higher_is_better=True)
    watch_folder(images, scorers=scorer, once=True, every=0.01, log_dir=folder, say=str)


def fit(images: Path, folder: Path) -> None:
    scorer = GMMScorer("random", components=1, pca=2)
    scorer.fit(images, calibration=None, progress=False)
    scorer.save(folder / "gmm.safetensors")


def best(images: Path, folder: Path) -> None:
    step = 0

    def save(path: Path) -> None:
        path.mkdir()
        for part in ("a", "b"):
            (path / part).write_text(str(step))

    monitor = Told()
    hooks = Hooks(
        [monitor, BestCheckpoint(monitor, "fd", mode="min", save=save, folder=folder, keep=2)], writer=MemoryWriter()
    )
    while step < len(VALUES):
        step += 1
        hooks.step()


def whole_scores(images: Path, folder: Path) -> int:
    """How many images are safe; the table is whole or not there."""
    table, growing = folder / "scores.csv", folder / "scores.csv.rows0"
    total = len(list_images(images))
    if table.exists():
        assert len(table.read_text().splitlines()) == 1 + total
        return total
    return growing.read_bytes().count(b"\n") - 1 if growing.exists() else 0


def whole_watch(images: Path, folder: Path) -> int:
    if (folder / "best.json").exists():
        assert json.loads((folder / "best.json").read_text())["files"]
    state = folder / "watch.json"
    return len(json.loads(state.read_text())["steps"]) if state.exists() else 0


def whole_fit(images: Path, folder: Path) -> int:
    """1 where the file is there, which then is the scorer of these images."""
    file = folder / "gmm.safetensors"
    if not file.exists():
        return 0
    pictures = torch.stack([load_image(path) for path in list_images(images)])
    right = GMMScorer("random", components=1, pca=2).fit(pictures, calibration=None, progress=False)
    torch.testing.assert_close(load_scorer(file)(pictures), right(pictures), rtol=1e-3, atol=1e-3)
    return 1


def whole_best(images: Path, folder: Path) -> int:
    """The step of the best checkpoint, all of whose parts are there."""
    if not (folder / "best.json").exists():
        return 0
    found = json.loads((folder / "best.json").read_text())
    best, *others = found["kept"]
    for part in ("a", "b"):
        assert (folder / best["path"] / part).read_text() == str(best["step"])
    assert all((folder / other["path"]).exists() for other in others)
    return int(best["step"])


ACTIVITIES = {
    "score": (score, whole_scores),
    "watch": (watch, whole_watch),
    "fit": (fit, whole_fit),
    "best": (best, whole_best),
}


def process(work, images: Path, folder: Path, last: int, seconds: float, counted: Path) -> None:
    """Work in this process, until so many file operations below `folder` have begun, or seconds have passed; 0: all."""
    torch.set_num_threads(1)
    count = 0

    def look(event, arguments) -> None:
        nonlocal count
        if event not in EVENTS or not str(arguments[0]).startswith(str(folder)):
            return
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    began = time.perf_counter()
    if seconds:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    with contextlib.suppress(BrokenPipeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(images, folder)
    counted.write_text(json.dumps([count, time.perf_counter() - began]))


@pytest.fixture(scope="module")
def start():
    """Starts a process, and gives its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["pytest", "torch", "qa_hooks.folders.watching.watcher", "qa_hooks.scorers.giqa.gmm", "sklearn.mixture"]
    )

    def run(*arguments) -> int:
        child = context.Process(target=process, args=arguments)
        child.start()
        child.join(300)
        return child.exitcode

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same at the end, whatever was killed before."""
    return {
        path.relative_to(folder).as_posix(): b"" if "tfevents" in path.name else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def comparable(files: dict[str, bytes]) -> dict[str, object]:
    """Without what may differ: names of curves, the time of a table, what a checkpoint has taken the place of."""
    found: dict[str, object] = {}
    for name, content in files.items():
        if "tfevents" in name:
            continue
        name, content = name.replace("_again", ""), content.replace(b"_again", b"")  # a step that was saved twice
        found[name] = content
        if name.endswith(".csv.json"):
            facts = json.loads(content)
            found[name] = {key: value for key, value in facts.items() if key != "started"}
        if name.endswith(".safetensors"):  # rounding depends on where in memory numbers lie
            found[name] = "a scorer"
        if name == "metrics.jsonl":  # lines are only added: one may be cut, and a step stand there twice, but equal
            lines = {}
            for text in content.decode().splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    line = json.loads(text)
                    line.pop("about", None)  # each process says it with its first value
                    assert lines.setdefault((line["tag"], line["step"]), line) == line
            found[name] = lines
        if name == "best.json":
            found[name] = {key: value for key, value in json.loads(content).items() if key != "leaving"}
    return found


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_nothing_is_lost_and_nothing_left_over(tmp_path, start, activity):
    work, whole = ACTIVITIES[activity]
    draw, images = random.Random(activity), tmp_path / "images"
    pictures = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    for position, picture in enumerate(pictures):
        (images / f"step_{position // 4:04d}").mkdir(parents=True, exist_ok=True)
        path = images / f"step_{position // 4:04d}" / f"{position}.png"
        save_image(picture, path)
        os.utime(path, (1e9, 1e9))
    undisturbed, counted = tmp_path / "undisturbed", tmp_path / "counted"
    undisturbed.mkdir()
    assert start(work, images, undisturbed, 0, 0.0, counted) == 0
    (operations, seconds), right = json.loads(counted.read_text()), comparable(contents(undisturbed))
    kills, by_time, rounds, folder = 0, 0, 0, tmp_path / "work"
    while kills < KILLS:
        rounds += 1
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        safe = 0
        for _ in range(IN_A_ROW):
            timed = draw.random() < 0.3
            last = 0 if timed else draw.randint(1, operations)
            code = start(work, images, folder, last, draw.random() * seconds * timed, counted)
            assert code in (0, -signal.SIGKILL)
            now = whole(images, folder)
            assert now >= safe
            safe = now
            kills += code == -signal.SIGKILL
            by_time += timed and code == -signal.SIGKILL
        assert start(work, images, folder, 0, 0.0, counted) == 0
        assert comparable(contents(folder)) == right
    print(
        f"{activity}: {kills} kills ({by_time} by time) of {operations} operations, {rounds} runs brought to their end"
    )
