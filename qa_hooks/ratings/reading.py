"""Read people's ratings of images: the published sets by their own files, or a table of yours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qa_hooks.ratings.aigciqa import is_aigciqa, read_aigciqa
from qa_hooks.ratings.images import find_images, plain_name
from qa_hooks.ratings.rating_forms import FORMS, files_of, numbers, recognise
from qa_hooks.ratings.rows import Table, read_table
from qa_hooks.ratings.tables import TEXTS, Ratings

LOG = logging.getLogger("qa_hooks")
MOST_CONTRADICTED = 0.01  # the share of images beyond which a file is broken, or has a column of raters
OWN_COLUMNS = ("name", "rating", "spread", "content", "kind", "level", "split", "rater", "reference", "prompt")


def read_ratings(
    path: str | Path,
    format: str = "auto",
    *,
    images: str | Path | None = None,
    rating: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    higher_is_better: bool | None = None,
    scale: str = "",
) -> Ratings:
    """Read ratings; the first rows are logged with what they were taken for.

    Args:
        path: the file of a published set, a folder of them (sets with one file a reference; AIGCIQA2023's .mat files
            with their index), or a table of yours; text or .xlsx.
        format: "auto", or one of the names in `qa_hooks.ratings.rating_forms.FORMS`: "agiqa-3k", "agiqa-1k",
            "aigiqa-20k", "aigciqa-2023", "agin", "koniq-10k", "tid2013", "kadid-10k", "pipal", "collection",
            "sriqa-bench".
        images: the folder that holds the images. Names are found whatever their case, folder or suffix; what is
            missing is counted, and refused when it is more than half.
        rating: which of a file's several ratings, for example "align" of AGIQA-3K.
        columns: of a table of yours: which column is "name", "rating", and optionally "spread", "content", "kind",
            "level", "split", "rater", "reference", "prompt"; by its name, or without a header by its number, from 1.
        higher_is_better: the direction of a table of yours, which no file says; also of a collection's table, whose
            direction is otherwise guessed from the folders in its paths.
        scale: what the numbers of a table of yours mean, in words.

    Raises:
        ValueError: an unknown or ambiguous form, columns that are missing, numbers that are none, an image with two
            different ratings by one rater, a direction that is not the set's, images outside their folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "mine.csv"
        >>> _ = path.write_text("file,stars\\na.png,4\\nb.png,2\\n")
        >>> ratings = read_ratings(path, columns={"name": "file", "rating": "stars"}, higher_is_better=True)
        >>> ratings.names, ratings.rating.tolist()
        (['a.png', 'b.png'], [4.0, 2.0])
    """
    if higher_is_better is not None and not isinstance(higher_is_better, bool):
        raise TypeError(f"higher_is_better must be True or False, got {higher_is_better!r}")
    if columns is not None and not isinstance(columns, Mapping):
        raise TypeError(f"columns must be a mapping such as {{'name': 'file', 'rating': 'stars'}}, got {columns!r}")
    matlab = columns is None and is_aigciqa(Path(path))
    tables = [] if matlab else [read_table(file) for file in files_of(path)]
    if matlab and format not in ("auto", "aigciqa-2023"):
        raise ValueError(f"{path} is no {format}: .mat files are read as aigciqa-2023")
    if columns is not None and (rating is not None or format != "auto"):
        raise ValueError(
            "format= and rating= are for published sets; of a table of yours columns= says which column is the rating"
        )
    if columns is not None:
        parts = [_own(table, columns, higher_is_better, scale) for table in tables]
    else:
        if scale:
            raise ValueError("scale= is for a table of yours, with columns=")
        parts = (
            [read_aigciqa(Path(path), rating)]
            if matlab
            else [_published(t, format, rating, higher_is_better) for t in tables]
        )
        if higher_is_better is not None and higher_is_better != parts[0].higher_is_better:
            known = "higher" if parts[0].higher_is_better else "lower"
            raise ValueError(
                f"{path} is read as {parts[0].format}, where {known} is better: leave higher_is_better out"
            )
    ratings = _once(_joined(parts), Path(path), own=columns is not None)
    if images is not None:
        ratings = replace(ratings, images=find_images(ratings.names, images))
    LOG.warning("%s", ratings) if format == "auto" and columns is None else LOG.info("%s", ratings)
    return ratings


def _published(table: Table, format: str, rating: str | None, higher_is_better: bool | None) -> Ratings:
    name = recognise(table) if format == "auto" else format
    if name not in FORMS:
        raise ValueError(f"format must be auto or one of {', '.join(FORMS)}, got {format!r}")
    form = FORMS[name]
    if not form.matches(table):
        shown = ", ".join(table.header) if table.header else str(table.rows[0])
        raise ValueError(f"{table.path} is no {name}: its first line is {shown}")
    if rating is not None and rating not in form.ratings:
        raise ValueError(f"{name} has the ratings {', '.join(form.ratings)}, got rating={rating!r}")
    if form.told is not None:
        return form.told(table, higher_is_better)
    return form.read(table, rating or form.ratings[0])


def _own(table: Table, columns: Mapping[str, str | int], higher_is_better: bool | None, scale: str) -> Ratings:
    if unknown := set(columns) - set(OWN_COLUMNS):
        raise ValueError(f"columns= may name {', '.join(OWN_COLUMNS)}, got {sorted(unknown)}")
    if missing := {"name", "rating"} - set(columns):
        raise ValueError(f"columns= must say which column is {' and '.join(sorted(missing))}")
    if higher_is_better is None:
        raise ValueError("say higher_is_better=True or False: a table does not tell what its numbers mean")
    found: dict[str, Any] = {name: table.column(column) for name, column in columns.items()}
    rating = numbers(found.pop("rating"), table)
    spread = numbers(found.pop("spread"), table) if "spread" in found else None
    return Ratings(
        found.pop("name"), rating, higher_is_better, scale or "a scale of your own", "a table of your own",
        spread=spread, **found,
    )  # fmt: skip


def _joined(parts: list[Ratings]) -> Ratings:
    if len(parts) == 1:
        return parts[0]
    if len({part.format for part in parts}) > 1:
        raise ValueError(f"the files have several forms: {', '.join(sorted({part.format for part in parts}))}")
    lists: dict[str, Any] = {
        name: [value for part in parts for value in getattr(part, name)] for name in ("names", *TEXTS)
    }
    spreads = [part.spread for part in parts if part.spread is not None]
    spread = torch.cat(spreads) if len(spreads) == len(parts) else None
    return replace(parts[0], rating=torch.cat([part.rating for part in parts]), spread=spread, **lists)


def _once(ratings: Ratings, path: Path, *, own: bool) -> Ratings:
    """Each image once for each rater.

    Rows that say the same twice count once. Where two ratings of one image contradict each other, a table of the
    user's is refused; a published file is not theirs to mend (AGIQA-1K's z-scores name one image twice), so these
    images are left out and named.
    """
    seen: dict[tuple[str, str], int] = {}  # "./a.png" is "a.png"
    contradicted: dict[tuple[str, str], str] = {}
    for row, name in enumerate(ratings.names):
        key = plain_name(name), ratings.rater[row] if ratings.rater else ""
        first = seen.setdefault(key, row)
        if first != row and float(ratings.rating[first]) != float(ratings.rating[row]):
            contradicted[key] = f"{name} is rated {float(ratings.rating[first]):g} and {float(ratings.rating[row]):g}"
    if contradicted and (own or len(contradicted) > MOST_CONTRADICTED * len(ratings)):
        raise ValueError(
            f"{path}: {next(iter(contradicted.values()))}, and {len(contradicted) - 1} more images have two ratings; "
            'where several people rated an image, say which column is the "rater"'
        )
    if contradicted:
        LOG.warning("%s: %s; left out", path, "; ".join(contradicted.values()))
        return ratings.select(sorted(row for key, row in seen.items() if key not in contradicted))
    if len(seen) < len(ratings):
        LOG.warning("%s: %d rows stand twice and are counted once", path, len(ratings) - len(seen))
    return ratings.select(sorted(seen.values())) if len(seen) < len(ratings) else ratings
