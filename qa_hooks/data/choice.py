"""The two settings of `MultiGTDataset`: which ground truths there are, and how one of them is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qa_hooks.data.candidates import CandidateSet, list_candidates
from qa_hooks.data.ground_truth import NEEDS_POSITIVES, NEEDS_SCORES, STRATEGIES
from qa_hooks.data.judgements import KEEP, Judgements, read_judgements
from qa_hooks.data.quality_table import QualityTable
from qa_hooks.data.selection import selection_probabilities

SPOT_CHECKS = 4  # samples whose files are compared with the table's: another data set often has the same names


@dataclass(frozen=True, kw_only=True)
class GroundTruths:
    """Where the candidates are, and what people said of them.

    Attributes:
        root, layout, names, labels, missing: as in `list_candidates`: a folder (or CSV) of originals and candidates.
        positives: which candidates people like, by key: `{"a.png": [1, 3]}`. By default those of HGGT's labels.
        keep: "all" sets; only those with a "positive" one (without any, "upos" and "smp" take the original); or only
            the "judged" ones, of which people called at least one positive or negative. The latter two are HGGT's.
    """

    root: str | Path
    layout: str = "folders"
    names: Sequence[str] | None = None
    labels: str | Path | None = None
    missing: str = "raise"
    positives: Mapping[str, Sequence[int]] | None = None
    keep: str = "all"

    def __post_init__(self) -> None:
        if self.keep not in KEEP:
            raise ValueError(f"keep must be one of {KEEP}, got {self.keep!r}")

    def read(self, needed_by: str | None = None) -> tuple[list[CandidateSet], Judgements | None]:
        """The sets to use and their judgements, None where nobody has judged.

        Args:
            needed_by: what asks for judgements, in words; then their absence is an error.
        """
        sets = list_candidates(self.root, self.layout, names=self.names, labels=self.labels, missing=self.missing)
        if len({len(s.paths) for s in sets}) > 1:
            raise ValueError(f"the sets of {self.root} must have one number of candidates, got {_counts(sets)}")
        judged = read_judgements(sets, self.positives)
        if judged is None:
            needed_by = f"keep={self.keep!r}" if self.keep != "all" else needed_by
            if needed_by is not None:
                raise ValueError(
                    f"nobody has judged the candidates of {self.root}: {needed_by} needs HGGT's "
                    "labels (labels=) or positives={key: [numbers]}; 'random', 'sma' and 'amo' need none"
                )
            return sets, None
        rows = judged.rows_to_keep(self.keep)
        if not len(rows):
            raise ValueError(f"keep={self.keep!r} leaves none of the {len(sets)} sets of {self.root}")
        return [sets[row] for row in rows.tolist()], Judgements(judged.labels[rows], judged.votes[rows])


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the ground truth of a sample is chosen.

    Attributes:
        strategy: "originals", "random", "upos", "sma", "smp"; or "amo", whose samples hold all candidates and no "gt":
            `select_ground_truth` takes one in the step, on the device.
        table: raw scores of these very images, for "sma" and "smp". Whether it knows the samples is checked, and
            of a few of them whether the files are the same; `table.check(data.sets, content=True)` reads all files.
        temperature, normalize: as in `selection_probabilities`; range and direction are the table's. "zscore" wants a
            temperature of about 1.
    """

    strategy: str = "originals"
    table: QualityTable | None = None
    temperature: float = 0.05
    normalize: str = "range"

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {STRATEGIES}, got {self.strategy!r}")

    @property
    def needs_judgements(self) -> str | None:
        """This choice in words, when it needs to know what people like; else None."""
        return f"strategy={self.strategy!r}" if self.strategy in NEEDS_POSITIVES else None

    def scores(self, sets: Sequence[CandidateSet]) -> Tensor | None:
        """`(S, K)` scores of the sets, None without a table; a table of other images is refused."""
        table = self.table
        if table is None:
            return None
        if not isinstance(table, QualityTable):
            raise TypeError(f"table must be a QualityTable, got {type(table).__name__}; QualityTable.load reads a file")
        if table.corners is not None:
            raise ValueError("the table is of tiles, and ground truths are chosen by whole images: compute one without")
        table.check(sets)
        if table.contents:
            table.check(sets[:: -(-len(sets) // SPOT_CHECKS)], content=True)
        return torch.stack([table[s.key][: len(s.paths)] for s in sets])

    def probabilities(self, sets: Sequence[CandidateSet], judged: Judgements | None, scores: Tensor | None) -> Tensor:
        """`(S, K)` float32, how likely each candidate of each set is drawn."""
        there = torch.tensor([[path is not None for path in s.paths] for s in sets], device="cpu", dtype=torch.bool)
        if self.strategy == "originals":
            there[:, 1:] = False
        if self.strategy in NEEDS_POSITIVES and judged is not None:
            there &= judged.positive
        if self.strategy not in NEEDS_SCORES:
            return selection_probabilities(
                torch.zeros_like(there, dtype=torch.float32), normalize="none", allowed=there
            )
        if self.table is None or scores is None:
            raise ValueError(f"{self.strategy!r} needs table=: QualityTable.compute(root, scorer, path) makes it once")
        return selection_probabilities(
            scores,
            temperature=self.temperature,
            normalize=self.normalize,
            score_range=self.table.score_range,
            higher_is_better=self.table.higher_is_better,
            allowed=there,
        )


def _counts(sets: Sequence[CandidateSet]) -> str:
    examples = {len(candidates.paths): candidates.key for candidates in sets}
    return ", ".join(f"{count} ({key})" for count, key in sorted(examples.items()))
