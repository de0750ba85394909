"""Raw scores of every candidate of every sample, computed once: the state behind samplers and data sets.

    niqe.csv       path,niqe_bsd100                       path: the fingerprint of a file's content
    niqe.csv.json  as `qa_hooks.folders.scoring.score_table`, and "sets": {"a.png": ["9f86d081884c7d65", ...], ...}

It is a table of `score_folder` whose rows are contents instead of paths. So a file that was moved, renamed or copied
keeps its score, and a file that was changed gets a new one. Rows left by a killed run are matched by content, so they
cannot be assigned to a wrong image. Every call reads all files to know what they hold; only unknown contents are
decoded and scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.files import check_writable
from qa_hooks._base.processes import together
from qa_hooks._base.text import plural
from qa_hooks.data.candidates import CandidateSet, check_keys, list_candidates, some
from qa_hooks.data.contents import Contents, all_contents, compare_contents, contents_of
from qa_hooks.folders.scoring.growing import GrowingTable, left_spec
from qa_hooks.folders.scoring.score_folder import Spec, alone_at, name_scorers, score_into, scorer_facts
from qa_hooks.folders.scoring.score_table import FORMAT, VERSION, ScoreTable, read_scores
from qa_hooks.folders.scoring.tiles import check_tiles, read_pieces
from qa_hooks.images import Range

Source = str | Path | Sequence[CandidateSet] | Sequence[str | Path]


@dataclass(frozen=True, eq=False)
class QualityTable:
    """Scores by sample and candidate; `QualityTable.compute(...)` makes one, `QualityTable.load(path)` reads it.

    Attributes:
        keys: n keys in order (`CandidateSet.key`); with tiles one for each tile, `a.png@64,0`.
        values: `(n, K)` float32 raw scores; NaN where a candidate is missing or could not be scored.
        scorer_name, higher_is_better, score_range: the scorer's facts.
        corners: `(n, 2)` int64, x and y of each tile's upper left corner; None without tiles.
        contents: sample -> K fingerprints of its files' content, None where one is missing.
        failures: what could not be scored -> why.
        fingerprint: of the scorer; "" where it is not known.

    Example:
        >>> table = QualityTable(["a.png", "b.png"], torch.tensor([[3.0, 5.0], [4.0, 2.0]]), "niqe", False)
        >>> len(table), "b.png" in table, table["b.png"]
        (2, True, tensor([4., 2.]))
    """

    keys: list[str]
    values: Tensor
    scorer_name: str
    higher_is_better: bool
    score_range: Range | None = None
    corners: Tensor | None = None
    contents: Contents = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or len(self.values) != len(self.keys):
            raise ValueError(f"values must be ({len(self.keys)}, K), as many as keys, got {tuple(self.values.shape)}")
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"the keys must differ, {len(self.keys) - len(set(self.keys))} of them repeat others")

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> Tensor:
        """`(K,)` raw scores of a sample, the original first; NaN where there is none. `KeyError` for an unknown key."""
        if key not in self:
            raise KeyError(f"{key!r} is not in the table; it has {len(self)} samples such as {some(self.keys)}")
        return self.values[self._by_key[key]]

    @property
    def candidates(self) -> int:
        """The number of candidates."""
        return self.values.shape[1]

    @cached_property
    def _by_key(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    @classmethod
    def compute(
        cls,
        source: Source,
        scorer: Spec,
        path: str | Path,
        *,
        layout: str = "plain",
        names: Sequence[str] | None = None,
        missing: str = "raise",
        tiles: int | None = None,
        overlap: int = 0,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        resume: bool = True,
        progress: bool = True,
    ) -> QualityTable:
        """Score a data set into a CSV with a JSON beside it; the same call continues what an earlier one has left.

        Under a process group every process scores its share and all return the whole table.

        Args:
            source: a folder or a CSV (`layout`, `names`, `missing`: `list_candidates`), or a list of `CandidateSet`s,
                or of files, one candidate each.
            scorer: whatever `create_scorer` takes; one that needs nothing but the image.
            path: the CSV to write.
            tiles, overlap, batch_size, device, progress: as in `score_folder`; tiles become samples of their own.
            resume: continue what is there; False replaces it. Images whose content has changed are scored again and
                counted in a warning, images that are gone lose their scores, images that failed are tried again.

        Raises:
            ValueError: no images, sets that are not complete, candidates of different sizes, a scorer that needs a
                reference or a prompt, not one image that could be scored, or a `path` that holds the scores of another
                data set, scorer or tiling.
        """
        named = name_scorers(scorer, device)
        (name, only), *others = named.items()
        if others or only.inputs:
            needs = " and a ".join(sorted(only.inputs))
            needs = f"{name} needs a {needs}" if needs else f"got {', '.join(named)}"
            raise ValueError(f"a quality table holds one scorer that needs nothing but the image; {needs}")
        tiles, batch_size, path = check_tiles(tiles, overlap), check_count("batch_size", batch_size), Path(path)
        check_writable(path.parent, name="path")
        with together():
            sets = _list(source, layout, names, missing)

        def start() -> None:
            contents = contents_of(sets, progress=progress)
            origin = str(Path(source).resolve()) if isinstance(source, str | Path) else "a list of files"
            if resume:
                compare_contents(path, contents, origin)
            facts = {"format": FORMAT, "version": VERSION, "source": origin, "tiles": tiles, "overlap": overlap}
            begun = GrowingTable(path, {**facts, "scorers": scorer_facts(named), "sets": contents})
            begun.start(dict.fromkeys(all_contents(contents), ()), resume=resume)

        with alone_at(path, start):
            contents = (left_spec(path) or {})["sets"]  # the other processes have it from the first one's file
            paths = {
                content: candidate
                for candidates in sets
                for candidate, content in zip(candidates.paths, contents[candidates.key], strict=True)
                if candidate is not None
            }
            score_into(
                path,
                dict.fromkeys(paths, ()),
                lambda content: read_pieces(content, paths[content], None, tiles, overlap),
                named,
                batch_size=batch_size,
                device=device,
                progress=progress,
            )
        table = cls.load(path)
        if table.values.isnan().all():
            what, why = next(iter(table.failures.items()), (some(table.keys), f"{name} gives NaN"))
            raise ValueError(f"none of {plural(len(paths), 'image')} could be scored; {what}: {why}")
        return table

    @classmethod
    def load(cls, path: str | Path, column: str | None = None) -> QualityTable:
        """Read a table of `compute`; or one of `qa-hooks score`, a CSV or a folder, as one candidate for each path.

        Args:
            path: the table. What `qa-hooks score` has written does not know what the files held.
            column: of the scores in a table of `qa-hooks score`; needed when it has several scorers.

        Raises:
            ValueError: another file, a table whose run was interrupted, or no such column.
        """
        spec = left_spec(Path(path)) or {}
        if not spec or not isinstance(spec.get("sets", {}), dict):
            why = "is" if Path(path).exists() else "does not exist and is"
            raise ValueError(f"{path} {why} no quality table: QualityTable.compute(data, scorer, path) makes one")
        if "sets" not in spec:
            return cls._of_scores(read_scores(path), column)
        if column not in (None, spec["scorers"][0]["name"]):
            raise ValueError(f"the table has no column {column!r}, only {spec['scorers'][0]['name']}")
        if not spec.get("complete", False):
            raise ValueError(f"{path} is not complete: its run was interrupted; repeat QualityTable.compute to finish")
        table, scorer, sets = read_scores(path), spec["scorers"][0], spec["sets"]
        rows: dict[str, dict[tuple[int, int], float]] = {}
        corners = [(0, 0)] * len(table) if table.tiles is None else [(x, y) for x, y in table.tiles.tolist()]
        for content, corner, score in zip(table.paths, corners, table.column(scorer["name"]).tolist(), strict=True):
            rows.setdefault(content, {})[corner] = score
        if repeated := len(table) - sum(map(len, rows.values())):
            raise ValueError(f"{repeated} of {len(table)} rows of {path} repeat others: which of their scores holds?")
        keys, values, places = [], [], []
        for key, contents in sets.items():
            known = [rows.get(content or "", {}) for content in contents]
            for x, y in next(filter(None, known), {(0, 0): math.nan}):
                keys.append(key if table.tiles is None else f"{key}@{x},{y}")
                values.append([scores.get((x, y), math.nan) for scores in known])
                places.append((x, y))
        width = max(map(len, sets.values()))
        return cls(
            keys,
            torch.tensor([row + [math.nan] * (width - len(row)) for row in values], device="cpu", dtype=torch.float32),
            scorer["name"],
            bool(scorer["higher_is_better"]),
            None if scorer["score_range"] is None else (scorer["score_range"][0], scorer["score_range"][1]),
            None if table.tiles is None else torch.tensor(places, device="cpu", dtype=torch.int64),
            sets,
            _name_failures(table.failures, sets),
            scorer.get("fingerprint", ""),
        )

    @classmethod
    def _of_scores(cls, table: ScoreTable, column: str | None) -> QualityTable:
        name, higher = table.chosen(column)
        if table.tiles is None:
            keys, corners = list(table.paths), None
        else:
            keys = [f"{path}@{x},{y}" for path, (x, y) in zip(table.paths, table.tiles.tolist(), strict=True)]
            corners = table.tiles
        scores = dict(zip(keys, table.column(name).tolist(), strict=True))
        if len(scores) < len(keys):
            raise ValueError(f"{len(keys) - len(scores)} of {len(keys)} paths of the table repeat others")
        lost = set(table.failures) - set(table.paths)
        if lost and corners is None:  # which a CSV has no rows for, but the data set has
            keys = sorted([*keys, *lost])
        raw = name.removesuffix("_calibrated")
        facts: dict[str, Any] = next((s for s in table.spec["scorers"] if s["name"] in (name, raw)), {})
        score_range = facts["score_range"] if facts.get("name") == name else (0.0, 1.0)
        values = torch.tensor([[scores.get(key, math.nan)] for key in keys], device="cpu", dtype=torch.float32)
        width = None if score_range is None else (float(score_range[0]), float(score_range[1]))
        return cls(keys, values, name, higher, width, corners, {}, table.failures, facts.get("fingerprint", ""))

    def check(self, sets: Sequence[CandidateSet], *, content: bool = False) -> None:
        """Make sure that the table is of this data set; further samples in the table do not matter.

        Args:
            sets: of `list_candidates`.
            content: read the files, too, and compare what they hold.

        Raises:
            ValueError: it says which samples the table lacks, has with other candidates, or with another content.
        """
        contents = self.contents or {key: [None] * self.candidates for key in self.keys}
        remedy = "is it of another data set, or older? QualityTable.compute brings it up to date"
        lacking = [candidates.key for candidates in sets if candidates.key not in contents]
        if lacking:
            raise ValueError(
                f"the table lacks {len(lacking)} of {plural(len(sets), 'sample')}: {some(lacking)}; it has "
                f"{len(contents)} such as {some(contents)}; {remedy}"
            )
        differing = [candidates.key for candidates in sets if len(candidates.paths) != len(contents[candidates.key])]
        if differing:
            raise ValueError(f"the table has another number of candidates for {some(differing)}; {remedy}")
        if not content:
            return
        if not self.contents:
            raise ValueError("the table was not made from files: it does not know what they held")
        changed = [key for key, new in contents_of(sets, progress=False).items() if list(contents[key]) != new]
        if changed:
            raise ValueError(f"{len(changed)} of {plural(len(sets), 'sample')} have changed: {some(changed)}; {remedy}")


def _list(source: Source, layout: str, names: Sequence[str] | None, missing: str) -> list[CandidateSet]:
    if isinstance(source, str | Path):
        return list_candidates(source, layout, names=names, missing=missing)
    parts = source if isinstance(source, Sequence) else [source]
    odd = sorted({type(part).__name__ for part in parts if not isinstance(part, CandidateSet | str | Path)})
    if odd:
        raise TypeError(f"source must be a folder, a CSV, or a list of files or sets, got {', '.join(odd)}")
    sets = [s if isinstance(s, CandidateSet) else CandidateSet(Path(s).as_posix(), (Path(s),)) for s in source]
    check_keys(sets, "source", missing)
    return sets


def _name_failures(failures: Mapping[str, str], sets: Contents) -> dict[str, str]:
    return {
        f"{key} (candidate {number})": failures[content]
        for key, contents in sets.items()
        for number, content in enumerate(contents)
        if content is not None and content in failures
    }
