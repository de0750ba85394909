"""Plants faults in the package, one at a time, and says which of them the tests do not notice.

    python tests/mutation/run.py --count 200 --seed 0 -o /tmp/mutants.jsonl
    python tests/mutation/run.py -o /tmp/mutants.jsonl --list          # the survivors so far

The faults (`mutants.py`) are drawn, with a seed, from `functional`, `losses`, `penalties`, `weighting`, `scorers`. Each
is planted in a copy of the checkout in a temporary folder, where the tests of its room that name the module run, then
the rest of its room, the other tests that name it and the contract; the first failure ends it. Every run is a fork of
one process that has the libraries loaded already. A fault that is noticed is "killed", one that takes more than
the limit is "slow" (nearly always an endless loop), and one that nobody notices "survived": a test is missing, or the
fault changes nothing. One line of JSON is written for each as soon as it is known, and the same command goes on where
an earlier one stopped.
"""

from __future__ import annotations

import argparse
import ast
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutants import Mutant, draw

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("functional", "losses", "penalties", "weighting", "scorers")
COPIED = (
    "qa_hooks",
    "integrations",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
LIBRARIES = ("torch", "torchvision.transforms", "scipy.stats", "sklearn.mixture", "PIL.Image", "safetensors.torch",
             "pytest", "hypothesis", "tensorboard", "accelerate", "peft", "diffusers")  # fmt: skip


def tests_of(root: Path, path: str) -> list[list[str]]:
    """The test files for a module in two parts: its examples and those of its room that name it; all others."""
    module = root / path
    room = Path(path).parts[1]
    nodes = ast.parse(module.read_text()).body
    public = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
    named = re.compile("|".join(rf"\b{name}\b" for name in public) or r"\b\B")
    unit = sorted((root / "tests" / "unit").rglob("test_*.py"))
    own = [file for file in unit if file.relative_to(root).parts[2] == room]
    naming = [file for file in unit if named.search(file.read_text())]
    likeliest = [module, *(file for file in own if file in naming)]
    others = [file for file in own if file not in naming] + [file for file in naming if file not in own]
    others += sorted((root / "tests" / "contract").glob("test_*.py"))
    return [[str(file) for file in part] for part in (likeliest, others)]


def run_tests(copy: Path, arguments: list[str], output: Path) -> None:
    """In a process of its own: pytest on the copy, with everything printed going to `output`."""
    os.setsid()
    os.chdir(copy)
    with output.open("w") as printed:
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.environ.update(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE="1")
    sys.path.insert(0, str(copy))
    sys.dont_write_bytecode = True
    import pytest

    import qa_hooks

    if not str(qa_hooks.__file__).startswith(str(copy)):
        raise RuntimeError(f"the tests of {copy} would run {qa_hooks.__file__}")
    preloaded = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is imported already keeps its plain asserts
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *preloaded, *arguments])))


def finished(copy: Path, arguments: list[str], limit: float) -> tuple[int | None, str]:
    """Exit code of pytest, None where it took longer than the limit, and what it printed."""
    output = copy.with_suffix(".log")
    process = multiprocessing.get_context("forkserver").Process(target=run_tests, args=(copy, arguments, output))
    process.start()
    process.join(limit)
    if process.exitcode is None and process.pid is not None:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return None, ""
    return process.exitcode, output.read_text()


def judge(mutant: Mutant, copy: Path, limit: float) -> tuple[str, str]:
    """The verdict, and the first test that failed."""
    target = copy / mutant.path
    original = target.read_text()
    parts = tests_of(copy, mutant.path)
    target.write_text(mutant.source)
    try:
        for part in parts:
            code, output = finished(copy, part, limit)
            if code is None:
                return "slow", ""
            if code not in (0, 5):  # 5: this part has no test
                failed = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
                return "killed", failed[0][:200] if failed else output[-200:]
    finally:
        target.write_text(original)
    return "survived", ""


def check_collected(copy: Path) -> None:
    """Before a fault is planted, every test can be collected: otherwise each fault would seem to be noticed."""
    code, output = finished(copy, ["--collect-only", "tests/unit", "tests/contract"], 600)
    if code != 0:
        raise RuntimeError(f"the tests cannot be collected without any fault:\n{output[-3000:]}")


def made_copy(folder: Path) -> Path:
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        elif source.exists():
            shutil.copy(source, folder / name)
    return folder


def read_results(output: Path) -> dict[str, dict[str, str]]:
    lines = output.read_text().splitlines() if output.exists() else []
    return {result["mutant"]: result for result in map(json.loads, lines)}


def told(results: dict[str, dict[str, str]]) -> str:
    verdicts = [result["verdict"] for result in results.values()]
    survivors = sorted(key for key, result in results.items() if result["verdict"] == "survived")
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("killed", "slow", "survived"))
    return "\n".join([*survivors, f"{len(verdicts)} faults: {counts}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many faults to draw (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help=f"where (default: {' '.join(ROOMS)})")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a JSON lines file, which is continued")
    parser.add_argument("--limit", type=float, default=600, help="seconds for the tests of one fault (default: 600)")
    parser.add_argument("--workers", type=int, default=2, help="faults at a time (default: 2)")
    parser.add_argument("--list", action="store_true", help="only list the survivors of the output")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(LIBRARIES))
    if not options.list:
        run(options)
    print(told(read_results(options.output)))


def run(options: argparse.Namespace) -> None:
    files = [path for room in options.rooms for path in sorted((ROOT / "qa_hooks" / room).rglob("*.py"))]
    drawn = draw(ROOT, files, options.count, options.seed)
    done = read_results(options.output)
    waiting = [mutant for mutant in drawn if mutant.key not in done]
    print(f"{len(drawn)} faults drawn, {len(drawn) - len(waiting)} of them known", flush=True)
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as folder, options.output.open("a") as out:
        copies = [made_copy(Path(folder) / str(number)) for number in range(options.workers)]
        check_collected(copies[0])

        def work(mutant: Mutant) -> None:
            with lock:
                copy = copies.pop()
            try:
                verdict, test = judge(mutant, copy, options.limit)
            finally:
                with lock:
                    copies.append(copy)
            with lock:
                out.write(json.dumps({"mutant": mutant.key, "verdict": verdict, "test": test}) + "\n")
                out.flush()
                print(f"{verdict:8}  {mutant.key}", flush=True)

        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(work, waiting))


if __name__ == "__main__":
    main()
