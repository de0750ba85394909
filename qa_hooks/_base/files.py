"""Files that appear whole or not at all, and safetensors with a header that says what they hold.

A process that is killed while it writes leaves the old file, or none, beside a `*.partial`; never half a file under the
real name. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

VERSION = "1"  # of all our formats of safetensors


def check_writable(folder: str | Path, *, name: str = "log_dir") -> None:
    """Make `folder` and write a file in it; `ValueError` that names the argument when that fails."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"qa_hooks")
    except OSError as error:
        raise ValueError(f"{name}={str(folder)!r} cannot be written: {error}") from error


def walk_files(root: Path) -> Iterator[Path]:
    """All files below a folder. Links to folders are followed, each folder is read once; hidden names are left out."""
    seen: set[tuple[int, int]] = set()
    links = [root]
    while links:  # what a link leads to may also stand in the tree under its own name, which comes first
        pending = [links.pop(0)]
        while pending:
            folder = pending.pop()
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith("."):
                        continue
                    path, is_link = Path(entry.path), entry.is_symlink()
                    if not (path.is_dir() if is_link else entry.is_dir()):  # a link to itself is no folder either
                        yield path
                    else:
                        (links if is_link else pending).append(path)


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """One process at a time works on `path`; a lock of a process that was killed counts no more.

    Raises:
        ValueError: another process is at work on it.
    """
    from filelock import FileLock, Timeout

    file = Path(f"{path}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another run is at work on {path}: wait for its end, or choose another place") from None
    except NotImplementedError:  # a file system without locks
        yield
        return
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A path to write to; without an error it takes the place of `path` at the end, with one it is gone.

    What killed processes of this machine have left half-written under the same name is removed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with whole_file(path) as partial:
        ...     _ = partial.write_text("all of it")
        >>> path.read_text(), len(list(path.parent.iterdir()))
        ('all of it', 1)
    """
    path = Path(path)
    host = re.sub(r"\W+", "-", platform.node())
    partial = path.with_name(f"{path.name}.{os.getpid()}@{host}.partial")
    for left in path.parent.glob(f"{glob.escape(path.name)}.*@{host}.partial"):
        if not _is_alive(left.name.removeprefix(f"{path.name}.").partition("@")[0]):
            left.unlink(missing_ok=True)
    try:
        with naming(path):
            yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A block that writes a file: what the system has against it, such as a full disk, names the file.

    Example:
        >>> with naming("scores.csv"):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'scores.csv'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_alive(process: str) -> bool:
    if not process.isdecimal() or os.name != "posix":
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, UTF-8, with the line ends as they are."""
    with whole_file(path) as partial:
        partial.write_bytes(text.encode())


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and a header of texts; `OSError` says why it cannot (a full disk, a folder that is gone)."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with whole_file(path) as partial:
            save_file(plain, partial, metadata=dict(metadata))
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        raise OSError(f"{path} could not be written: {error}") from error


def read_safetensors(
    path: str | Path, complaint: str, *, format: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file.

    Args:
        path: the file.
        complaint: how the message goes on after the path: "does not hold features".
        format: what the header must have under "format"; None leaves that to the caller.

    Raises:
        ValueError: no such file, a broken one, one of another format, or numbers that are not finite; the message
            names it.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist")
    try:
        with torch.device("cpu"), safe_open(str(path), framework="pt") as file:  # whatever the user's default device
            metadata = dict(file.metadata() or {})
            # Copies: safetensors maps the file, and writing over it later would change them, or end the process.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} {complaint}: {error}") from error
    if metadata.get("format", "").startswith("qa_hooks.") and metadata.get("version", VERSION) != VERSION:
        version = metadata["version"]
        raise ValueError(
            f"{path} {complaint}: its format has the version {version!r}, and this qa_hooks reads version "
            f"{VERSION}: it was written by another release"
        )
    if format is not None and metadata.get("format") != format:
        raise ValueError(f"{path} {complaint}: its format is {metadata.get('format')!r}, expected {format!r}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path} {complaint}: {name!r} holds numbers that are not finite")
    return tensors, metadata


def inside_folder(name: str, folder: Path) -> Path:
    """An existing file below `folder`, named relative to it; `ValueError` when it is absolute, outside or missing."""
    relative = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
    if relative.is_absolute() or Path(name).is_absolute() or relative.parts[:1] == ("..",):
        raise ValueError(f"{name!r} is outside the folder of the CSV")
    path = folder / relative
    if not path.is_file():
        raise ValueError(f"{name!r} does not exist")
    return path
