"""The table of scores behind `qa-hooks score`: a CSV, and beside it a JSON that says what its columns mean.

    scores.csv       path,niqe_bsd100,giqa-gmm,giqa-gmm_calibrated     (path,tile_x,tile_y,... with tiles)
    scores.csv.json  {"format": "qa_hooks.scores", "version": 1, "folder": ..., "scorers": [...], "complete": true, ...}

Paths are relative to the folder, with forward slashes, and sorted; before one that a spreadsheet would run as a formula
stands an apostrophe. Numbers are the shortest decimals that give the float32 back. "files" of the JSON has the size and
the times of each file that was scored. While a table is made, its rows stand in `scores.csv.rows0`
(`qa_hooks.folders.scoring.growing`). A table of very many images is a folder (`qa_hooks.folders.scoring.shards`).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qa_hooks._base.headers import parse_header
from qa_hooks._base.text import plural, printable, true_cell
from qa_hooks.folders.scoring.shards import MANIFEST, read_parts
from qa_hooks.functional.intervals import Interval, bootstrap_interval, t_interval

FORMAT, VERSION = "qa_hooks.scores", 1
TILE_COLUMNS = ("tile_x", "tile_y")
MANY = 10_000  # images, of whose mean the bootstrap takes too long
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # any file name survives


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of the images of a folder, as `read_scores` and `score_folder` return them.

    Attributes:
        paths: n paths relative to the folder, with forward slashes; one per row, so that tiles repeat them.
        columns: `(n,)` float32 scores by column, raw as the scorer gives them; nan where it could not.
        tiles: `(n, 2)` int64, x and y of the tile's upper left corner; None without tiles.
        spec: what the JSON beside the table holds; empty when there is none.

    Example:
        >>> table = ScoreTable(["a.png", "b.png"], {"psnr": torch.tensor([30.0, float("nan")])})
        >>> len(table), table.summary()
        (2, '2 images; no score (nan): psnr 1')
    """

    paths: list[str]
    columns: dict[str, Tensor]
    tiles: Tensor | None = None
    spec: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def failures(self) -> dict[str, str]:
        """What went wrong in the last run: path -> message."""
        return dict(self.spec.get("failures", {}))

    def higher_is_better(self, column: str) -> bool | None:
        """The direction of a column; None when the table does not say."""
        self.column(column)
        for scorer in self.spec.get("scorers", []):
            if column == f"{scorer['name']}_calibrated":
                return True
            if column == scorer["name"]:
                return bool(scorer["higher_is_better"])
        return None

    def chosen(self, column: str | None = None, higher_is_better: bool | None = None) -> tuple[str, bool]:
        """The column to go by, the only raw one if none is named, and whether higher is better in it.

        Raises:
            ValueError: no such column, several to choose from, or a direction that is unknown or another one.
        """
        raw = [name for name in self.columns if not name.endswith("_calibrated")] or list(self.columns)
        if column is None and len(raw) != 1:
            raise ValueError(f"the table has several columns of scores, say which with by=: {', '.join(self.columns)}")
        column = column or raw[0]
        told = self.higher_is_better(column)
        if told is None and higher_is_better is None:
            raise ValueError(
                f"the table does not say whether higher values of {column} are better: give "
                "higher_is_better=True or False"
            )
        if None not in (told, higher_is_better) and told != higher_is_better:
            raise ValueError(f"the table says that {'higher' if told else 'lower'} values of {column} are better")
        return column, bool(told if told is not None else higher_is_better)

    def by_file(self) -> ScoreTable:
        """This table; that of a `QualityTable`, whose rows are contents, with a row for each file of that content.

        Raises:
            ValueError: a quality table of several candidates a sample, in which a row is no file.

        Example:
            >>> scores = {"psnr": torch.tensor([20.0, 30.0])}
            >>> table = ScoreTable(["3f", "a7"], scores, spec={"sets": {"a.png": ["a7"], "b.png": ["a7"]}})
            >>> table.by_file().paths, table.by_file().columns["psnr"].tolist()
            (['a.png', 'b.png'], [30.0, 30.0])
        """
        sets = self.spec.get("sets")
        if not isinstance(sets, dict):
            return self
        if several := [key for key, contents in sets.items() if len(contents) != 1]:
            raise ValueError(
                f"this quality table holds sets of candidates ({several[0]} has {len(sets[several[0]])}) and no scores "
                "of single files: read it with QualityTable.load"
            )
        rows: dict[str, list[int]] = {}
        for row, content in enumerate(self.paths):
            rows.setdefault(content, []).append(row)
        named = [(key, row) for key, (content,) in sets.items() for row in rows.get(content, [])]
        chosen = torch.tensor([row for _, row in named], device="cpu", dtype=torch.int64)
        columns = {name: values[chosen] for name, values in self.columns.items()}
        spec = {name: value for name, value in self.spec.items() if name != "sets"}
        failures = {key: self.failures[content] for key, (content,) in sets.items() if content in self.failures}
        tiles = None if self.tiles is None else self.tiles[chosen]
        return ScoreTable([key for key, _ in named], columns, tiles, {**spec, "failures": failures})

    def column(self, name: str) -> Tensor:
        """`(n,)` float32; `ValueError` that names the columns there are."""
        if name not in self.columns:
            raise ValueError(f"the table has no column {name!r}; its columns are {', '.join(self.columns)}")
        return self.columns[name]

    def per_image(self, column: str) -> tuple[list[str], Tensor]:
        """Each image once, in the table's order, with its score `(m,)`: with tiles their mean, nan left out."""
        values = self.column(column).double().tolist()
        scores: dict[str, list[float]] = {}
        for path, value in zip(self.paths, values, strict=True):
            scores.setdefault(path, []).append(value)
        means = []
        for tiles in scores.values():
            known = [value for value in tiles if not math.isnan(value)]
            means.append(sum(known) / len(known) if known else math.nan)
        return list(scores), torch.tensor(means, dtype=torch.float64, device="cpu").float()

    def mean(self, column: str) -> Interval:
        """The mean score of the images, without nan, and its 95 % interval; nan where there are too few."""
        scores = self.per_image(column)[1].double()
        known = scores[scores.isfinite()]
        if len(known) < 2:
            return Interval(float(known.mean()), math.nan, math.nan)
        if len(known) > MANY:  # where both are the same, and this costs nothing
            return t_interval(float(known.mean()), float(known.std()) / len(known) ** 0.5, degrees=len(known) - 1)
        return bootstrap_interval(known)

    def digest(self, shown: int = 3) -> list[str]:
        """A line for each scorer: mean with its interval and median of the images, and the worst with their scores.

        Example:
            >>> table = ScoreTable(["a.png", "b.png"], {"psnr": torch.tensor([30.0, 20.0])},
            ...     spec={"scorers": [{"name": "psnr", "higher_is_better": True}]})
            >>> table.digest(shown=1)
            ['psnr: mean 25 [20, 30], median 25, higher is better; worst b.png 20']
        """
        lines = []
        for name in (scorer["name"] for scorer in self.spec.get("scorers", [])):
            paths, scores = self.per_image(name)
            known = scores.isfinite().nonzero().flatten()
            if not len(known):
                continue
            higher = bool(self.higher_is_better(name))
            order = known[scores[known].argsort(descending=not higher, stable=True)][:shown].tolist()
            worst = ", ".join(f"{printable(paths[row], one_line=True)} {float(scores[row]):.4g}" for row in order)
            direction = "higher" if higher else "lower"
            median = float(scores[known].double().quantile(0.5))
            mean = self.mean(name)
            ends = "" if math.isnan(mean.low) else f" [{mean.low:.4g}, {mean.high:.4g}]"
            middle = f"mean {mean.value:.4g}{ends}, median {median:.4g}"
            lines.append(f"{name}: {middle}, {direction} is better; worst {worst}")
        return lines

    def summary(self) -> str:
        """One line of counts: images, tiles, images that failed, scores that are nan."""
        parts = [plural(len(set(self.paths)), "image")]
        if self.tiles is not None:
            parts.append(plural(len(self), "tile"))
        missing = {name: int(values.isnan().sum()) for name, values in self.columns.items()}
        missing = {k: n for k, n in missing.items() if n and not k.endswith("_calibrated")}
        if missing:
            parts.append("no score (nan): " + ", ".join(f"{name} {count}" for name, count in missing.items()))
        if self.failures:
            parts.append(f"{len(self.failures)} with problems")
        return "; ".join(parts)


def read_scores(path: str | Path) -> ScoreTable:
    """Read a table: of `qa-hooks score`, a CSV or a folder, or any CSV with a column `path` and columns of numbers.

    In a folder of `--engine ray` an image that could not be scored has a row too, of nan.

    Raises:
        ValueError: not such a table, or a table that a killed run has left half-written.
    """
    path = Path(path)
    growing = growing_path(path).is_file()
    if not path.exists() and not growing:
        raise ValueError(f"{path} does not exist")
    spec = read_spec(path) or {}
    if path.is_dir() and not spec:
        raise ValueError(f"{path} is a folder without a {MANIFEST}, no table of scores: `qa-hooks score` makes one")
    if growing or not spec.get("complete", True):
        raise ValueError(f"{path} is not complete: its run was interrupted; repeat the same `qa-hooks score` to finish")
    if path.is_dir():
        parts = read_parts(path, spec.get("shards", []), column_names(spec))
        read = {name: torch.from_numpy(values) for name, values in parts.columns.items()}
        return ScoreTable(parts.paths, read, None, {**spec, "failures": parts.failures})
    try:
        with path.open(**{**TEXT, "encoding": "utf-8-sig"}) as file:  # spreadsheets write a byte-order mark
            header, *rows = list(csv.reader(file, strict=True)) or [[]]
        if header[:1] != ["path"] or len(header) < 2 or len(set(header)) < len(header):
            raise ValueError(f"its first line is {','.join(header)[:80]!r}, expected path,COLUMN,...")
        uneven = [number for number, row in enumerate(rows, 2) if len(row) != len(header)]
        if uneven:
            raise ValueError(f"record {uneven[0]} has not {len(header)} fields")
        values = {true_cell(name): np.array([float(row[i]) for row in rows]) for i, name in enumerate(header) if i}
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not a table of scores: {error}") from error
    tiles = None
    if header[1:3] == list(TILE_COLUMNS):
        tiles = torch.from_numpy(np.stack([values.pop(name) for name in TILE_COLUMNS], 1)).long()
    columns = {name: torch.from_numpy(column).float() for name, column in values.items()}
    return ScoreTable([true_cell(row[0]) for row in rows], columns, tiles, spec)


def read_spec(path: Path) -> dict[str, Any] | None:
    """The JSON beside a table, or in its folder, or None; `ValueError` when it is something else."""
    beside = spec_path(path)
    if not beside.is_file():
        return None
    try:
        text = beside.read_text(encoding="utf-8-sig")
        spec = parse_header(text, largest=len(text))  # it names every image
    except ValueError as error:
        raise ValueError(f"{beside} is not a whole JSON file: {error}") from error
    if not isinstance(spec, dict) or spec.get("format") != FORMAT or spec.get("version") != VERSION:
        raise ValueError(f"{beside} does not describe a table of scores of version {VERSION}")
    return spec


def column_names(spec: Mapping[str, Any]) -> list[str]:
    """The columns of scores that a table's JSON describes; a calibrated scorer has a second one."""
    scorers = [(scorer["name"], scorer["calibrated"]) for scorer in spec["scorers"]]
    return [column for name, calibrated in scorers for column in (name, *[f"{name}_calibrated"] * calibrated)]


def spec_path(path: Path) -> Path:
    """`scores.csv` -> `scores.csv.json`; of a folder the manifest in it."""
    if path.is_dir():
        return path / MANIFEST
    return path.with_name(path.name + ".json")


def growing_path(path: Path, rank: int = 0) -> Path:
    """`scores.csv` -> `scores.csv.rows0`, where the rows of a process stand until the table is complete."""
    return path.with_name(f"{path.name}.rows{rank}")


def begun_path(path: Path, rank: int = 0) -> Path:
    """`scores.csv` -> `scores.csv.begun0`, where a process notes what it is at work on."""
    return path.with_name(f"{path.name}.begun{rank}")
