"""The published sets of ratings by the form of their files: how each is recognised, and what its numbers mean.

Each form is a function from a table to `Ratings`, and a test of whether a table has this form. Forms are told apart by
their headers and by how their rows look, never by the name of the file. Directions and scales are the sets' own:
KADID-10k's "dmos" is a mean of 1 to 5 where higher is better, and its "var" is a variance.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks.ratings.directions import direction_of_paths
from qa_hooks.ratings.rows import Table, contents_of, is_image, is_number, is_numeric, read_table, stem
from qa_hooks.ratings.tables import Ratings

TID = re.compile(r"^i(\d\d)_(\d\d)_(\d)(\.\w+)?$", re.IGNORECASE)
KADID = re.compile(r"^i(\d\d)_(\d\d)_(\d\d)(\.\w+)?$", re.IGNORECASE)
PIPAL = re.compile(r"^a\d{4}_\d\d_\d\d(\.\w+)?$", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
SPLITS = {"training": "train", "validation": "val", "test": "test"}


TEN_POINTS = 10.0  # no scale of people's own goes further


class Form(NamedTuple):
    """How one set's file looks, and how it is read.

    `ratings` names the columns to choose from, the default first. `told` is for a form that does not fix the direction:
    it reads the table in a direction that the caller gives, or guesses it where None is given.
    """

    matches: Callable[[Table], bool]
    read: Callable[[Table, str], Ratings]
    ratings: tuple[str, ...] = ("rating",)
    told: Callable[[Table, bool | None], Ratings] | None = None


def numbers(fields: list[str], table: Table) -> Tensor:
    """A column of numbers, float64, with points or commas before their decimals.

    Raises:
        ValueError: a field that is no number, which is named; points and commas in one column; commas that may stand
            before thousands.
    """
    wrong = [number for number, field in enumerate(fields) if not is_numeric(field)]
    if wrong:
        raise ValueError(f"{table.path}: {fields[wrong[0]]!r} for {table.rows[wrong[0]]} is no number")
    if commas := [field for field in fields if not is_number(field)]:
        points = [field for field in fields if "." in field]
        if points or all(THOUSANDS.fullmatch(field) for field in commas):
            why = f"and {points[0]!r} a point" if points else "which may stand before decimals or thousands"
            raise ValueError(f"{table.path}: {commas[0]!r} has a comma, {why}: write points before the decimals")
    return torch.tensor([float(field.replace(",", ".")) for field in fields], dtype=torch.float64, device="cpu")


def _agiqa_3k(table: Table, which: str) -> Ratings:
    names = table.column("name")
    return Ratings(
        names, numbers(table.column(f"mos_{which}"), table), True, f"mean opinion of {which}, about 0 to 5", "agiqa-3k",
        spread=numbers(table.column(f"std_{which}"), table), spread_scale="the rating's own",
        prompt=table.column("prompt"), content=table.column("prompt"), kind=[stem(n).split("_")[0] for n in names],
        level=[stem(n).partition("_")[2].split("_")[0] for n in names],
    )  # fmt: skip


def _agiqa_1k(table: Table, _which: str) -> Ratings:
    names, z_scored = table.column("image"), table.has("prompt", "mos")
    prompts = table.column("prompt") if z_scored else []
    scale = "mean of the raters' z-scores, rescaled" if z_scored else "mean of 22 raters, up to 5"
    return Ratings(
        names, numbers(table.column("mos" if z_scored else "score"), table), True, scale,
        "agiqa-1k" if z_scored else "agiqa-1k, raw scores", prompt=prompts,
        content=prompts or [stem(n).partition("_")[2] for n in names], kind=[stem(n).split("_")[0] for n in names],
    )  # fmt: skip


def _aigiqa_20k(table: Table, _which: str) -> Ratings:
    names, prompts, values = (list(column) for column in zip(*table.rows, strict=True))
    return Ratings(
        names, numbers(values, table), True, "mean opinion, 0 to 5", "aigiqa-20k", prompt=prompts, content=prompts,
        kind=[stem(n).rpartition("_")[0] for n in names],
    )  # fmt: skip


AIGCIQA = {"quality": "mosz1", "authenticity": "mosz2", "correspondence": "mosz3"}


def _aigciqa_2023(table: Table, which: str) -> Ratings:
    prompts = table.column("prompt")
    return Ratings(
        [f"{m}/{n}" for m, n in zip(table.column("model"), table.column("image_name"), strict=True)],
        numbers(table.column(AIGCIQA[which]), table), True, f"mean opinion of {which}, z-scored and rescaled",
        "aigciqa-2023", prompt=prompts, content=prompts, kind=table.column("model"),
    )  # fmt: skip


AGIN = {"naturalness": "MOS_nat", "technical": "MOS_tech", "rationality": "MOS_rat"}


def _agin(table: Table, which: str) -> Ratings:
    rating = numbers(table.column(AGIN[which]), table)
    return Ratings(table.column("filename"), rating, True, f"mean opinion of {which}", "agin")


def _koniq(table: Table, _which: str) -> Ratings:
    split = [SPLITS.get(name.lower(), name) for name in table.column("set")]
    return Ratings(
        table.column("image_name"), numbers(table.column("MOS"), table), True, "mean opinion, rescaled to 0 to 100",
        "koniq-10k", spread=numbers(table.column("SD"), table), spread_scale="1 to 5", split=split,
    )  # fmt: skip


def _tid_2013(table: Table, _which: str) -> Ratings:
    values, names = (list(column) for column in zip(*table.rows, strict=True))
    beside = table.path.with_name("mos_std.txt")
    spread = None
    if beside.is_file() and beside != table.path:
        spread = torch.tensor([float(row[0]) for row in read_table(beside).rows], dtype=torch.float64, device="cpu")
        if len(spread) != len(names):
            raise ValueError(f"{beside} has {len(spread)} rows for the {len(names)} of {table.path}")
    parts = [TID.match(stem(name)) for name in names]
    return Ratings(
        names, numbers(values, table), True, "mean opinion, 0 to 9", "tid2013", spread=spread,
        spread_scale="the rating's own" if spread is not None else "", **_by_name(parts, ".BMP"),
    )  # fmt: skip


def _by_name(parts: list[re.Match[str] | None], suffix: str) -> dict[str, Any]:
    """Reference, distortion and level from names of the form I01_02_3."""
    found = [part for part in parts if part is not None]
    content = [f"I{part[1]}" for part in found]
    kind, level = [part[2] for part in found], [part[3] for part in found]
    return {"content": content, "reference": [name + suffix for name in content], "kind": kind, "level": level}


def _kadid(table: Table, _which: str) -> Ratings:
    names = table.column("dist_img")
    facts = _by_name([KADID.match(stem(name)) for name in names], "")
    facts["reference"] = table.column("ref_img")
    return Ratings(
        names, numbers(table.column("dmos"), table), True, "mean opinion, 1 to 5 (called dmos)", "kadid-10k",
        spread=numbers(table.column("var"), table).sqrt(), spread_scale="the rating's own", **facts,
    )  # fmt: skip


def _pipal(table: Table, _which: str) -> Ratings:
    names, values = (list(column) for column in zip(*table.rows, strict=True))
    content = [stem(name).split("_")[0] for name in names]
    return Ratings(
        names, numbers(values, table), True, "Elo: P(a better than b) = 1 / (1 + 10^((b - a) / 400))", "pipal",
        content=content, reference=[f"{name}.bmp" for name in content],
        kind=[stem(name).split("_")[1] for name in names],
        level=[stem(name).split("_")[2] for name in names],
    )  # fmt: skip


def _sriqa(table: Table, _which: str) -> Ratings:
    names, values = (list(column) for column in zip(*table.rows, strict=True))
    return Ratings(
        names, numbers(values, table), True, "0 to 100 within each content: compare within one content only",
        "sriqa-bench", content=[table.path.stem] * len(names), across_contents=False,
    )  # fmt: skip


def _collection(table: Table, _which: str) -> Ratings:
    return _told_collection(table, None)


def _told_collection(table: Table, higher_is_better: bool | None) -> Ratings:
    """`dis_img_path,dis_type,ref_img_path,score` of collections of sets; names of a known set fix the direction."""
    names, references = table.column("dis_img_path"), table.column("ref_img_path")
    stems, kind = [stem(name) for name in names], table.column("dis_type")
    level: list[str] = []
    certain = True
    if all(TID.match(name) for name in stems):  # one dis_type stands for two of TID2013's types: the name decides
        parts = [TID.match(name) for name in stems]
        kind, level, scale = *_levels(parts), "mean opinion, 0 to 9"
    elif all(KADID.match(name) for name in stems):
        kind, level, scale = *_levels([KADID.match(name) for name in stems]), "mean opinion, 1 to 5"
    elif all(PIPAL.match(name) for name in stems):
        kind, level = ([name.split("_")[part] for name in stems] for part in (1, 2))
        scale = "Elo: P(a better than b) = 1 / (1 + 10^((b - a) / 400))"
    else:
        certain, scale = False, "mean opinion"
    try:
        guess, sets = direction_of_paths(names, references, certain)
    except ValueError as error:
        if higher_is_better is None:
            raise ValueError(f"{table.path}: {error}") from error
        guess, sets = higher_is_better, "several sets"
    better = guess if certain or higher_is_better is None else higher_is_better
    if not better:
        scale = "differential mean opinion (DMOS)"
    content = [shown or own for shown, own in zip(contents_of(references), names, strict=True)]
    return Ratings(
        names, numbers(table.column("score"), table), better, scale, f"a collection's table of {sets}",
        content=content, reference=references, kind=kind, level=level,
    )  # fmt: skip


def _levels(parts: list[re.Match[str] | None]) -> tuple[list[str], list[str]]:
    facts = _by_name(parts, "")
    return facts["kind"], facts["level"]


def _plain(table: Table, width: int) -> bool:
    """No header, and every row has this many fields."""
    return not table.header and len(table.rows[0]) == width


def _named(table: Table, pattern: re.Pattern[str], column: int) -> bool:
    return all(pattern.match(stem(row[column])) for row in table.rows)


FORMS: dict[str, Form] = {
    "agiqa-3k": Form(lambda t: t.has("name", "prompt", "mos_quality", "mos_align"), _agiqa_3k, ("quality", "align")),
    "agiqa-1k": Form(lambda t: t.has("image", "prompt", "mos") or (t.has("image", "score")), _agiqa_1k),
    "aigiqa-20k": Form(
        lambda t: (
            len(t.rows[0]) == 3
            and (not t.header or t.has("name", "prompt", "mos"))
            and is_image(t.rows[0][0])
            and not is_image(t.rows[0][1])
            and is_number(t.rows[0][2])
        ),
        _aigiqa_20k,
    ),
    "aigciqa-2023": Form(lambda t: t.has("model", "image_name", "mosz1", "prompt"), _aigciqa_2023, tuple(AIGCIQA)),
    "agin": Form(lambda t: t.has("filename", "MOS_nat", "MOS_tech", "MOS_rat"), _agin, tuple(AGIN)),
    "koniq-10k": Form(lambda t: t.has("image_name", "c1", "c5", "MOS", "SD", "set"), _koniq),
    "tid2013": Form(lambda t: _plain(t, 2) and is_number(t.rows[0][0]) and _named(t, TID, 1), _tid_2013),
    "kadid-10k": Form(lambda t: t.has("dist_img", "ref_img", "dmos", "var"), _kadid),
    "pipal": Form(lambda t: _plain(t, 2) and _named(t, PIPAL, 0), _pipal),
    "collection": Form(
        lambda t: t.has("dis_img_path", "dis_type", "ref_img_path", "score"), _collection, told=_told_collection
    ),
    "sriqa-bench": Form(
        lambda t: (
            _plain(t, 2)
            and all(is_image(row[0]) and is_number(row[1]) for row in t.rows)
            and all(0 <= float(row[1]) <= 100 for row in t.rows)
        ),
        _sriqa,
    ),
}


def recognise(table: Table) -> str:
    """The name of the form that a table has.

    Raises:
        ValueError: it has none of them, or several.
    """
    fitting = [name for name, form in FORMS.items() if form.matches(table)]
    if "pipal" in fitting:
        fitting = ["pipal"]  # whose rows could also be a benchmark's with low numbers: its names decide
    if fitting == ["sriqa-bench"] and max(float(row[1]) for row in table.rows) <= TEN_POINTS:
        raise ValueError(
            f"{table.path} has no header, and numbers up to {TEN_POINTS:g}: of a table of your own name the columns by "
            "their numbers, --columns name=1 rating=2 --better higher (in Python columns={'name': 1, 'rating': 2}, "
            "higher_is_better=True); sriqa-bench, which goes to 100, is read with --format sriqa-bench (format=)"
        )
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(table.header) if table.header else str(table.rows[0])
    if not fitting:
        raise ValueError(
            f"{table.path} has none of the known forms ({', '.join(FORMS)}); its first line is {shown}. For a table of "
            "your own name its columns and direction: "
            "columns={'name': 'COLUMN', 'rating': 'COLUMN'} and higher_is_better=True or False"
        )
    raise ValueError(f"{table.path} could be {' or '.join(fitting)} ({shown}): say format=")


def files_of(path: str | Path) -> list[Path]:
    """One file, or the text files of a folder (sets that keep one file a reference)."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in (".txt", ".csv") and not p.name.startswith("."))
    if not found:
        raise ValueError(f"{path} holds no .txt or .csv files")
    return found
