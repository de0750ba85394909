"""The files behind the names of a table of ratings, with the traps of published sets.

Names in a table and on disk differ in case (TID2013: `I01_01_1.bmp` and `i01_01_1.bmp`), in the folder in front and in
the suffix. A name is looked for as it is written first, then by its last parts, then without regard to case, then
without its suffix. Two files that fit equally well are an error: nothing is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from qa_hooks._base.decoding import IMAGE_SUFFIXES

MOST_MISSING = 0.5  # the share of missing images above which the folder is taken for the wrong one


class ImageFinder:
    """Finds the file of each name below a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"images={str(folder)!r} is no folder")
        self.files: dict[str, list[Path]] = {}
        for root, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                    path = Path(root) / name
                    for key in {path.name, path.name.lower(), path.stem.lower()}:
                        self.files.setdefault(key, []).append(path)

    def find(self, name: str) -> Path | None:
        """The one file of this name; None where there is none.

        Raises:
            ValueError: the name leads out of the folder, or several files fit it equally well.
        """
        relative = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
        if relative.is_absolute() or Path(name).is_absolute() or relative.parts[:1] == ("..",):
            raise ValueError(f"{name!r} is outside the folder {self.folder}")
        if (self.folder / relative).is_file():
            return self.folder / relative
        for key in (relative.name, relative.name.lower(), relative.stem.lower()):
            found = self.files.get(key, [])
            if len(found) > 1:  # the one whose folders agree with the name's, from the end
                agreeing = [_agreement(path, relative) for path in found]
                best = max(agreeing)
                found = [path for path, same in zip(found, agreeing, strict=True) if same == best]
            if len(found) > 1:
                raise ValueError(f"{name!r} could be {found[0]} or {found[1]}: name the folder of one of them")
            if found:
                return found[0]
        return None


def _agreement(path: Path, name: PurePosixPath) -> int:
    """How many of the last folders are alike."""
    count = 0
    for ours, theirs in zip(path.parts[-2::-1], name.parts[-2::-1], strict=False):
        if ours.lower() != theirs.lower():
            break
        count += 1
    return count


def find_images(names: Iterable[str], folder: str | Path) -> list[Path | None]:
    """The file of each name, in order, None where it is missing.

    Raises:
        ValueError: more than half of the images are missing, a name leads out of the folder, or fits two files.
    """
    finder, names = ImageFinder(folder), list(names)
    known: dict[str, Path | None] = {}
    places = [known[name] if name in known else known.setdefault(name, finder.find(name)) for name in names]
    missing = [name for name, place in zip(names, places, strict=True) if place is None]
    if len(missing) > MOST_MISSING * len(names):
        raise ValueError(
            f"{len(missing)} of {len(names)} images are not in {folder} (the first is {missing[0]!r}): is it the right "
            "folder?"
        )
    return places
