"""Two plain tables of what people said: ratings (one number an image) and preferences (which of several is better).

The numbers are kept as they were published, with their direction and their scale beside them. `goodness` turns them so
that higher is better; nothing else does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.text import plural

SHOWN = 3


@dataclass(frozen=True, eq=False)
class Ratings:
    """One row for each rated image (or for each rater's rating of it).

    Attributes:
        names: the images' names as the file has them.
        rating: `(n,)` float64, as published.
        higher_is_better: the direction of `rating`.
        scale: what the numbers mean, in words.
        spread: `(n,)` standard deviation of the raters' opinions, in the units of `spread_scale`; NaN where unknown.
        content: what the image shows: its reference, or its prompt. Images of one content are not independent.
        kind: the distortion, the generator or the method.
        level: the degree of the distortion, as a text.
        split: "train", "val" or "test" where the set has them.
        rater: who said it, where the file tells raters apart.
        reference: the names of the reference images.
        images: the files on disk; None where none was looked for or found.
        format: which form the file has.
        across_contents: whether ratings of different contents can be compared; where they are scaled within each
            content, only images of one content can.
    """

    names: list[str]
    rating: Tensor
    higher_is_better: bool
    scale: str
    format: str
    spread: Tensor | None = None
    spread_scale: str = ""
    content: list[str] = field(default_factory=list)
    kind: list[str] = field(default_factory=list)
    level: list[str] = field(default_factory=list)
    split: list[str] = field(default_factory=list)
    rater: list[str] = field(default_factory=list)
    reference: list[str] = field(default_factory=list)
    prompt: list[str] = field(default_factory=list)
    images: list[Path | None] = field(default_factory=list)
    across_contents: bool = True

    def __post_init__(self) -> None:
        for name in TEXTS:
            column = getattr(self, name)
            if column and len(column) != len(self.names):
                raise ValueError(f"{name} has {len(column)} rows for {len(self.names)} images")
        if self.rating.shape != (len(self.names),):
            raise ValueError(f"rating must have the shape ({len(self.names)},), got {tuple(self.rating.shape)}")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def goodness(self) -> Tensor:
        """`(n,)`, higher is better."""
        return self.rating if self.higher_is_better else -self.rating

    def together(self, column: str = "content") -> list[Hashable]:
        """What each row belongs to: its value in a column; an image whose value is blank or missing is on its own.

        Example:
            >>> rows = Ratings(["a.png", "b.png", "c.png"], torch.zeros(3), True, "", "", content=["cat", "", "cat"])
            >>> rows.together()
            ['cat', ('image', 'b.png'), 'cat']
        """
        values = getattr(self, column) or [""] * len(self)
        return [value if value.strip() else ("image", name) for value, name in zip(values, self.names, strict=True)]

    def select(self, keep: Tensor | Sequence[int]) -> Ratings:
        """The rows of these positions, or where a mask `(n,)` is true."""
        if isinstance(keep, Tensor) and keep.dtype == torch.bool:
            keep = keep.nonzero().flatten()
        rows = [int(row) for row in keep]
        columns: dict[str, Any] = {
            name: [getattr(self, name)[i] for i in rows] for name in TEXTS if getattr(self, name)
        }
        spread = self.spread[rows] if self.spread is not None else None
        return replace(self, names=[self.names[i] for i in rows], rating=self.rating[rows], spread=spread, **columns)

    def mean_opinion(self) -> Ratings:
        """Each image once, with the mean of its raters' ratings; without a spread."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows.setdefault(name, []).append(row)
        first = self.select([own[0] for own in rows.values()])
        means = torch.stack([self.rating[own].mean() for own in rows.values()])
        return replace(first, rating=means, spread=None, spread_scale="", rater=[])

    def as_pairs(self, *, within: str = "content", least: float = 0.0) -> Preferences:
        """All pairs of images of one content, the better one first known from the ratings.

        Images whose value is blank are in no pair.

        Args:
            within: the column whose value two images must share; "" pairs every image with every other.
            least: ratings that differ by no more are a tie.

        Raises:
            ValueError: the file has no such column, or no two images share a value of it.
        """
        if within and not getattr(self, within):
            raise ValueError(f'these ratings have no {within}; as_pairs(within="") pairs every image with every other')
        groups: dict[str, list[int]] = {}
        for row in range(len(self)):
            groups.setdefault(getattr(self, within)[row] if within else "", []).append(row)
        goodness, found = self.goodness, []
        for content, rows in groups.items():
            if within and not content.strip():
                continue
            for position, a in enumerate(rows):
                for b in rows[position + 1 :]:
                    gap = float(goodness[a] - goodness[b])
                    better = 0.0 if abs(gap) <= least else 1.0 if gap > 0 else -1.0
                    found.append(Preference(self.names[a], self.names[b], better, content))
        if not found:
            raise ValueError(f"no two images share a {within}")
        places = dict(zip(self.names, self.images, strict=True)) if self.images else {}
        return Preferences(found, f"pairs of {self.format}", places)

    def __str__(self) -> str:
        direction = "higher is better" if self.higher_is_better else "lower is better"
        low, high = float(self.rating.min()), float(self.rating.max())
        read = f"{plural(len(self), 'rating')} read as {self.format}"
        lines = [f"{read}: {self.scale}, {direction}; from {low:.4g} to {high:.4g}"]
        for name in ("content", "kind", "split", "rater"):
            if values := getattr(self, name):
                lines.append(f"  {len(set(values))} different {name}: {', '.join(sorted(set(values))[:SHOWN])}, ...")
        for row in range(min(SHOWN, len(self))):
            facts = [
                f"{name} {getattr(self, name)[row]}" for name in ("content", "kind", "split") if getattr(self, name)
            ]
            lines.append(f"  {self.names[row]}: {float(self.rating[row]):.6g}" + "".join(f", {f}" for f in facts))
        if self.images:
            lines.append(_missing(zip(self.names, self.images, strict=True)))
        return "\n".join(lines)


TEXTS = ("content", "kind", "level", "split", "rater", "reference", "prompt", "images")


class Preference(NamedTuple):
    """Image `a` against image `b`: `better` is 1 where a is better, -1 where b is, 0 where people saw no difference."""

    a: str
    b: str
    better: float
    content: str = ""
    rater: str = ""
    split: str = ""


@dataclass(frozen=True, eq=False)
class Preferences:
    """Pairs that people judged, ties included.

    Attributes:
        pairs: one `Preference` for each judged pair.
        format: which form the file has.
        images: the files on disk by name; None where a name was looked for and not found.
        scale: what the labels say, in words.
    """

    pairs: list[Preference]
    format: str
    images: dict[str, Path | None] = field(default_factory=dict)
    scale: str = "which of two images is better"

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.pairs)

    @property
    def labels(self) -> Tensor:
        """`(n,)` float32: 1 where a is better, -1 where b is, 0 for a tie."""
        return torch.tensor([pair.better for pair in self.pairs], dtype=torch.float32, device="cpu")

    @property
    def names(self) -> list[str]:
        """Every image once, in the order of appearance."""
        return list(dict.fromkeys(name for pair in self.pairs for name in (pair.a, pair.b)))

    def majority(self) -> Preferences:
        """One row for each pair of a content: what most raters said; dropped where no label has the most votes.

        A rater has one vote for each pair: what they said most often, none where they contradict themselves evenly.
        Rows without a rater count as raters of their own.
        """
        votes: dict[tuple[str, str, str], dict[Hashable, list[float]]] = {}
        facts: dict[tuple[str, str, str], Preference] = {}
        for row, pair in enumerate(self.pairs):
            a, b = sorted((pair.a, pair.b))
            key = pair.content, a, b
            said = votes.setdefault(key, {}).setdefault(pair.rater or row, [])
            said.append(pair.better if (a, b) == (pair.a, pair.b) else -pair.better)
            facts.setdefault(key, pair)
        kept = []
        for key, raters in votes.items():
            own = [vote for said in raters.values() if (vote := _most(said)) is not None]
            if (better := _most(own)) is not None:
                kept.append(facts[key]._replace(a=key[1], b=key[2], better=better, rater="majority"))
        return replace(self, pairs=kept)

    def __str__(self) -> str:
        ties = int((self.labels == 0).sum())
        read = f"{plural(len(self), 'pair')} of {plural(len(self.names), 'image')} read as {self.format}"
        lines = [f"{read}: {self.scale}; {plural(ties, 'tie')}"]
        for pair in self.pairs[:SHOWN]:
            sign = {1.0: "better than", -1.0: "worse than", 0.0: "as good as"}[pair.better]
            lines.append(f"  {pair.a} {sign} {pair.b}" + (f" ({pair.content})" if pair.content else ""))
        if self.images:
            lines.append(_missing(self.images.items()))
        return "\n".join(lines)


def _most(labels: Sequence[float]) -> float | None:
    """The label that occurs most often; None where several do, or there is none."""
    counts = sorted(((labels.count(label), label) for label in set(labels)), reverse=True)
    if not counts or (len(counts) > 1 and counts[0][0] == counts[1][0]):
        return None
    return counts[0][1]


def _missing(places: Iterable[tuple[str, Path | None]]) -> str:
    missing = [name for name, place in places if place is None]
    if not missing:
        return "  all images are there"
    more = ", ..." if len(missing) > SHOWN else ""
    return f"  without an image: {len(missing)} ({', '.join(missing[:SHOWN])}{more})"
