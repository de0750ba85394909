"""The best images of a table of scores, as a list of paths: what `qa-hooks filter` calls."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from qa_hooks._base.files import check_writable, whole_file
from qa_hooks.folders.scoring.score_table import TEXT, ScoreTable, read_scores
from qa_hooks.weighting.picker import pick


class Filtered(NamedTuple):
    """`kept`: paths, best first; `total`: how many images the table has."""

    kept: list[str]
    total: int


def filter_scores(
    table: str | Path | ScoreTable,
    output: str | Path | None = None,
    *,
    keep: float | int,
    by: str | None = None,
    higher_is_better: bool | None = None,
    null: bool = False,
) -> Filtered:
    """The best images of a table, as a list and as a file with a path per line.

    Args:
        table: of `score_folder`, or the path of one, a CSV or a folder; of a `QualityTable` the files are named.
        output: the file to write; None writes none.
        keep: a share in (0, 1] of the images that have a score, or a whole number of images (so 1.0 keeps all, 1 one).
        by: the column; needed when there are several scorers, whose columns differ in more than the calibration.
        higher_is_better: needed when the table does not say.
        null: end each path with a NUL, for names that hold line ends.

    Raises:
        ValueError: no such column, an unknown direction, nothing to keep.

    Example:
        >>> import torch
        >>> table = ScoreTable(["a", "b", "c"], {"psnr": torch.tensor([20.0, 30.0, float("nan")])})
        >>> filter_scores(table, keep=0.5, higher_is_better=True).kept
        ['b']
    """
    table = (table if isinstance(table, ScoreTable) else read_scores(table)).by_file()
    column, higher = table.chosen(by, higher_is_better)
    paths, scores = table.per_image(column)
    best = choose_best(scores if higher else -scores, keep)
    kept = [paths[index] for index in best.kept]
    if output is not None:
        broken = next((path for path in kept if "\n" in path or "\r" in path), None)
        if broken is not None and not null:
            raise ValueError(f"{broken!r} holds a line end: write the list with null=True")
        check_writable(Path(output).parent, name="output")
        with whole_file(output) as partial, partial.open("w", **TEXT) as file:
            file.writelines(path + ("\0" if null else "\n") for path in kept)
    return Filtered(kept, len(paths))


class Best(NamedTuple):
    kept: list[int]
    order: list[int]


def choose_best(goodness: Tensor, keep: float | int) -> Best:
    """Positions of the best, and all that have a score, best first; of equal scores the earlier come first."""
    known = int((~goodness.isnan()).sum())
    if isinstance(keep, int) and not isinstance(keep, bool):
        if keep < 1:
            raise ValueError(f"keep must be a share in (0, 1] or a number of images, got {keep}")
        order = pick(None, scores=goodness, keep=1.0).order.tolist()
        return Best(order[: min(keep, known)], order)
    picked = pick(None, scores=goodness, keep=keep)
    order = picked.order.tolist()
    return Best(order[: len(picked)], order)
