"""What the numbers of the dial mean: which scores, in which units, and how far the training images reach.

    q = (g - mean) / deviation        g: the goodness of a score, which is minus the score where lower is better

So one unit is one standard deviation of the training images, 0 is their average, and more is always better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.data import QualityTable
from qa_hooks.data.candidates import some
from qa_hooks.data.weights import only_candidate
from qa_hooks.integrations.diffusers.quality.parsing import Quality, parse_quality
from qa_hooks.integrations.diffusers.quality.scale import warn_of_scale

SPREAD = 8  # images from which on a deviation is looked at


@dataclass(frozen=True, eq=False)
class QualityScores:
    """The scores that an adapter is conditioned on; kept in its file.

    Attributes:
        names: of the scores, or of the one extractor whose features stand for them.
        higher_is_better: the published direction of each.
        fingerprints: of each scorer; "" where it is not known.
        mean, deviation: `(D,)` float32, of the goodness of the training images. D is the number of scores, or of
            features of a reference image.
        low, high: `(D,)`, the least and the largest q among the training images.
        reference: whether these are the features of a reference image.

    Example:
        >>> scores = QualityScores.of(torch.tensor([[3.0], [4.0], [5.0]]), ["niqe"], [False])
        >>> scores.standardise(torch.tensor([[3.0], [5.0]])).flatten().tolist()
        [1.0, -1.0]
    """

    names: tuple[str, ...]
    higher_is_better: tuple[bool, ...]
    fingerprints: tuple[str, ...]
    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor
    reference: bool = False

    @classmethod
    def of(
        cls,
        values: Tensor,
        names: Sequence[str],
        higher_is_better: Sequence[bool],
        fingerprints: Sequence[str] | None = None,
        *,
        reference: bool = False,
    ) -> QualityScores:
        """Units from the raw scores of the training images.

        Args:
            values: `(n, D)` raw scores; those that are not finite count as missing.
            names, higher_is_better, fingerprints: of the D scores, or of one extractor.
            reference: the values are features of reference images.

        Raises:
            ValueError: names that repeat, a score that is constant, or that fewer than two images have.
        """
        names = tuple(names)
        if len(set(names)) < len(names):
            raise ValueError(f"two scores have one name: {sorted(names)}")
        goodness = values.detach().cpu().double() * _signs(values.shape[1], higher_is_better)
        known = goodness.isfinite()
        short = [_name(names, i) for i in range(values.shape[1]) if int(known[:, i].sum()) < 2]
        if short:
            raise ValueError(f"fewer than two of {plural(len(values), 'image')} have a finite score {short[0]!r}")
        if not known.all():
            rows = int((~known).any(1).sum())
            warn(f"{rows} of {plural(len(values), 'image')} lack a score: they are trained on with that score left out")
        columns = [goodness[known[:, i], i] for i in range(values.shape[1])]
        mean, deviation = torch.stack([c.mean() for c in columns]), torch.stack([c.std() for c in columns])
        flat = deviation <= 1e-9 * mean.abs().clamp_min(1e-30)
        if reference:
            deviation = torch.where(flat, torch.ones_like(deviation), deviation)  # a feature that no image excites
        elif flat.any():
            i = int(flat.nonzero()[0])
            raise ValueError(
                f"the score {names[i]!r} is constant ({float(values[known[:, i], i][0]):g}) over the training images: "
                "a dial needs images of different quality"
            )
        low = torch.stack([(c.min() - m) / d for c, m, d in zip(columns, mean, deviation, strict=True)])
        high = torch.stack([(c.max() - m) / d for c, m, d in zip(columns, mean, deviation, strict=True)])
        marks = tuple(fingerprints) if fingerprints is not None else ("",) * len(names)
        directions = tuple(map(bool, higher_is_better))
        return cls(names, directions, marks, mean.float(), deviation.float(), low.float(), high.float(), reference)

    @classmethod
    def of_tables(cls, tables: QualityTable | Sequence[QualityTable]) -> QualityScores:
        """Units from one table for each score, over all of their images."""
        tables = _listed(tables)
        columns = [only_candidate(table) for table in tables]
        longest = max(map(len, columns))
        padded = [torch.cat([c, c.new_full((longest - len(c),), torch.nan)]) for c in columns]
        if any(len(c) < longest for c in columns):
            warn(f"the tables have {[len(c) for c in columns]} images: where one has no row, its score is left out")
        facts = [[getattr(t, name) for t in tables] for name in ("scorer_name", "higher_is_better", "fingerprint")]
        return cls.of(torch.stack(padded, 1), *facts)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many numbers stand for each name: 1 for a score, all of them for features."""
        return (len(self.mean),) if self.reference else (1,) * len(self.names)

    def standardise(self, raw: Tensor) -> Tensor:
        """Raw scores `(n, D)` in the units of the dial, float32; what is not finite becomes NaN, which is missing."""
        if raw.ndim != 2 or raw.shape[1] != len(self.mean):
            raise ValueError(f"scores must be (n, {len(self.mean)}), one column for each, got {tuple(raw.shape)}")
        goodness = raw.detach().double() * _signs(raw.shape[1], self.higher_is_better).to(raw.device)
        q = ((goodness - self.mean.to(raw.device)) / self.deviation.to(raw.device)).float()
        return torch.where(q.isfinite(), q, torch.nan)

    def of_images(self, tables: QualityTable | Sequence[QualityTable], keys: Sequence[str] | None = None) -> Tensor:
        """q `(n, D)` of these images from tables of the same scorers, in the order of `keys` (None: the first's).

        Raises:
            ValueError: other scorers, another direction of a score, or images that a table lacks.
        """
        tables = _listed(tables)
        names, marks = [t.scorer_name for t in tables], [t.fingerprint for t in tables]
        self.check_same(names, [t.higher_is_better for t in tables], marks, "the tables hold")
        if isinstance(keys, str):
            raise TypeError(f"keys must be a list of the images' keys, got the text {keys!r}")
        order = list(tables[0]) if keys is None else [str(key) for key in keys]
        if not order:
            raise ValueError("keys is empty: give the images' keys in the order of the data set, or None for all")
        for table in tables:
            lacking = [key for key in order if key not in table]
            if lacking:
                raise ValueError(
                    f"the table of {table.scorer_name} lacks {len(lacking)} of {plural(len(order), 'image')}: "
                    f"{some(lacking)}; it has {some(list(table))}. QualityTable.compute brings it up to date"
                )
        columns = [torch.stack([t[key][0] for key in order]) for t in tables if len(only_candidate(t))]
        q = self.standardise(torch.stack(columns, 1))
        spread = torch.stack(
            [c[c.isfinite()].std() if c.isfinite().sum() >= SPREAD else c.new_tensor(torch.nan) for c in q.T]
        )
        warn_of_scale(self, q.nanmedian(0).values, spread, marks)
        return q

    def warn_of_raw(self, rows: Tensor) -> None:
        """One warning where rows `(n, D)` that stand for q lie far outside the training images', as raw scores do."""
        if not self.reference:
            middle = rows.detach().cpu().nanmedian(0).values
            warn_of_scale(self, middle, torch.full_like(middle, torch.nan), ("",) * len(middle))

    def as_rows(self, q: Quality) -> Tensor:
        """A setting of the dial as `(k, D)`, NaN where it is left open: as `parse_quality`; or features of images.

        Raises:
            TypeError, ValueError: names that are not there, shapes that do not fit, infinite or not a number.
        """
        if not self.reference:
            return parse_quality(q, self.names)
        width = len(self.mean)
        if q is None:
            return torch.full((1, width), torch.nan, dtype=torch.float32, device="cpu")
        if not isinstance(q, Tensor) or q.ndim != 2 or q.shape[1] != width or not len(q):
            got = tuple(q.shape) if isinstance(q, Tensor) else type(q).__name__
            raise ValueError(
                f"this adapter was trained on reference images: give (n, {width}), quality(adapter.measure(image)), "
                f"got {got}"
            )
        rows = q.detach().float()
        if bool(rows.isinf().any()):
            raise ValueError("q is infinite")
        return rows

    def levels(self, count: int, reach: float) -> list[float]:
        """Evenly spaced settings at most `reach` standard deviations away, inside what all scores have shown."""
        low, high = max(-reach, float(self.low.max())), min(reach, float(self.high.min()))
        points = torch.linspace(low, high, count, device="cpu", dtype=torch.float32)
        return [round(float(point), 4) for point in points]

    def outside(self, rows: Tensor) -> str:
        """What to say of a setting that lies outside what the training images show; "" for the others."""
        if self.reference:
            return ""
        rows = rows.detach().cpu()
        for i, name in enumerate(self.names):
            column, low, high = rows[:, i][rows[:, i].isfinite()], float(self.low[i]), float(self.high[i])
            far = column[(column < low - 1e-4) | (column > high + 1e-4)]
            if len(far):
                return (
                    f"q = {float(far[0]):+.3g} of {name} lies outside the training images, whose q reach from "
                    f"{low:+.3g} to {high:+.3g}: nothing there was learned (said once)"
                )
        return ""

    def check_same(
        self, names: Sequence[str], higher_is_better: Sequence[bool], fingerprints: Sequence[str], what: str
    ) -> None:
        """`ValueError` unless these are the scorers that the units are of; unknown fingerprints are not compared."""
        if tuple(names) != self.names:
            raise ValueError(f"{what} the scores {list(names)}, and the adapter was trained on {list(self.names)}")
        for name, own, other in zip(names, self.higher_is_better, higher_is_better, strict=True):
            if bool(own) != bool(other):
                raise ValueError(
                    f"{what} the score {name} with higher_is_better={bool(other)}, and the adapter was trained with "
                    f"{bool(own)}: a quality turned up would be turned down; give the table the direction of the file"
                )
        for name, own_mark, mark in zip(names, self.fingerprints, fingerprints, strict=True):
            if own_mark and mark and own_mark != mark:
                raise ValueError(
                    f"{what} scores of another {name} (fingerprint {mark}) than the adapter was trained on "
                    f"({own_mark}): its numbers mean something else"
                )

    def check_resumed(self, saved: QualityScores) -> None:
        """`ValueError` unless a run with these saved scores can go on with ours."""
        self.check_same(saved.names, saved.higher_is_better, saved.fingerprints, "the run to be resumed had")
        pairs = ((saved.mean, self.mean), (saved.deviation, self.deviation))
        if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in pairs):
            raise ValueError(
                "the run to be resumed had other means or deviations of its scores: its training images were others, "
                "and one unit of the dial is not the same"
            )

    def facts(self) -> dict[str, Any]:
        """What JSON holds of it."""
        return {
            "names": list(self.names),
            "higher_is_better": list(self.higher_is_better),
            "fingerprints": list(self.fingerprints),
            "reference": self.reference,
            **{name: getattr(self, name).tolist() for name in ("mean", "deviation", "low", "high")},
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> QualityScores:
        """The inverse of `facts`; `ValueError` where they do not fit together."""
        tensors = [
            torch.tensor(facts[n], dtype=torch.float32, device="cpu") for n in ("mean", "deviation", "low", "high")
        ]
        names, directions, marks = (tuple(facts[n]) for n in ("names", "higher_is_better", "fingerprints"))
        reference = bool(facts["reference"])
        shapes = {tuple(t.shape) for t in tensors}
        if len(shapes) > 1 or tensors[0].ndim != 1 or not len(names) == len(directions) == len(marks):
            raise ValueError("the numbers of scores, means and deviations differ")
        if (not reference and len(names) != len(tensors[0])) or not all(bool(t.isfinite().all()) for t in tensors):
            raise ValueError("the means and deviations are not one finite number for each score")
        if bool((tensors[1] <= 0).any()):
            raise ValueError("a deviation is not positive")
        mean, deviation, low, high = tensors
        return cls(names, directions, marks, mean, deviation, low, high, reference)


def _listed(tables: QualityTable | Sequence[QualityTable]) -> list[QualityTable]:
    listed = [tables] if isinstance(tables, QualityTable) else list(tables)
    for table in listed:
        if not isinstance(table, QualityTable):
            raise TypeError(f"give a QualityTable for each score, got {type(table).__name__}")
    if not listed:
        raise ValueError("give at least one QualityTable")
    return listed


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else names[0]


def _signs(width: int, higher_is_better: Sequence[bool]) -> Tensor:
    signs = torch.tensor([1.0 if higher else -1.0 for higher in higher_is_better], dtype=torch.float64, device="cpu")
    return signs if len(signs) == width else torch.ones(width, dtype=torch.float64, device="cpu")
