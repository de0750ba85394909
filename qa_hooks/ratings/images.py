"""The files behind the names of a table of ratings, with the traps of published sets.

Names in a table and on disk differ in case (TID2013: `I01_01_1.bmp` and `i01_01_1.bmp`), in how many folders stand in
front and in the suffix. A name is looked for as it is written first, then by its last part, then without regard to
case, then without its image suffix. Folders that both have must agree: `noise/1.png` is not `blur/1.png`. Two files
that fit equally well are an error, and so are two names that fit one file equally well: nothing is guessed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from qa_hooks._base.decoding import IMAGE_SUFFIXES
from qa_hooks._base.text import plural
from qa_hooks.ratings.rows import stem

LOG = logging.getLogger("qa_hooks")
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
            for key in {pure.name, pure.name.lower(), stem(pure.name).lower()}:
                self._by_key.setdefault(key, []).append(path)

    def find(self, name: str) -> str | None:
        """The path of this name; None where there is none.

        Raises:
            ValueError: the name leads out of the folder, or several paths fit it equally well.
        """
        found = self._find(name)
        return None if found is None else found[0]

    def _find(self, name: str) -> tuple[str, tuple[int, int]] | None:
        """The path, and how well it fits: less is better."""
        relative = PurePosixPath(plain_name(name))
        if relative.is_absolute() or Path(name).is_absolute() or relative.parts[:1] == ("..",):
            raise ValueError(f"{name!r} is outside {self.where}")
        if str(relative) in self.paths:
            return str(relative), (0, 0)
        for loss, key in enumerate((relative.name, relative.name.lower(), stem(relative.name).lower()), 1):
            alike = [(path, _agreement(PurePosixPath(path), relative)) for path in self._by_key.get(key, [])]
            agreeing = [(path, folders) for path, folders in alike if folders is not None]
            best = max((folders for _, folders in agreeing), default=0)
            found = [path for path, folders in agreeing if folders == best]
            if len(found) > 1:
                raise ValueError(
                    f"{name!r} could be {found[0]} or {found[1]} of {self.where}: name the folder of one of them"
                )
            if found:
                return found[0], (loss, -best)
        return None

    def match(self, names: Iterable[str], *, shared: bool = False) -> list[str | None]:
        """The path of each name, in order, None where it is missing; a path belongs to the name that fits it best.

        Args:
            names: as they are written.
            shared: several names may mean one path, as the names of references do.

        Raises:
            ValueError: two names fit one path equally well, or as in `find`.
        """
        names = list(names)
        known = {name: self._find(name) for name in dict.fromkeys(names)}
        owners: dict[str, tuple[str, tuple[int, int]]] = {}
        rivals: dict[str, tuple[str, str]] = {}
        for name, found in known.items():
            if found is None or shared:
                continue
            path, fit = found
            owner, before = owners.get(path, (name, fit))
            if fit <= before:
                owners[path] = name, fit
                rivals.pop(path, None)
                if fit == before and plain_name(owner) != plain_name(name):
                    rivals[path] = owner, name
        for path, (first, second) in rivals.items():
            raise ValueError(f"{first!r} and {second!r} would both be {path} of {self.where}: name the one that it is")
        places: list[str | None] = []
        for name in names:
            found = known[name]
            own = found is not None and (shared or plain_name(owners[found[0]][0]) == plain_name(name))
            places.append(found[0] if found is not None and own else None)
        return places

    def find_all(self, names: Iterable[str], *, shared: bool = False) -> list[str | None]:
        """The path of each name, as `match`; names that are missing are counted in a warning.

        Raises:
            ValueError: more than half of them are missing, or as in `match`.
        """
        names = list(names)
        places = self.match(names, shared=shared)
        missing = [name for name, place in zip(names, places, strict=True) if place is None]
        if len(missing) > MOST_MISSING * len(names):
            raise ValueError(
                f"{len(missing)} of {plural(len(names), 'image')} are not in {self.where} (the first is "
                f"{missing[0]!r}): is it the right one? Folders that both have must agree"
            )
        if missing:
            LOG.warning(
                "%d of %d images are not in %s; the first is %r", len(missing), len(names), self.where, missing[0]
            )
        return places


def plain_name(name: str) -> str:
    """The name with forward slashes and without what says nothing, such as "./"."""
    return os.path.normpath(name.replace("\\", "/"))


def inside(name: str, folder: str | Path) -> str:
    """A whole path into a folder as its part below the folder; other names as they are.

    Example:
        >>> inside("/data/photos/a/1.png", "/data/photos"), inside("a/1.png", "/data/photos")
        ('a/1.png', 'a/1.png')
    """
    path = Path(name)
    for root in (Path(folder).absolute(), Path(folder).resolve()):
        if path.is_absolute() and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return name


def _agreement(path: PurePosixPath, name: PurePosixPath) -> int | None:
    """How many of the last folders are alike; None where one contradicts the other."""
    both = list(zip(path.parts[-2::-1], name.parts[-2::-1], strict=False))
    return len(both) if all(ours.lower() == theirs.lower() for ours, theirs in both) else None


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
        place = self.names.find(inside(name, self.folder))
        return None if place is None else self.folder / place


def find_images(names: Iterable[str], folder: str | Path, *, shared: bool = False) -> list[Path | None]:
    """The file of each name, in order, None where it is missing; two names never get one file unless `shared`.

    Raises:
        ValueError: more than half of the images are missing, a name leads out of the folder or fits two files, or two
            names fit one file equally well.
    """
    finder = ImageFinder(folder)
    places = finder.names.find_all([inside(name, finder.folder) for name in names], shared=shared)
    return [None if place is None else Path(folder) / place for place in places]
