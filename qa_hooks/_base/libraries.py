"""Other libraries where they are used: imported with the command that installs them, their downloads explained."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any, TextIO, cast

import torch

from qa_hooks._base.isolation import isolated


def import_library(module: str, *, needed_by: str = "", install: str = "") -> ModuleType:
    """The module of a library, or an ImportError with the command that installs the library.

    Args:
        module: its name, such as "peft" or "pyarrow.parquet".
        needed_by: what cannot do without it, for the message.
        install: the command, where it is not `pip install` with the library's name.
    """
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (library, module):
            raise ImportError(f"{library} is installed, but it needs {error.name}: {_pip(error.name)}") from error
        missing = f"{needed_by} needs {library}" if needed_by else f"{library} is not installed"
        raise ImportError(f"{missing}: {install or _pip(library)}") from error


def installed_version(library: str) -> str | None:
    """The version of a library by its name on PyPI; None where it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


@contextlib.contextmanager
def loading(spec: str) -> Iterator[None]:
    """A block in which a library builds a metric and fetches its weights: random states are kept, failures explained.

    What it prints goes to stderr, where it cannot mix with a command's output.

    Raises:
        ImportError: a package is missing that only this metric needs.
        RuntimeError: the download failed; the message says which file is wanted and how to provide it. Or a file of
            weights is broken.
    """
    from safetensors import SafetensorError

    said = _Listener(sys.stderr)
    try:
        with isolated(), contextlib.redirect_stdout(cast(TextIO, said)), contextlib.redirect_stderr(cast(TextIO, said)):
            yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{spec} needs {error.name}: {_pip(error.name)}") from error
    except (SafetensorError, EOFError) as error:
        raise RuntimeError(
            f"the weights of {spec} cannot be read, a file is cut off or is none of weights: {error}"
        ) from error
    except OSError as error:  # URLError, HTTPError, the Hugging Face hub's and requests' errors
        wanted = [line.removeprefix("Downloading: ") for line in said.lines if line.startswith("Downloading: ")]
        reason = str(error).splitlines()[0] if str(error) else repr(error)
        raise RuntimeError(
            f"the weights of {spec} could not be loaded: {reason}. "
            + (f"Wanted: {wanted[-1]}. Without a network put that file there" if wanted else "Without a network")
            + f"{', or' if wanted else ''} run create_scorer({spec!r}) on a machine that has one and copy "
            f"{torch.hub.get_dir()} (TORCH_HOME), the Hugging Face cache (HF_HOME) and ~/.cache/clip"
        ) from error


def _pip(package: str | None) -> str:
    if package == "pkg_resources":
        return "pip install 'setuptools<81' (newer ones have no pkg_resources)"
    return f"pip install {package}"


class _Listener:
    """A stream that passes everything on and remembers the lines."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return self.stream.write(text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
