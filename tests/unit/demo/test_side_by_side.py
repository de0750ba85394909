"""Runs in processes of their own: their results in order, on disk as they come, and not run twice."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch

from qa_hooks.demo.results import OtherResultsError, Results, load_column, results_of, run_example, save_column
from qa_hooks.demo.side_by_side import side_by_side


class Job(NamedTuple):
    name: str
    seed: int


def one(job):
    return 1


def square(folder, job, progress):
    """Leave a file; fail where seven is asked for, and wait for the failure where eight is."""
    if job.seed == 7:
        raise ValueError("seven")
    if job.seed == 8:
        time.sleep(3)
    with (folder / f"{job.name}{job.seed}").open("a") as file:
        file.write("x")
    progress.put(1)
    return {"square": job.seed**2, "pair": (1, 2)}


def test_results_are_kept_and_only_what_is_missing_is_run(tmp_path, capsys):
    work = partial(square, tmp_path)
    jobs = [Job("a", seed) for seed in range(3)]
    first = side_by_side(work, jobs, processes=2, steps=one, results=Results(tmp_path, {"steps": 4}))
    assert [row["square"] for row in first] == [0, 1, 4]
    assert first[0]["pair"] == [1, 2]  # as it will be read again
    again = side_by_side(work, [Job("a", 5), *jobs], processes=2, steps=one, results=Results(tmp_path, {"steps": 4}))
    assert [row["square"] for row in again] == [25, 0, 1, 4]
    assert again[1:] == first
    assert all((tmp_path / f"a{seed}").read_text() == "x" for seed in (0, 1, 2, 5))
    assert "3 of 4 were done before" in capsys.readouterr().err
    with pytest.raises(ValueError, match="steps 4, now 5"):
        Results(tmp_path, {"steps": 5})


def test_what_was_done_before_a_failure_is_kept(tmp_path):
    work, results = partial(square, tmp_path), Results(tmp_path, {})
    with pytest.raises(ValueError, match="seven"):
        side_by_side(work, [Job("b", 1), Job("b", 7)], processes=1, steps=one, results=results)
    assert Results(tmp_path, {}).found == {"Job(name='b', seed=1)": {"square": 1, "pair": [1, 2]}}


def test_what_was_running_when_another_failed_is_kept(tmp_path):
    work, results = partial(square, tmp_path), Results(tmp_path, {})
    jobs = [Job("b", 8), Job("b", 7), Job("b", 1), Job("b", 2), Job("b", 3), Job("b", 4), Job("b", 5)]
    with pytest.raises(ValueError, match="seven"):
        side_by_side(work, jobs, processes=2, steps=one, results=results)
    assert Results(tmp_path, {}).found["Job(name='b', seed=8)"] == {"square": 64, "pair": [1, 2]}
    assert "Job(name='b', seed=7)" not in results


def test_without_a_store_everything_comes_back_as_it_is(tmp_path):
    rows = side_by_side(partial(square, tmp_path), [Job("c", 2)], processes=1, steps=one)
    assert rows == [{"square": 4, "pair": (1, 2)}]
    assert not (tmp_path / "results.json").exists()


def test_settings_are_all_arguments_but_what_may_differ(tmp_path):
    args = argparse.Namespace(out=tmp_path, jobs=2, seeds=[0], data=Path("photos"), steps=3)
    results_of(args, without=("seeds",)).add("one", 1)
    args.jobs, args.seeds = 1, [0, 1]
    assert results_of(args, without=("seeds",)).found == {"one": 1}
    args.data = None
    with pytest.raises(SystemExit, match=r"data '.*photos', now None"):
        results_of(args, without=("seeds",))


def test_other_pictures_in_the_same_folder_are_other_settings(tmp_path):
    (tmp_path / "photos").mkdir()
    args = argparse.Namespace(out=tmp_path / "out", data=str(tmp_path / "photos"))
    (tmp_path / "photos" / "a.png").write_bytes(b"1234")
    results_of(args, without=()).add("one", 1)
    args.data += "/"
    assert results_of(args, without=()).found == {"one": 1}
    inside = argparse.Namespace(out=tmp_path / "photos" / "out", data=args.data)
    results_of(inside, without=()).add("one", 1)  # which makes files in the folder
    assert results_of(inside, without=()).found == {"one": 1}
    (tmp_path / "photos" / "out" / "results.json").unlink()
    (tmp_path / "photos" / "out" / ".results.lock").unlink(missing_ok=True)
    (tmp_path / "photos" / "a.png").write_bytes(b"12345")
    with pytest.raises(SystemExit, match=r"1 files, 4 bytes.*1 files, 5 bytes"):
        results_of(args, without=())


def test_a_result_that_is_not_for_json_changes_nothing(tmp_path):
    results = Results(tmp_path, {})
    results.add("one", 1)
    with pytest.raises(TypeError):
        results.add("two", torch.zeros(1))
    assert results.found == Results(tmp_path, {}).found == {"one": 1}


def test_a_column_of_pictures_comes_back(tmp_path):
    images = list(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    save_column(images, tmp_path / "pictures" / "a.png")
    back = load_column(tmp_path / "pictures" / "a.png")
    assert len(back) == 4
    assert all(torch.equal(one, other) for one, other in zip(back, images, strict=True))


def test_two_processes_add_to_one_file(tmp_path):
    one_of_them, other = Results(tmp_path, {}), Results(tmp_path, {})
    one_of_them.add("a", 1)
    other.add("b", 2)
    assert Results(tmp_path, {}).found == other.found == {"a": 1, "b": 2}


def test_settings_stand_before_the_first_result(tmp_path):
    Results(tmp_path, {"data": "a"})
    with pytest.raises(OtherResultsError, match="data 'a', now 'b'"):
        Results(tmp_path, {"data": "b"})


def test_an_example_ends_with_a_sentence(tmp_path):
    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="stopped; the same command goes on"):
        run_example(stopped)
    with pytest.raises(SystemExit, match=r"a.png is missing.*choose another --out"):
        run_example(lambda: load_column(tmp_path / "a.png"))


def test_the_processes_end_with_the_one_that_started_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from qa_hooks.demo.side_by_side import side_by_side\n"
        "def work(job, progress):\n"
        "    Path(sys.argv[1], f'{job}.pid').write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    side_by_side(work, ['a'], processes=1, steps=len)\n"
    )
    parent = subprocess.Popen([sys.executable, str(program), str(tmp_path)])
    note, end = tmp_path / "a.pid", time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end
        time.sleep(0.1)
    children = psutil.Process(parent.pid).children(recursive=True)
    assert int(note.read_text()) in {child.pid for child in children}
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []
