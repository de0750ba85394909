"""People's judgements of candidates as tensors of labels and votes, and the sets that can be used for training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks.data.candidates import ANNOTATORS, LABELS, CandidateSet

KEEP = ("all", "positive", "judged")
_ORIGINAL, _POSITIVE, _SIMILAR, _NEGATIVE = range(len(LABELS))


class Judgements(NamedTuple):
    """`(S, K)` label codes (positions in `LABELS`) and `(S, K)` votes, both int64, of S sets."""

    labels: Tensor
    votes: Tensor

    @property
    def positive(self) -> Tensor:
        """`(S, K)` bool."""
        return self.labels == _POSITIVE

    @property
    def negative(self) -> Tensor:
        """`(S, K)` bool."""
        return self.labels == _NEGATIVE

    def rows_to_keep(self, keep: str) -> Tensor:
        """The sets with a "positive" candidate, those "judged" (a positive or a negative one), or "all", int64."""
        wanted = torch.ones_like(self.positive)
        if keep != "all":
            wanted = self.positive | self.negative if keep == "judged" else self.positive
        return wanted.any(1).nonzero().flatten()


def read_judgements(
    sets: Sequence[CandidateSet], positives: Mapping[str, Sequence[int]] | None = None
) -> Judgements | None:
    """The labels that the sets carry, or positives by key instead; None where nobody has judged any set.

    A set that nobody has judged, and what `positives` does not name, is similar.

    Raises:
        ValueError: a key that is none of the sets, a number that is none of an enhanced candidate.

    Example:
        >>> from pathlib import Path
        >>> sets = [CandidateSet("a.png", (Path("a.png"), Path("b.png"), Path("c.png")))]
        >>> read_judgements(sets, {"a.png": [2]}).positive
        tensor([[False, False,  True]])
    """
    if positives is None and not any(s.labels for s in sets):
        return None
    size = len(sets[0].paths)
    labels = torch.full((len(sets), size), _SIMILAR, device="cpu", dtype=torch.int64)
    votes = torch.ones_like(labels)
    labels[:, 0] = _ORIGINAL
    if positives is None:
        for row, judged in enumerate(sets):
            if judged.labels:
                labels[row] = torch.tensor(judged.labels, device="cpu", dtype=torch.int64)
                votes[row] = torch.tensor(judged.votes, device="cpu", dtype=torch.int64)
        return Judgements(labels, votes)
    rows = {judged.key: row for row, judged in enumerate(sets)}
    for key, numbers in positives.items():
        if key not in rows:
            raise ValueError(f"positives name {key!r}, which is none of the {len(rows)} sets, such as {sets[0].key!r}")
        if not all(isinstance(number, int) and 0 < number < size for number in numbers):
            raise ValueError(f"the positives of {key!r} must be candidates from 1 to {size - 1}, got {list(numbers)}")
        labels[rows[key], list(numbers)], votes[rows[key], list(numbers)] = _POSITIVE, len(ANNOTATORS)
    return Judgements(labels, votes)
