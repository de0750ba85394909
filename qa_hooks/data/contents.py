"""Fingerprints of the files of a data set, by sample, and the check that a table was made from the same files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from qa_hooks._base.checks import warn
from qa_hooks._base.containers import member_bytes
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.progress import counted
from qa_hooks._base.text import plural
from qa_hooks.data.candidates import CandidateSet, some
from qa_hooks.folders.scoring.growing import left_spec
from qa_hooks.images import image_size
from qa_hooks.sources.windows import read_ahead

Size = tuple[int, int]
Contents = Mapping[str, Sequence[str | None]]  # sample -> K fingerprints, None where a candidate is missing


def contents_of(sets: Sequence[CandidateSet], progress: bool) -> dict[str, list[str | None]]:
    """Key -> fingerprints of the files; `ValueError` for a missing file and for candidates of different sizes."""
    paths = [path for candidates in sets for path in candidates.paths if path is not None]
    bar = counted(read_ahead(_read, paths), "files", total=len(paths), unit="file", shown=progress)
    read = dict(zip(paths, bar, strict=True))
    uneven = []
    for candidates in sets:
        sizes = {read[path][1] for path in candidates.paths if path is not None} - {None}
        if len(sizes) > 1:
            uneven.append(f"{candidates.key} ({', '.join(f'{w}x{h}' for w, h in sorted(filter(None, sizes)))})")
    if uneven:
        raise ValueError(f"{len(uneven)} of {len(sets)} sets have candidates of different sizes: {some(uneven)}")
    return {s.key: [None if path is None else read[path][0] for path in s.paths] for s in sets}


def _read(path: Path) -> tuple[str, Size | None]:
    """The fingerprint of a file and the size of its image, upright; no size when it is no image."""
    try:
        data = member_bytes(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        return fingerprint(data), image_size(path)
    except Exception:  # parsers raise what they like; the scoring will say what is wrong with it
        return fingerprint(data), None


def compare_contents(path: Path, now: Contents, source: str) -> None:
    """Refuse to continue the table of another data set; say which images have changed."""
    old = left_spec(path)
    if old is None:
        return
    if "sets" not in old:
        raise ValueError(f"{path} is a table of `qa-hooks score`, no quality table: choose another path")
    before: Contents = old["sets"]
    if not set(all_contents(before)) & set(all_contents(now)):
        raise ValueError(
            f"{path} is of another data set: it has {_describe(before, old.get('source'))}, none of whose images is "
            f"among the {_describe(now, source)}; choose another path, or start anew with resume=False"
        )
    changed = [
        key
        for key, contents in now.items()
        if any(was not in (None, new) for was, new in zip(before.get(key, ()), contents, strict=False))
    ]
    if changed:
        warn(f"{len(changed)} of {plural(len(now), 'sample')} have changed since {path} was made: {some(changed)}")


def _describe(sets: Contents, source: object) -> str:
    return f"{len(sets)} samples of {max(map(len, sets.values()))} candidates from {source} ({some(sets)})"


def all_contents(sets: Contents) -> Iterator[str]:
    """The fingerprints of all files."""
    return (content for contents in sets.values() for content in contents if content is not None)
