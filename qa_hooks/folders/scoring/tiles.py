"""The pieces of a folder of images that scorers see: whole images or tiles, with their references."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from torch import Tensor

from qa_hooks._base.checks import check_count, warn
from qa_hooks.images import list_images, load_image
from qa_hooks.scorers import Scorer


@dataclass
class PiecedImage:
    """One image on its way: its pieces (itself, or its tiles) and what has come of them.

    `problem` says why there are no pieces, or why a scorer has none of the scores; `alone` why there are no references.
    """

    name: str
    pieces: list[Tensor]
    references: list[Tensor]
    corners: list[tuple[int, int]]
    problem: str = ""
    alone: str = "there is no reference"
    prompt: str | None = None
    scores: dict[str, list[float]] = field(default_factory=dict)


def tile_corners(height: int, width: int, side: int, overlap: int = 0) -> list[tuple[int, int]]:
    """`(x, y)` of the tiles that cover an image, row by row; the last of a row and a column are shifted inwards.

    Example:
        >>> tile_corners(100, 250, 100)
        [(0, 0), (100, 0), (150, 0)]
    """

    def starts(length: int) -> list[int]:
        return [*range(0, length - side, side - overlap), length - side] if length > side else [0]

    return [(x, y) for y in starts(height) for x in starts(width)]


def read_pieces(
    name: str, path: Path, references: Callable[[str], Path | None] | None, tiles: int | None, overlap: int
) -> PiecedImage:
    """An image and its reference, in pieces; what is wrong with either is noted.

    Args:
        name: of the image, for tables and messages.
        path: its file.
        references: a name -> the file of its reference, None where it has none; it may raise `ValueError`.
        tiles, overlap: as in `score_folder`.
    """
    reference, alone = None, PiecedImage.alone
    try:  # the parsers of a dozen formats raise what they like, and one bad file must not end the run
        image = load_image(path)
    except Exception as error:
        return PiecedImage(name, [], [], [], problem=problem_of(error, path))
    try:
        reference = None if references is None else _read_reference(references(name), image)
    except Exception as error:
        alone = problem_of(error, path)
    _, height, width = image.shape
    corners = tile_corners(height, width, tiles, overlap) if tiles else [(0, 0)]
    side = tiles or max(height, width)

    def cut(whole: Tensor) -> list[Tensor]:
        return [whole[:, y : y + side, x : x + side] for x, y in corners]

    return PiecedImage(name, cut(image), [] if reference is None else cut(reference), corners, alone=alone)


def problem_of(error: Exception, path: str | Path) -> str:
    """What is wrong with an image, in one line without its path, which stands before it anyway.

    Example:
        >>> problem_of(FileNotFoundError(2, "No such file or directory", "a.png"), "a.png")
        '[Errno 2] No such file or directory'
    """
    told = str(error).removeprefix(f"{path} ").replace(f": {str(path)!r}", "").replace(f" {str(path)!r}", "")
    return " ".join(told.split()) or type(error).__name__


def _read_reference(path: Path | None, image: Tensor) -> Tensor:
    if path is None:
        raise ValueError("it has no reference of the same name")
    reference = load_image(path)
    if reference.shape[1:] != image.shape[1:]:
        (height, width), (own_height, own_width) = reference.shape[1:], image.shape[1:]
        cut = 0 <= height - own_height < 8 and 0 <= width - own_width < 8
        hint = " (cut references to a multiple of the scale, as networks cut their inputs)" * cut
        raise ValueError(f"its reference is {width}x{height}, itself it is {own_width}x{own_height}{hint}")
    return reference


class References:
    """Relative path of an image -> its reference: of the same name, whatever the format, or of its beginning.

    Super-resolution trainers write `baby_x2_SR.png` for `baby.png`: where no image has the name of a reference, and
    what stands behind the references' names is the same for all images that have one, each has the one without it.

    Attributes:
        ending: what stands behind the references' names; "" where they have the images' names.
        remark: what is compared with what, where they do not.
    """

    def __init__(self, folder: str | Path) -> None:
        self.ending = self.remark = ""
        root = Path(folder)
        self._by_name = {path.relative_to(root).as_posix(): path for path in list_images(root)}
        self._by_stem: dict[str, list[Path]] = {}
        for name, path in self._by_name.items():
            self._by_stem.setdefault(_stem(name), []).append(path)

    def of(self, images: Iterable[Sequence[str]]) -> References:
        """The references of a set of images: one ending, decided from all names, in whatever order they come.

        Args:
            images: the names that each may have; of several endings that fit all images the shortest is taken.
        """
        common: dict[str, str] | None = None  # ending -> the name of an image
        for names in images:
            own = {end: name for name in names if (end := _ending(_stem(name), self._by_stem)) is not None}
            own = {"": own[""]} if "" in own else own
            if own:
                common = {end: name for end, name in own.items() if common is None or end in common}
        found = copy.copy(self)
        found.ending, example = min((common or {"": ""}).items(), key=lambda one: len(one[0]))
        if found.ending:
            pair = f"such as {example} with {_stem(example).removesuffix(found.ending)}"
            found.remark = f"names that end in {found.ending!r} are compared with the references without it, {pair}"
        return found

    def __call__(self, name: str) -> Path | None:
        alike = self._by_stem.get(_stem(name).removesuffix(self.ending), [])
        return self._by_name.get(name) or (alike[0] if len(alike) == 1 else None)


def find_references(
    reference: str | Path | None, named: Mapping[str, Scorer], names: Iterable[str] = ()
) -> References | None:
    """The references of images; None where no scorer compares.

    Args:
        reference: the folder of references.
        named: the scorers.
        names: of all images. An ending that they have and their references do not is told.
    """
    needing = [name for name, scorer in named.items() if "reference" in scorer.inputs]
    if reference is None:
        if needing:
            raise ValueError(f"{', '.join(needing)} compares with references: name their folder with reference=")
        return None
    if not needing:
        without = f"{', '.join(named)} takes none" if named else "there is no scorer"
        raise ValueError(f"reference= was given, but {without}")
    found = References(reference).of((name,) for name in names)
    if found.remark:
        warn(found.remark)
    return found


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _ending(stem: str, stems: Collection[str]) -> str | None:
    """What stands behind the longest of `stems` with which this one begins, a separator first; None without one."""
    if stem in stems:
        return ""
    cuts = range(len(stem) - 1, 0, -1)
    return next((stem[cut:] for cut in cuts if stem[cut] in "_-. " and stem[:cut] in stems), None)


def check_tiles(tiles: int | None, overlap: int) -> int | None:
    """The side of the tiles, or None for whole images; `ValueError` for an overlap that does not leave room."""
    tiles = None if tiles is None else check_count("tiles", tiles)
    if not 0 <= overlap < (tiles or 1):
        raise ValueError(f"overlap must lie in [0, tiles), got {overlap} with tiles={tiles}")
    return tiles
