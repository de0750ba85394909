"""The promises of the tree: import direction, packaging, light imports, a small public surface."""

from __future__ import annotations

import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import qa_hooks
from map_imports import Tree

ROOT = Path(__file__).resolve().parents[2]


PLAN = (ROOT / "docs" / "architecture.md").read_text()


def layers() -> dict[str, int]:
    """The floor of each room, as docs/architecture.md has it."""
    floors = re.search(r"```layers\n(.*?)```", PLAN, re.DOTALL).group(1).splitlines()
    return {room: floor for floor, rooms in enumerate(floors) for room in rooms.split()}


def stable_paths() -> dict[str, list[str]]:
    """The stable import paths of docs/architecture.md: modules and the names promised; [] for every public one."""
    table = PLAN.split("## Stable import paths")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {path: re.findall(r"`(\w+)`", names) for paths, names in rows for path in re.findall(r"`([\w.]+)`", paths)}


LEVEL = layers()
TREE = Tree(ROOT)
MODULES, face = TREE.modules, TREE.face


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name):
    own = name.split(".")[1]
    assert own in LEVEL, f"{own} has no place in the layers of docs/architecture.md"
    for target in TREE.imported(name):
        room = target.split(".")[1]
        assert LEVEL[room] <= LEVEL[own], f"{own} imports {target}"


def test_no_file_is_longer_than_the_style_allows():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES.values()}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


def test_no_circles():
    """Neither between modules nor between rooms, wherever the imports stand."""
    for graph in (TREE.arrows(), TREE.rooms()):
        graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_face_hides_a_module():
    """A name that a face hands out must not be the name of a module beside it: the module, once loaded, would win."""
    for name, path in {**MODULES, "qa_hooks": ROOT / "qa_hooks" / "__init__.py"}.items():
        if path.name == "__init__.py":
            beside = {p.stem for p in path.parent.glob("*.py")} | {
                p.parent.name for p in path.parent.glob("*/__init__.py")
            }
            hidden = {
                public for public, module in face(name).items() if public in beside and module != f"{name}.{public}"
            }
            assert not hidden, f"{name} hands out {hidden}"


def test_the_packages_are_listed_and_all_of_them():
    tomllib = pytest.importorskip("tomllib")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"qa_hooks"} | {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert sorted(listed) == sorted(found)


def test_integrations_work_without_the_link(tmp_path):
    """A zip download or Windows loses the link: the installed mapping must not need it."""
    (tmp_path / "src").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "src" / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("qa_hooks", "integrations"):
        for path in (ROOT / folder).rglob("*"):
            relative = path.relative_to(ROOT)
            if (
                path.is_file()
                and "__pycache__" not in relative.parts
                and relative.parts[:2] != ("qa_hooks", "integrations")
            ):
                target = tmp_path / "src" / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    subprocess.run([*command, str(tmp_path / "site"), str(tmp_path / "src")], check=True, capture_output=True)
    code = "import qa_hooks, qa_hooks.integrations as i, qa_hooks.scorers.niqe.scorer; print(i.__file__)"
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", check=True, capture_output=True, text=True
    ).stdout
    assert str(tmp_path / "site") in out
    assert (tmp_path / "site" / "qa_hooks" / "py.typed").exists()
    assert list((tmp_path / "site" / "qa_hooks" / "scorers" / "niqe").glob("*.safetensors"))


def test_the_public_names_resolve():
    for name in qa_hooks.__all__:
        assert getattr(qa_hooks, name) is not None
        assert name in dir(qa_hooks)
    with pytest.raises(AttributeError, match=r"^qa_hooks has no 'nonsense'$"):
        _ = qa_hooks.nonsense
    with pytest.raises(AttributeError, match="has no 'GMMScorrer'; did you mean GMMScorer"):
        _ = qa_hooks.GMMScorrer


@pytest.mark.parametrize("package", sorted({name for name, path in MODULES.items() if path.name == "__init__.py"}))
def test_every_name_of_a_face_resolves(package):
    for name in face(package):
        assert getattr(importlib.import_module(package), name) is not None


@pytest.mark.parametrize("path", stable_paths())
def test_stable_paths_import(path):
    module = importlib.import_module(path)
    for name in stable_paths()[path] or getattr(module, "__all__", []):
        assert getattr(module, name) is not None


def test_the_table_of_stable_paths_is_read():
    assert len(stable_paths()) >= 20
    assert "QualityTable" in stable_paths()["qa_hooks.data"]


def test_the_plan_describes_every_room():
    described = PLAN.split("What lives in each room:")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", described, re.MULTILINE)) == set(LEVEL) - {"__main__"}


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()


def test_importing_is_light():
    heavy = "sklearn scipy torchvision diffusers accelerate tensorboard safetensors PIL tqdm wandb"
    modules = "qa_hooks, qa_hooks.losses, qa_hooks.penalties, qa_hooks.callbacks, qa_hooks.scorers, qa_hooks.writers"
    code = f"import torch, sys; before = set(sys.modules); import {modules}; new = set(sys.modules) - before; "
    assert run(code + f"print(sorted(set('{heavy}'.split()) & new))") == "[]"


def test_importing_costs_next_to_nothing():
    """Only our top module is run, in less than a tenth of the CPU time of torch: the clock on the wall is not asked."""
    code = (
        "import sys, time; start = time.process_time(); import torch; torch_took = time.process_time() - start\n"
        "start = time.process_time(); import qa_hooks; took = time.process_time() - start\n"
        "print(sum(name.startswith('qa_hooks') for name in sys.modules), took / torch_took)"
    )
    modules, share = run(code).split()
    assert int(modules) == 1
    assert float(share) < 0.1


def test_a_penalty_loads_little():
    """Of our modules, that is: the packages' faces are lazy."""
    loaded = run(
        "import sys; from qa_hooks import SSIMPenalty; print(sum(m.startswith('qa_hooks') for m in sys.modules))"
    )
    assert int(loaded) <= 15


def test_every_module_says_what_it_is_for():
    for name in MODULES:
        if not name.endswith("__main__"):
            assert importlib.import_module(name).__doc__, name
