"""Pictures that kill the process that works on them: the same call goes on, and each costs its own row."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch

from qa_hooks.folders import read_scores, score_folder
from qa_hooks.folders.scoring import tiles
from qa_hooks.folders.scoring.journal import DEATHS, LEFT_OUT, Journal, left_behind
from qa_hooks.images import load_image, save_image
from qa_hooks.scorers import FunctionScorer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
COUNT = 40


def level(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


def score(root: Path, where: str, deadly: tuple[int, ...], stranger: str) -> None:
    """Score a folder in this process, which dies where it scores or decodes a grey level of `deadly`.

    `stranger` is a file: while it does not exist, somebody else kills the process at the first picture that is alone.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")

    def read(path):
        if int(Path(path).stem) in deadly:
            os._exit(139)
        return load_image(path)

    def kill(images):
        if len(images) == 1 and stranger and not Path(stranger).exists():
            Path(stranger).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if where == "scorer" and any(round(float(image.max()) * 255) in deadly for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return level(images)

    if where == "decoder":
        tiles.load_image = read
    scorer = FunctionScorer(kill, name="level", higher_is_better=True)
    score_folder(root / "images", scorer, root / "t.csv", batch_size=4, progress=False)


def count_shard(root: Path, deadly: tuple[int, ...]) -> None:
    """Score the one shard of a folder as a worker of Ray does."""
    from qa_hooks.integrations.ray.batches import ScoreBatches
    from qa_hooks.integrations.ray.dataset import score_shard
    from qa_hooks.integrations.ray.shards import find_shards

    torch.set_num_threads(1)

    def kill(images):
        if any(round(float(image.max()) * 255) in deadly for image in images):
            os.kill(os.getpid(), signal.SIGKILL)
        return level(images)

    (root / "t").mkdir(exist_ok=True)
    (root / "t" / "manifest.json").write_text("{}")
    (shard,) = find_shards(root / "images")
    scorer = FunctionScorer(kill, name="level", higher_is_better=True)
    counts = score_shard(ScoreBatches(scorer, batch_size=4), shard, str(root / "t" / "part-0.parquet"), "call")
    (root / "counts.json").write_text(json.dumps(counts))


@pytest.fixture(scope="module")
def start():
    """Starts a process, and gives its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "torch", "qa_hooks.folders.scoring.score_folder", "qa_hooks.scorers"])

    def run(*arguments) -> int:
        child = context.Process(target=arguments[0], args=arguments[1:])
        child.start()
        child.join()
        return child.exitcode

    return run


@pytest.fixture
def root(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(COUNT):
        save_image(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / "images" / f"{number:03d}.png")
    return tmp_path


def deaths_before_the_end(start, *arguments) -> int:
    """How often the same call is killed before it comes to its end."""
    for deaths in range(10):
        code = start(*arguments)
        if code == 0:
            return deaths
        assert code in (-signal.SIGKILL, 139)
    raise AssertionError("it never ends")


def assert_all_but(root: Path, deadly: tuple[int, ...]) -> None:
    """Each picture has its own score, but for the deadly ones, which are named; nothing else is left."""
    table = read_scores(root / "t.csv")
    rest = [number for number in range(COUNT) if number not in deadly]
    assert table.paths == [f"{number:03d}.png" for number in rest]
    assert (table.columns["level"] * 255).round().int().tolist() == rest
    assert table.failures == {f"{number:03d}.png": LEFT_OUT for number in deadly}
    assert {path.name for path in root.iterdir()} - {"stranger"} == {"images", "t.csv", "t.csv.json"}


@pytest.mark.parametrize(("where", "deadly"), [("scorer", (17,)), ("decoder", (0, 1, COUNT - 1))])
def test_a_picture_that_kills_is_named_and_costs_its_row(start, root, where, deadly):
    deaths = deaths_before_the_end(start, score, root, where, deadly, "")
    # Each one is found alone; what lies together is found among the same suspects.
    assert len(deadly) * DEATHS < deaths <= len(deadly) * (DEATHS + 1)
    assert_all_but(root, deadly)
    assert start(score, root, where, deadly, "") == 0  # it is not tried again
    assert_all_but(root, deadly)
    for number in deadly:
        save_image(torch.full((3, 8, 8), number, dtype=torch.uint8), root / "images" / f"{number:03d}.png")
        os.utime(root / "images" / f"{number:03d}.png", (1e9, 1e9))
    assert start(score, root, where, (), "") == 0  # its file has changed
    assert_all_but(root, ())


def test_who_was_killed_by_somebody_else_is_not_left_out(start, root):
    """The process dies at a picture, and the next one is killed while another picture is alone."""
    deaths = deaths_before_the_end(start, score, root, "scorer", (17,), str(root / "stranger"))
    assert (root / "stranger").exists()
    assert deaths == 2 + DEATHS
    assert_all_but(root, (17,))


def test_what_is_left_behind_is_told_and_a_fresh_start_forgets_it(start, root):
    assert start(score, root, "scorer", (17,), "") == -signal.SIGKILL
    assert start(score, root, "scorer", (17,), "") == -signal.SIGKILL
    assert sum(left_behind(root / "t.csv.begun0").values()) == 1
    scorer = FunctionScorer(level, name="level", higher_is_better=True)
    with pytest.warns(UserWarning, match=r"was killed while it worked on \d+ images: they are scored one by one"):
        score_folder(root / "images", scorer, root / "t.csv", progress=False)
    assert_all_but(root, ())
    (root / "t.csv.begun0").write_text('{"deaths": {"000.png": 2}}\nno JSON\n[]\n{"begun": 3, "done": "x"}\n')
    score_folder(root / "images", scorer, root / "t.csv", progress=False, resume=False)
    assert_all_but(root, ())


def test_scores_of_other_scorers_are_kept(root):
    """An image that one scorer refused is tried again: where the other one kills then, its first scores stay."""

    def refuse(images):
        raise ValueError("not this one")

    scorers = [FunctionScorer(level, name="level", higher_is_better=True)]
    scorers.append(FunctionScorer(refuse, name="other", higher_is_better=True))
    for _ in range(2):
        score_folder(root / "images", scorers, root / "t.csv", progress=False)
    file = json.loads((root / "t.csv.json").read_text())["files"]["000.png"]
    begun = {"begun": f"000.png {file}", "done": 0, "alone": True}
    (root / "t.csv.begun0").write_text(json.dumps({"deaths": {begun["begun"]: DEATHS - 1}}) + "\n" + json.dumps(begun))
    table = score_folder(root / "images", scorers, root / "t.csv", progress=False)
    assert (table.paths[0], float(table.columns["level"][0])) == ("000.png", 0.0)
    assert table.failures["000.png"] == LEFT_OUT
    assert set(list(table.failures.values())[1:]) == {"other: not this one"}
    assert list(json.loads((root / "t.csv.json").read_text())["left_out"]) == ["000.png"]


def test_a_worker_of_ray_finds_it_in_its_shard(start, root):
    pytest.importorskip("pyarrow")
    from pyarrow.parquet import read_table

    assert deaths_before_the_end(start, count_shard, root, (3, 30)) == 2 * (DEATHS + 1)
    table = read_table(root / "t" / "part-0.parquet").to_pydict()
    assert table["path"] == [f"{number:03d}.png" for number in range(COUNT)]
    assert [row for row, problem in enumerate(table["problem"]) if problem] == [3, 30]
    assert {problem for problem in table["problem"] if problem} == {LEFT_OUT}
    scored = [round(value * 255) for value in table["level"] if value == value]
    assert scored == [number for number in range(COUNT) if number not in (3, 30)]
    assert json.loads((root / "counts.json").read_text())[:2] == [COUNT, 2]
    assert sorted(path.name for path in (root / "t").iterdir()) == ["manifest.json", "part-0.parquet"]


def run(path: Path, items: list[str], work, fail: str, error: type[BaseException]) -> None:
    """Work on items as a process does that ends with an error at one of them."""
    with Journal(path) as journal:
        for results in journal.watch(items, str, work):
            if fail in results:
                raise error(fail)


def test_a_process_that_ends_by_itself_accuses_nobody(tmp_path):
    path = tmp_path / "t.begun0"
    for error in (KeyboardInterrupt, ValueError):
        with pytest.raises(error):
            run(path, ["a", "b"], lambda items, ahead: ([item] for item in items), "b", error)
        assert not path.exists()


def test_suspects_outlive_an_error_and_go_one_by_one(tmp_path):
    path = tmp_path / "t.begun0"
    path.write_text('{"deaths": {"b": 1, "d": 0, "e": 2}}\n')
    calls = []

    def work(items, ahead):
        calls.append((ahead, list(items)))
        if calls[-1][1] == ["b"]:
            assert left_behind(path) == {"b": 2, "d": 0, "e": 2}  # if it were killed now
        return iter([calls[-1][1]])

    assert [Journal(path).leaves_out(name) for name in "abe"] == [False, False, True]
    with pytest.raises(OSError, match="c"):
        run(path, ["a", "a2", "b", "c", "d", "e"], work, "c", OSError)
    assert calls == [(True, ["a", "a2"]), (False, ["b"]), (True, ["c"])]
    assert left_behind(path) == {"d": 0, "e": 2}
