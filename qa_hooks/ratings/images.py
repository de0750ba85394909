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


class NameFinder:
    """Finds the one path that a name means among many.

    Args:
        paths: relative paths with forward slashes.
        where: what they are relative to, for messages.

    Example:
        >>> NameFinder(["set/I01_01_1.bmp", "set/I02_01_1.bmp"]).find("i01_01_1.png")
        'set/I01_01_1.bmp'
    """

    def __init__(self, paths: Iterable[str], where: str = "the table") -> None:
        self.where = where
        self.paths = dict.fromkeys(paths)
        self._by_key: dict[str, list[str]] = {}
        for path in self.paths:
            pure = PurePosixPath(path)
            for key in {pure.name, pure.name.lower(), pure.stem.lower()}:
                self._by_key.setdefault(key, []).append(path)

    def find(self, name: str) -> str | None:
        """The path of this name; None where there is none.

        Raises:
            ValueError: the name leads out of the folder, or several paths fit it equally well.
        """
        relative = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
        if relative.is_absolute() or Path(name).is_absolute() or relative.parts[:1] == ("..",):
            raise ValueError(f"{name!r} is outside {self.where}")
        if str(relative) in self.paths:
            return str(relative)
        for key in (relative.name, relative.name.lower(), relative.stem.lower()):
            found = self._by_key.get(key, [])
            if len(found) > 1:  # the one whose folders agree with the name's, from the end
                agreeing = [_agreement(PurePosixPath(path), relative) for path in found]
                best = max(agreeing)
                found = [path for path, same in zip(found, agreeing, strict=True) if same == best]
            if len(found) > 1:
                raise ValueError(
                    f"{name!r} could be {found[0]} or {found[1]} of {self.where}: name the folder of one of them"
                )
            if found:
                return found[0]
        return None

    def find_all(self, names: Iterable[str]) -> list[str | None]:
        """The path of each name, in order, None where it is missing.

        Raises:
            ValueError: more than half of them are missing, or as in `find`.
        """
        names = list(names)
        known: dict[str, str | None] = {}
        places = [known[name] if name in known else known.setdefault(name, self.find(name)) for name in names]
        missing = [name for name, place in zip(names, places, strict=True) if place is None]
        if len(missing) > MOST_MISSING * len(names):
            raise ValueError(
                f"{len(missing)} of {len(names)} images are not in {self.where} (the first is {missing[0]!r}): is it "
                "the right one?"
            )
        return places


def _agreement(path: PurePosixPath, name: PurePosixPath) -> int:
    """How many of the last folders are alike."""
    count = 0
    for ours, theirs in zip(path.parts[-2::-1], name.parts[-2::-1], strict=False):
        if ours.lower() != theirs.lower():
            break
        count += 1
    return count


class ImageFinder:
    """Finds the image file of each name below a folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"images={str(folder)!r} is no folder")
        paths = []
        for root, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside = Path(root).relative_to(self.folder)
            found = (name for name in sorted(names) if Path(name).suffix.lower() in IMAGE_SUFFIXES)
            paths += [(inside / name).as_posix() for name in found]
        self.names = NameFinder(paths, f"the folder {folder}")

    def find(self, name: str) -> Path | None:
        """The one file of this name, as `NameFinder.find`."""
        place = self.names.find(name)
        return None if place is None else self.folder / place


def find_images(names: Iterable[str], folder: str | Path) -> list[Path | None]:
    """The file of each name, in order, None where it is missing.

    Raises:
        ValueError: more than half of the images are missing, a name leads out of the folder, or fits two files.
    """
    places = ImageFinder(folder).names.find_all(names)
    return [None if place is None else Path(folder) / place for place in places]
