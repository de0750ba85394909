"""The files that a reader opens to follow one use of the package: `python tests/count_trips.py [CHECKOUT] [-v]`.

A trip is one use. It is made twice, with new objects: the first time imports and prepares, the second is followed. A
file counts when a function, method, lambda or comprehension that it defines is called meanwhile, in any thread. What
runs at import (the bodies of modules and classes) does not count, nor do the `__init__.py` files. Files of `_base` and
`functional` are told apart: a reader knows from its name what such a function does, and reads it by itself.

    GenerativeMonitor   one measurement of 64 samples with "fd" and "kid", called by `hooks.step()`
    RewardGuard         one look at 16 samples with a scorer and a held-out scorer, called by `hooks.step()`
    qa-hooks score      `qa-hooks score FOLDER` of three images, from the parsed arguments to the table; without the
                        scorer's own files
    ScoreLoss           the first call, forward and backward, with a ceiling, a balance and two views

Only the stable interface is used, so that an older checkout can be measured with the same program.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

Begin = Callable[[], None]
Trip = Callable[[Begin, Path], Any]  # calls its first argument where the trip begins

OLD_BASE = ("checks", "files", "hashing", "isolation", "processes")  # where `_base` stood before there was one
APART = ("qa_hooks/_base/", "qa_hooks/functional/", *(f"qa_hooks/{name}.py" for name in OLD_BASE))


def files_called(trip: Trip, folder: Path, root: Path) -> list[str]:
    """The files under `root` of which something is called from where the trip begins to its end."""
    codes = set()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # not the body of a module or class
            codes.add(frame.f_code)

    def begin() -> None:
        threading.setprofile(profile)
        sys.setprofile(profile)

    try:
        trip(begin, folder)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    folders = tuple(str(root / top) + os.sep for top in ("qa_hooks", "integrations"))
    files = {code.co_filename for code in codes if code.co_filename.startswith(folders)}
    return sorted(str(Path(file).relative_to(root)) for file in files if not file.endswith("__init__.py"))


def brightness(name: str) -> Any:
    from qa_hooks.scorers import FunctionScorer

    return FunctionScorer(lambda x: x.mean((1, 2, 3)), name=name, higher_is_better=True, score_range=(0.0, 1.0))


def sample(n: int, generator: Any) -> Any:
    import torch

    return torch.rand(n, 3, 32, 32, generator=generator)


def second_step(callback: Any, begin: Begin) -> None:
    """A monitor at work; the first step has the preparations."""
    from qa_hooks.callbacks import Hooks
    from qa_hooks.writers import MemoryWriter

    hooks = Hooks([callback], writer=MemoryWriter())
    hooks.step()
    begin()
    hooks.step()


def generative_monitor(begin: Begin, folder: Path) -> None:
    import torch

    from qa_hooks.callbacks import GenerativeMonitor

    options: dict[str, Any] = {"extractor": "random", "metrics": ("fd", "kid"), "n": 64, "every": 1}
    second_step(GenerativeMonitor(sample, real=torch.rand(64, 3, 32, 32), **options), begin)


def reward_guard(begin: Begin, folder: Path) -> None:
    import torch

    from qa_hooks.callbacks import RewardGuard

    options: dict[str, Any] = {"heldout": [brightness("other")], "real": torch.rand(32, 3, 32, 32)}
    second_step(RewardGuard(brightness("reward"), sample=sample, n=16, every=1, **options), begin)


def score(begin: Begin, folder: Path) -> None:
    import torch

    from qa_hooks.cli import main
    from qa_hooks.images import save_image

    for i in range(3):
        save_image((torch.rand(3, 128, 128) * 255).to(torch.uint8), folder / f"{i}.png")
    table = folder / "scores.csv"
    table.unlink(missing_ok=True)
    with after_parsing(begin):
        if main(["score", str(folder), "--scorer", "niqe_bsd100", "-o", str(table)]) != 0:
            raise RuntimeError("qa-hooks score failed")


@contextlib.contextmanager
def after_parsing(begin: Begin) -> Iterator[None]:
    """Calls `begin` when the arguments have been parsed: the parsers of the other commands are no part of the trip."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_begin(*arguments: Any, **named: Any) -> Any:
        options = parse(*arguments, **named)
        begin()
        return options

    argparse.ArgumentParser.parse_args = parse_and_begin  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]


def score_loss(begin: Begin, folder: Path) -> None:
    import torch

    from qa_hooks.losses import ScoreLoss

    loss = ScoreLoss(brightness("reward"), ceiling=0.9, balance=1.0, views=2)
    pred = torch.rand(2, 3, 32, 32, requires_grad=True)
    begin()
    loss(pred, fidelity=pred.square().mean()).backward()


TRIPS: dict[str, Trip] = {
    "GenerativeMonitor": generative_monitor,
    "RewardGuard": reward_guard,
    "qa-hooks score": score,
    "ScoreLoss": score_loss,
}


def main(root: Path, *, verbose: bool) -> None:
    sys.path.insert(0, str(root))
    import qa_hooks

    if Path(qa_hooks.__file__).resolve().parent != root / "qa_hooks":
        raise SystemExit(f"qa_hooks was imported from {qa_hooks.__file__}, not from {root}")
    warnings.simplefilter("ignore")
    for name, trip in TRIPS.items():
        with contextlib.ExitStack() as quiet:
            folder = Path(quiet.enter_context(tempfile.TemporaryDirectory()))
            quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
            quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
            trip(lambda: None, folder)
            files = files_called(trip, folder, root)
        if name == "qa-hooks score":
            files = [file for file in files if not file.startswith("qa_hooks/scorers/niqe") and "natural" not in file]
        apart = [file for file in files if file.startswith(APART)]
        print(f"{name:18} {len(files) - len(apart):3} files, and {len(apart)} of functional and _base")
        if verbose:
            print("".join(f"    {file}{'  (apart)' * (file in apart)}\n" for file in files), end="")


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "-v"]
    main(Path(arguments[0] if arguments else ".").resolve(), verbose="-v" in sys.argv)
