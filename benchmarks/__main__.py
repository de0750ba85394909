"""`python -m benchmarks NAME [options]` runs `benchmarks/NAME.py`; without a name it lists them.

A benchmark is a module of this folder with a `main(arguments: list[str])`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from qa_hooks.demo.results import OtherResultsError


def names() -> list[str]:
    """The benchmarks: the modules of this folder that define `main`."""
    modules = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [path.stem for path in modules if "\ndef main(" in path.read_text(encoding="utf-8")]


def run(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in names():
        print("usage: python -m benchmarks NAME [options]\n\nNAME is one of: " + ", ".join(names()))
        return 0 if not arguments or arguments[0] in ("-h", "--help") else 2
    sys.argv[0] = f"python -m benchmarks {arguments[0]}"  # what --help calls the program
    try:
        importlib.import_module(f"benchmarks.{arguments[0]}").main(arguments[1:])
    except OtherResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
