"""Pictures of many pictures, which most trainers write as their samples: noticed, and cut when asked for.

A score of such a grid is a confident number about nothing. What is cut has names of its own: `1000.png#8x4+2/05.png`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qa_hooks._base.checks import warn
from qa_hooks._base.containers import Grid, cut_grid, parse_grid, read_pixels
from qa_hooks._base.decoding import Pixels
from qa_hooks._base.text import printable
from qa_hooks.images import list_images

PROBED = 3  # files of a folder that are looked at
SMALLEST = 8  # side of a cell
EQUAL = 7.0  # levels by which the pixels of a separating line may differ on average: JPEG blurs them
STEP = 2.0  # times the change between other lines is that across the edge of a cell, where nothing lies between
MOST = 32  # cells in a row
WIDEST = 8  # pixels of a line between cells
NAMED = re.compile(r"grid|contact.?sheet|montage", re.IGNORECASE)


def find_images(folder: str | Path, grid: str | None = None) -> list[Path]:
    """The images of a folder, each cell of a grid one image.

    Args:
        folder: what `list_images` takes.
        grid: "8x4" (eight in a row, four rows), "8x4+2" (two pixels between), or "auto": each picture that looks like
            a grid is cut as it looks. None cuts nothing, and warns where pictures look like grids.

    Raises:
        ValueError: no images, or pictures that cannot be cut so.
    """
    paths = list_images(folder)
    if grid is None:
        warn_of_grids(paths)
        return paths
    return cut(paths, grid)


def cut(paths: Sequence[Path], grid: str) -> list[Path]:
    """Each cell of each picture; with "auto" a picture that looks like none stays whole. Broken files stay, too."""
    fixed = None if grid == "auto" else parse_grid(grid)
    cells: list[Path] = []
    for path in paths:
        try:
            pixels = read_pixels(path)
        except Exception:  # whoever reads it next says what is wrong with it
            cells.append(path)
            continue
        found = fixed or find_grid(pixels)
        try:
            cells += [path] if found is None else cut_grid(path, found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return cells


def grid_remark(paths: Sequence[Path]) -> str:
    """A word about pictures that look like grids, or are called so; "" where none does. A few are looked at."""
    for path in [paths[n * (len(paths) - 1) // max(1, PROBED - 1)] for n in range(min(PROBED, len(paths)))]:
        try:
            found = find_grid(read_pixels(path))
        except Exception:  # told by whoever reads it next
            continue
        if found is not None:
            return (
                f"{printable(path.name, one_line=True)} looks like a grid of many images ({found}), and what is "
                f"measured on it says nothing about them: grid='{found}' cuts such pictures, grid='auto' each "
                "as it looks"
            )
    named = next((path for path in paths if NAMED.search(path.stem)), None)
    if named is not None:
        return (
            f"{printable(named.name, one_line=True)} is called a grid of many images: grid='COLUMNSxROWS+PADDING' "
            "cuts such pictures; what is measured on a grid says nothing about its images"
        )
    return ""


def warn_of_grids(paths: Sequence[Path]) -> None:
    """Warn where pictures look like grids."""
    remark = grid_remark(paths)
    if remark:
        warn(remark)


def find_grid(pixels: Pixels) -> Grid | None:
    """The grid that a picture `(H, W, C)` looks like, by lines of one colour at equal distances, or by sharp edges.

    Example:
        >>> picture = np.full((2 * 18 + 2, 3 * 18 + 2, 3), 255, dtype=np.uint8)
        >>> for box in Grid(3, 2, 2).boxes(38, 56):
        ...     noise = np.random.default_rng(box).integers(0, 256, (16, 16, 3))
        ...     picture[box[0] : box[0] + 16, box[1] : box[1] + 16] = noise
        >>> str(find_grid(picture))
        '3x2+2'
    """
    values = pixels.astype(np.float32)
    down, across = _Side(values), _Side(values.transpose(1, 0, 2))
    found = [
        grid
        for padding in range(1, WIDEST + 1)
        for border in (padding, 0)
        if (grid := _lined(down, across, padding, border)) is not None
    ]
    if found:
        return max(found, key=lambda grid: (grid.columns * grid.rows, grid.padding))
    grid = Grid(across.sharp_edges(), down.sharp_edges())
    return grid if grid.columns * grid.rows > 2 else None


def _lined(down: _Side, across: _Side, padding: int, border: int) -> Grid | None:
    """The grid whose lines of this width are all there."""
    rows, columns = (side.cells_between_lines(padding, border) for side in (down, across))
    grid = Grid(columns.number, rows.number, padding)
    both = min(columns.number, rows.number) > 1
    alike = not both or _are_alike(np.stack([columns.colour, rows.colour]))
    # Lines in one direction alone, or a cross, may be the margins of one picture: the cells must begin beside them.
    enough = both and max(columns.number, rows.number) > 2 and columns.exact and rows.exact
    sharp = max(columns.number, rows.number) > 2 - both and columns.sharp and rows.sharp
    if not alike or not (enough or sharp):
        return None
    try:
        boxes = grid.boxes(len(down.flat), len(across.flat))
    except ValueError:
        return None
    framed = boxes[0][:2] == (border, border)
    return grid if framed and min(boxes[0][2:]) >= SMALLEST else None


def _are_alike(colours: np.ndarray[Any, Any]) -> bool:
    """Whether `(n, C)` colours are one: JPEG keeps their brightness, and lets the hue of what is beside them in."""
    return bool(np.ptp(colours.mean(1)) < 2 * EQUAL and np.ptp(colours, axis=0).max() < 4 * EQUAL)


class _Cells(NamedTuple):
    number: int
    colour: np.ndarray[Any, Any]
    sharp: bool  # the lines at the edges of the cells are not of one colour
    exact: bool  # the lines between the cells are, to the last bit


class _Side:
    """The lines of a picture in one direction: which have one colour, and how much changes from each to the next."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        middle = np.median(values, axis=1)
        self.colours = middle
        apart = np.abs(values - middle[:, None])
        self.flat, self.exact = apart.mean(axis=(1, 2)) < EQUAL, apart.max(axis=(1, 2)) < 1
        self.change = np.abs(np.diff(values, axis=0)).mean(axis=(1, 2))

    def cells_between_lines(self, padding: int, border: int) -> _Cells:
        """The largest number of equal cells between which there are lines of one colour; 1 where there are none."""
        length = len(self.flat)
        for count in range(min(MOST, length // SMALLEST), 1, -1):
            if (length - 2 * border + padding) % count:
                continue
            pitch = (length - 2 * border + padding) // count
            starts = [border + n * pitch - padding for n in range(0 if border else 1, count + (1 if border else 0))]
            lines = np.array([start + n for start in starts for n in range(padding)])
            cells = [self.flat[start : start + pitch - padding] for start in range(border, length - border, pitch)]
            if any(cell.all() for cell in cells):  # nothing is in it
                continue
            if self.flat[lines].all() and _are_alike(self.colours[lines]):
                beside = [at for start in starts for at in (start - 1, start + padding) if 0 <= at < length]
                return _Cells(
                    count, self.colours[lines].mean(0), not self.flat[beside].any(), bool(self.exact[lines].all())
                )
        return _Cells(1, np.zeros(1), True, True)

    def sharp_edges(self) -> int:
        """How many equal cells lie side by side with nothing between: their edges are sharp, and nothing else is."""
        length = len(self.flat)
        for count in range(min(MOST, length // (2 * SMALLEST)), 1, -1):
            if length % count:
                continue
            at = np.arange(1, count) * (length // count) - 1
            others = np.delete(self.change, at)
            if self.change[at].min() > STEP * max(float(np.percentile(others, 95)), 1.0):
                return count
        return 1
