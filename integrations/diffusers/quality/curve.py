"""Whether a dial does what it says, while an adapter trains: scores against q, and what the settings cost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks._base.processes import gather_rows, shared, together
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import meaning_of, scorer_spec
from qa_hooks.drawing.chart import GREY, Line, chart
from qa_hooks.drawing.tables import interval_text
from qa_hooks.evaluation.measure import Measurement, measure
from qa_hooks.evaluation.reference import Reference, kept_rows, make_reference
from qa_hooks.evaluation.set_metrics import METRICS, higher_is_better
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.functional.intervals import Comparison, bootstrap_interval, paired_difference
from qa_hooks.images import to_uint8
from qa_hooks.integrations.diffusers.quality.adapter import QualityAdapter
from qa_hooks.integrations.diffusers.quality.monitors import DialMonitor
from qa_hooks.ratings.statistics import spearman
from qa_hooks.scorers.scorer import Scorer, check_is_scorer, common_range
from qa_hooks.sources.batches import Source
from qa_hooks.sources.samples import Sample, in_range
from qa_hooks.writers import Meaning, make_tag

LOG = logging.getLogger("qa_hooks")
FOLLOWS, AGREES = 0.9, 0.7  # Spearman of the score that is conditioned on, and of one that is held out
NEGLIGIBLE = 0.1  # of a standard deviation of the images' scores: a span below it is no dial
GROUPS = 10  # of the jackknife behind the intervals of distances
DISTANCES = ("fd", "precision", "recall")


class QualityCurve(DialMonitor):
    """Whether the dial does what it says: scores against q, and what it costs in distance and recall.

    Writes these tags:

    - `qa_eval/{scorer}_q={level}/mean`, `/low`, `/high`: each score's mean at each setting and its 95 % interval.
    - `qa_eval/{scorer}_span/value`, `/low`, `/high`: how far the score moves from the lowest to the highest setting,
      and the 95 % interval of that difference, over the same noise and prompts; `/deviations`: the same in standard
      deviations of the images' scores at one setting.
    - `qa_eval/{scorer}_against_q/spearman`: of the means and the settings, with goodness for the score: 1 is a dial. It
      is 0 where the interval of the span holds 0, or where the span is below a tenth of a deviation: ranks do not
      know how far apart the settings are, and settings that are equal to the eye have some order, too.
    - `qa_eval/{fd, precision, recall}_{extractor}_n={n}_q={level}/value`, `/low`, `/high`, with `real=`.
    - `qa_images/{name}/{scorer}`: the curve, with the span in its title.

    The log says the same of each score, as a warning where the dial does nothing that counts.

    Once the first score follows the dial (Spearman 0.9) and a held-out one does not (below 0.7), it warns: the adapter
    then attacks its metric.

    FD is to all real images; precision and recall are against n of them, as in `GenerativeMonitor`.

    Args:
        adapter: whose dial is turned.
        sample: `sample(n, generator) -> (n, C, H, W)`, through the adapter's denoiser.
        scorers: the one that is conditioned on first, then held-out ones.
        real: real images, for distances to them; None leaves these out.
        extractor: from `create_extractor`, or what it takes; with `real`.
        levels: settings; None for 9 within the training images.
        n: images at each setting; with `real` at least 50.
        every, batch_size, seed, name: as in `ScoreMonitor`.

    Attributes:
        last: of the last measurement: "step"; for each scorer "{scorer}_spearman", "{scorer}_span" with "_low", "_high"
            (NaN where all images move by the same) and "_deviations", and "{scorer}_q={level}"; with `real`
            "fd_{extractor}_q={level}" and so on.

    Raises:
        TypeError, ValueError: no adapter, no scorers, two of one name, `real` without `extractor` or the other way.
    """

    def __init__(
        self,
        adapter: QualityAdapter,
        sample: Sample,
        scorers: Sequence[Scorer],
        *,
        real: Source | None = None,
        extractor: FeatureExtractor | nn.Module | str | dict[str, Any] | None = None,
        levels: Sequence[float] | None = None,
        every: int = 2000,
        n: int = 64,
        batch_size: int = 64,
        seed: int = 0,
        name: str = "quality",
    ) -> None:
        self.scorers = [check_is_scorer(s, "each of scorers") for s in scorers]
        names = [scorer.name for scorer in self.scorers]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"give scorers of different names, the one that is conditioned on first, got {names}")
        needy = [scorer.name for scorer in self.scorers if scorer.inputs]
        if needy:
            raise ValueError(f"{needy[0]} needs more than the image")
        if (real is None) != (extractor is None):
            raise ValueError("real= and extractor= go together")
        options: dict[str, Any] = {"value_range": common_range(self.scorers), "every": every, "seed": seed, "n": n}
        least = 2 if real is None else 5 * GROUPS
        super().__init__(adapter, sample, name, levels, batch_size=batch_size, least=least, **options)
        self.real, self.extractor = real, None if extractor is None else create_extractor(extractor)
        self.measures = tuple(f"{scorer}_{what}" for scorer in names for what in ("spearman", "span"))
        self.last: dict[str, float] = {}
        self._reference: Reference | None = None
        self._said = False

    def functions(self) -> list[Callable[..., Any]]:
        return [self.adapter.at(None, self.sample)] if self.sample is not None else []

    def higher_is_better(self, key: str) -> bool | None:
        directions: dict[str, bool | None] = {f"{scorer.name}_spearman": True for scorer in self.scorers}
        directions |= {f"{scorer.name}_span": scorer.higher_is_better for scorer in self.scorers}
        return higher_is_better(key) if key in DISTANCES else directions.get(key)

    def on_train_start(self, ctx: Context) -> None:
        """Measure the real images."""
        if self.extractor is None or self.real is None:
            return
        try:
            rows = kept_rows(self.n)
            self._reference = make_reference(self.extractor, self.real, rows=rows, value_range=self.value_range)
            if ctx.rank == 0:
                counts = self._reference.count, METRICS["pr"].real(self.n, self._reference)
                LOG.info("%s: FD is to %d real images, precision and recall use %d of them", self.state_key, *counts)
        except Exception as error:
            if ctx.world_size == 1:
                raise
            self._failure = error  # the other processes wait in the first measurement, and are told there

    def local(self, ctx: Context) -> Tensor:
        rows = []
        for place in range(len(self.levels)):
            for start, images in self.images_at(ctx, place):
                columns = [s.goodness(in_range(images, self.value_range)).cpu()[:, None] for s in self.scorers]
                if self.extractor is not None:
                    pixels = to_uint8(images, self.value_range).to(self.extractor.mean.device)
                    columns.append(self.extractor(pixels).cpu())
                where = torch.tensor(
                    [[place, start + index] for index in range(len(images))], device="cpu", dtype=torch.int64
                )
                rows.append(torch.cat([part.double() for part in (where, *columns)], 1))
        return torch.cat(rows) if rows else torch.zeros(0, 0, dtype=torch.float64, device="cpu")

    def reduce(self, ctx: Context, part: Tensor) -> None:
        rows = gather_rows(part)
        rows = rows[(rows[:, 0] * self.n + rows[:, 1]).argsort()]
        self.last = {"step": ctx.step}
        levels = [rows[rows[:, 0] == place, 2:] for place in range(len(self.levels))]
        for column, scorer in enumerate(self.scorers):
            self._write_scores(ctx, scorer, [level[:, column] for level in levels])
        self._warn_attack()
        if self.extractor is not None and self._reference is not None:
            with together():
                found = self._distances([level[:, len(self.scorers) :] for level in levels]) if ctx.rank == 0 else {}
            for (level, key), parts in shared(found).items():
                self._write_distance(ctx, level, key, Measurement(*parts))

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self.last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])

    def _write_scores(self, ctx: Context, scorer: Scorer, columns: list[Tensor]) -> None:
        sign = 1.0 if scorer.higher_is_better else -1.0
        found = []
        for level, goodness in zip(self.levels, columns, strict=True):
            scores = sign * goodness[goodness.isfinite()]
            if len(scores) < 2:
                raise ValueError(f"{scorer.name} gives fewer than two finite scores at q = {level:g}")
            interval = bootstrap_interval(scores)
            key = f"{scorer.name}_q={level:g}"
            self.last[key] = interval.value
            for stat, value in (("mean", interval.value), ("low", interval.low), ("high", interval.high)):
                if math.isfinite(value):  # scores that are all equal have no interval
                    ctx.writer.scalar(make_tag("eval", key, stat), value, ctx.step)
            found.append((level, *interval))
        points = torch.tensor(found, dtype=torch.float64, device="cpu")
        change, deviations = dial_span(sign * columns[0], sign * columns[-1], scorer)
        counts = change.verdict != "cannot tell" and deviations >= NEGLIGIBLE
        order = spearman(np.array(self.levels), sign * points[:, 1].numpy()) if counts else 0.0
        words = span_in_words(scorer.name + " (lower is better)" * (sign < 0), change, deviations, self.levels, order)
        span, against = f"{scorer.name}_span", f"{scorer.name}_against_q"
        ends = f"the mean at q = {self.levels[-1]:g} minus the mean at q = {self.levels[0]:g}"
        spec = scorer_spec(scorer)
        meaning = meaning_of(scorer, spec, f"{ends}, {change.n} pairs of images")
        self.describe(ctx, make_tag("eval", span, "value"), meaning, span)
        what = "rank correlation of mean goodness and q; 0 where the span holds 0 or is below a tenth of a deviation"
        meaning = meaning_of(scorer, spec, what)
        self.describe(ctx, make_tag("eval", against, "spearman"), meaning, f"{scorer.name}_spearman")
        for stat, value in zip(("value", "low", "high", "deviations"), (*change[:3], deviations), strict=True):
            self.last[span if stat == "value" else f"{span}_{stat}"] = value
            if math.isfinite(value):
                ctx.writer.scalar(make_tag("eval", span, stat), value, ctx.step)
        self.last[f"{scorer.name}_spearman"] = order
        ctx.writer.scalar(make_tag("eval", against, "spearman"), order, ctx.step)
        if ctx.rank == 0:
            LOG.log(logging.INFO if counts else logging.WARNING, "%s, step %d: %s", self.state_key, ctx.step, words)
            lines = [Line(points[:, [0, end]], GREY) for end in (2, 3)] + [Line(points[:, :2], dots=True)]
            y_label = f"mean {scorer.name} (grey: 95 %)"
            picture = chart(lines, title=words, x_label="q", y_label=y_label, width=640, height=400)
            if picture is not None:
                ctx.writer.image(make_tag("images", self.name, scorer.name), picture, ctx.step)

    def _distances(self, features: list[Tensor]) -> dict[tuple[float, str], list[Any]]:
        """What `Measurement` takes, by level and value."""
        if self.extractor is None or self._reference is None:
            return {}
        found: dict[tuple[float, str], list[Any]] = {}
        for level, rows in zip(self.levels, features, strict=True):
            own = rows.float().to(self._reference.rows.device)
            values = measure(own, self._reference, ["fd", "pr"], extractor=self.extractor, groups=GROUPS)
            found |= {(level, key): list(values[key]) for key in DISTANCES}
        return found

    def _write_distance(self, ctx: Context, level: float, key: str, found: Measurement) -> None:
        self.last[f"{found.name}_q={level:g}"] = found.value
        label = f"{found.name}_n={found.n}_q={level:g}"
        counts = f"{found.n} generated images against {found.real} real ones"
        meaning = Meaning(counts, found.spec, doubt=found.doubt)
        self.describe(ctx, make_tag("eval", label, "value"), meaning, key)
        for stat in ("value", "low", "high"):
            ctx.writer.scalar(make_tag("eval", label, stat), getattr(found, stat), ctx.step)

    def _warn_attack(self) -> None:
        first, *others = (self.last[f"{scorer.name}_spearman"] for scorer in self.scorers)
        worst = min(others, default=1.0)
        if first >= FOLLOWS and worst < AGREES and not self._said:
            self._said = True
            name = self.scorers[1 + others.index(worst)].name
            moves = f"Spearman {worst:.2f}" if worst else "no change that counts"
            warn(
                f"turning the dial up raises {self.scorers[0].name} (Spearman {first:.2f}) and not {name} ({moves}): "
                f"the adapter attacks its metric{'' if worst else f', or n={self.n} images do not show it'}"
            )


def dial_span(lowest: Tensor, highest: Tensor, scorer: Scorer) -> tuple[Comparison, float]:
    """The scores at the highest setting minus those at the lowest, of the same noise, and that in their deviations.

    Args:
        lowest, highest: `(n,)` each; pairs with a score that is not finite are left out.
        scorer: for its name and direction.
    """
    both = lowest.isfinite() & highest.isfinite()
    if int(both.sum()) < 2:
        raise ValueError(f"{scorer.name} gives fewer than two finite scores at both ends of q for the same noise")
    low, high = lowest[both].double(), highest[both].double()
    change = paired_difference(low, high, higher_is_better=scorer.higher_is_better)
    deviation = math.sqrt(float(low.var() + high.var()) / 2)
    if deviation > 0:
        return change, abs(change.difference) / deviation
    return change, math.inf if change.difference else 0.0


def span_in_words(name: str, change: Comparison, deviations: float, levels: Sequence[float], order: float) -> str:
    """How far a score moves over the dial; its rank correlation `order` only where that is beyond chance and counts.

    `deviations` is the same in standard deviations of the images' scores at one setting.

    Example:
        >>> flat = Comparison(0.0005, -0.08, 0.09, "cannot tell", 64)
        >>> span_in_words("bright", flat, 0.01, [-1, 0, 1], 0.0)
        'bright, q = -1 to 1: +0.00 [-0.08, 0.09] (95 %), no change that can be told from chance'
        >>> tiny = Comparison(0.001, 0.0005, 0.0016, "B better", 64)
        >>> span_in_words("bright", tiny, 0.02, [-1, 0, 1], 0.0)
        'bright, q = -1 to 1: +0.0010 [0.0005, 0.0016] (95 %), only 0.02 standard deviations: hardly any change'
        >>> span_in_words("bright", Comparison(0.2, 0.1, 0.3, "B better", 64), 1.7, [-1, 0, 1], 1.0)
        'bright, q = -1 to 1: +0.20 [0.10, 0.30] (95 %), 1.7 standard deviations; Spearman of the means: 1.00'
    """
    where = f"{name}, q = {levels[0]:.3g} to {levels[-1]:.3g}"
    if change.difference == 0 and math.isnan(change.low):
        return f"{where}: no image's score changes"
    moves = f"{where}: {'+' * (change.difference > 0)}{interval_text(change[:3])} (95 %)"
    if change.verdict == "cannot tell":
        return f"{moves}, no change that can be told from chance"
    if deviations < NEGLIGIBLE:
        return f"{moves}, only {deviations:.1g} standard deviations: hardly any change"
    beside = f", {deviations:.2g} standard deviations" if math.isfinite(deviations) else ""
    return f"{moves}{beside}; Spearman of the means: {order:.2f}"
