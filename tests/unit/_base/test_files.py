"""Folders walked whole, one process at a time, nothing left behind by killed processes; text made harmless."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qa_hooks._base.files import exclusive, read_safetensors, walk_files, whole_file, write_safetensors
from qa_hooks._base.text import printable, safe_cell, true_cell
from qa_hooks.folders.scoring.growing import csv_line

ROOT = Path(__file__).resolve().parents[3]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


def names(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in walk_files(root))


def test_links_to_folders_are_followed_once(tmp_path):
    tree(tmp_path / "store", "cats/0", "cats/1")
    root = tree(tmp_path / "set", "dogs/0", "z/real/5")
    (root / "cats").symlink_to(tmp_path / "store" / "cats")
    (root / "cats again").symlink_to(tmp_path / "store" / "cats")
    (root / "dogs" / "circle").symlink_to(root)
    (root / "a link to a folder of the tree").symlink_to(root / "z" / "real")
    assert names(root) == ["cats/0", "cats/1", "dogs/0", "z/real/5"]
    only = tmp_path / "only"
    only.symlink_to(tmp_path / "store")
    assert names(only) == ["cats/0", "cats/1"]


def test_a_link_to_itself_is_no_folder(tmp_path):
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "a.png").write_bytes(b"")
    assert sorted(path.name for path in walk_files(tmp_path)) == ["a.png", "circle"]


def test_hidden_names_are_left_out_but_not_a_hidden_root(tmp_path):
    root = tree(tmp_path / ".root", "a", ".b", ".cache/c", "d/.e/f", "d/g")
    assert names(root) == ["a", "d/g"]


def test_one_at_a_time_and_a_killed_process_counts_no_more(tmp_path):
    code = f"""
import sys, time
from qa_hooks._base.files import exclusive
with exclusive({str(tmp_path / "t.csv")!r}):
    print("in", flush=True); time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(ValueError, match=r"another run is at work on .*t\.csv"), exclusive(tmp_path / "t.csv"):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    with exclusive(tmp_path / "t.csv"):
        with exclusive(tmp_path / "u.csv"):
            pass
        with pytest.raises(ValueError, match="another run"), exclusive(tmp_path / "t.csv"):
            pass
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    code = f"""
import os, signal
from qa_hooks._base.files import whole_file
with whole_file({str(tmp_path / "a [1].json")!r}) as partial:
    partial.write_text("half"); os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    alive = tmp_path / left.name.replace(left.name.split("@")[0], f"a [1].json.{os.getppid()}")
    alive.write_text("of a process that is at work")
    foreign = tmp_path / "a [1].json.1@another-machine.partial"
    foreign.write_text("of another machine")
    with whole_file(tmp_path / "a [1].json") as partial:
        partial.write_text("whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a [1].json", alive, foreign])


@pytest.mark.parametrize(
    "name",
    [
        "=1+1.png",
        "+a.png",
        "-b.png",
        "@c.png",
        "\td.png",
        "\re.png",
        "'=f.png",
        "'g.png",
        "h=i.png",
        "a,b.png",
        "\uff1dj.png",
    ],
)
def test_cells_that_a_spreadsheet_would_run(name):
    cell = next(csv.reader(io.StringIO(csv_line([name, "-1.5", 3]), newline="")))
    assert cell[1:] == ["-1.5", "3"]
    assert cell[0][0] not in "=+-@\t\r\uff1d"
    assert true_cell(cell[0]) == name
    assert safe_cell("a.png") == "a.png"


def test_control_characters_are_shown_and_letters_stay():
    assert printable("\x1b]0;title\x07\x9b2J\u202egnp.exe") == "\\x1b]0;title\\x07\\x9b2J\\u202egnp.exe"
    assert printable("grün 世界 🐈 a b") == "grün 世界 🐈 a b"
    assert printable("a\n\tb") == "a\n\tb"
    assert printable("a\nb\rc", one_line=True) == "a\\nb\\rc"
    printable(b"\xff.png".decode("utf-8", "surrogateescape")).encode("utf-8")


def test_a_file_of_a_later_format_is_refused(tmp_path):
    path, tensors = tmp_path / "a.safetensors", {"a": torch.ones(2)}
    for header in ({"format": "qa_hooks.scorer"}, {"format": "qa_hooks.scorer", "version": "1"}, {"version": "7"}):
        write_safetensors(path, tensors, header)
        assert torch.equal(read_safetensors(path, "is no file")[0]["a"], tensors["a"])
    write_safetensors(path, tensors, {"format": "qa_hooks.scorer", "version": "2"})
    with pytest.raises(ValueError, match="its format has the version '2', and this qa_hooks reads version 1"):
        read_safetensors(path, "is no file")


def test_what_was_read_stays_when_the_file_is_written_over(tmp_path):
    """As `cp new.safetensors old.safetensors` does beside a run that has read the old one."""
    path, tensors = tmp_path / "a.safetensors", {"a": torch.arange(5000.0)}
    write_safetensors(path, tensors, {})
    read, _ = read_safetensors(path, "is no file")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - 4000)
        file.write(bytes(4000))
    assert torch.equal(read["a"], tensors["a"])
