"""Scores from tables beside the ratings of the same images: joined by name, turned so that higher is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from qa_hooks._base.text import plural
from qa_hooks.folders.scoring.score_table import ScoreTable, read_scores
from qa_hooks.ratings.images import MOST_MISSING, NameFinder, inside
from qa_hooks.ratings.statistics import Rows


def join_scores(
    names: Sequence[str],
    tables: Sequence[str | Path],
    *,
    metrics: Sequence[str] = (),
    higher: Sequence[str] = (),
    lower: Sequence[str] = (),
) -> dict[str, Rows]:
    """The goodness `(n,)` of each metric for the images of these names, NaN where a table has no score.

    Args:
        names: of the rated images; found in a table whatever their case, folder and suffix.
        tables: of `qa-hooks score`, or CSVs with a column `path` and columns of numbers.
        metrics: only these columns; without it all but calibrated ones.
        higher, lower: columns in which higher, or lower, is better, where a table does not say.

    Returns:
        By column; columns of one name in several tables become `{column}@{table's stem}`.

    Raises:
        ValueError: a direction that is missing, said twice, of no column or against the table's own; a table that has
            less than half of the images.
    """
    if not tables:
        raise ValueError("name at least one table of scores")
    if both := set(higher) & set(lower):
        raise ValueError(f"{', '.join(sorted(both))} cannot be better both higher and lower")
    said = {**dict.fromkeys(higher, True), **dict.fromkeys(lower, False)}
    read = [(Path(path), _read(Path(path))) for path in tables]
    columns = [
        [c for c in table.columns if c in metrics or not (metrics or c.endswith("_calibrated"))] for _, table in read
    ]
    every = [column for some in columns for column in some]
    if unknown := (set(said) | set(metrics)) - set(every):
        there = dict.fromkeys(column for _, table in read for column in table.columns)
        raise ValueError(f"no table has a column {', '.join(sorted(unknown))}; they have {', '.join(there)}")
    found: dict[str, Rows] = {}
    for (path, table), own in zip(read, columns, strict=True):
        for column in own:
            name = f"{column}@{path.stem}" if every.count(column) > 1 else column
            if name in found:
                raise ValueError(f"two tables are called {path.name} and have a column {column!r}: rename one of them")
            found[name] = _joined(names, path, table, column, said.get(column))
    return found


def _read(path: Path) -> ScoreTable:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a table of scores")
    table = read_scores(path).by_file()
    if not len(table):
        raise ValueError(f"{path} has no rows")
    return table


def _joined(names: Sequence[str], path: Path, table: ScoreTable, column: str, said: bool | None) -> Rows:
    known = table.higher_is_better(column)
    if known is not None and said is not None and known != said:
        raise ValueError(f"{path} says that {column} is better {'higher' if known else 'lower'}: leave it out")
    direction = said if known is None else known
    if direction is None:
        raise ValueError(
            f"{path} does not say whether {column} is better higher or lower: name it with higher= or lower="
        )
    paths, scores = table.per_image(column)
    rows = {name: row for row, name in enumerate(paths)}
    folder = table.spec.get("folder")
    own = [inside(name, folder) for name in names] if isinstance(folder, str) else names
    values = [
        float("nan") if place is None else float(scores[rows[place]])
        for place in NameFinder(paths, str(path)).find_all(own)
    ]
    return np.array(values) if direction else -np.array(values)


def scored_by_all(scores: Mapping[str, Rows], names: Sequence[str]) -> tuple[torch.Tensor, dict[str, list[str]]]:
    """A mask `(n,)` of the images that every metric has scored, and the images that each of them lacks.

    Metrics are compared on the same images, or one would look good that fails on the difficult ones.

    Raises:
        ValueError: a metric that lacks more than half of the images.
    """
    lacking = {
        metric: [name for name, known in zip(names, np.isfinite(values), strict=True) if not known]
        for metric, values in scores.items()
    }
    for metric, missing in lacking.items():
        if len(missing) > MOST_MISSING * len(names):
            raise ValueError(
                f"{metric} has no score for {len(missing)} of {plural(len(names), 'image')}, such as {missing[0]!r}: "
                "leave it out: metrics= names the metrics to keep"
            )
    mask = np.logical_and.reduce([np.isfinite(values) for values in scores.values()])
    return torch.from_numpy(mask), {metric: missing for metric, missing in lacking.items() if missing}
