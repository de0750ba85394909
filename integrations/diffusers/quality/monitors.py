"""Monitors of the dial while an adapter trains: the strip, and scores and distances against q.

sample = PipelineSampler(pipe, prompts, num_inference_steps=25)
hooks = Hooks([
    QualityStrip(adapter, sample, every=500),
    QualityCurve(adapter, sample, [conditioned, held_out], real="photos", extractor="inception", every=2000),
    ScoreMonitor(held_out, sample=adapter.at(+1.5, sample), name="held-out, turned up"),
], log_dir="runs/dial")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qa_hooks._base.checks import warn
from qa_hooks._base.processes import gather_rows, shared, together
from qa_hooks._base.reach import modules_of
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import picture_folder
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.drawing.chart import GREY, Line, chart
from qa_hooks.evaluation.measure import measure
from qa_hooks.evaluation.reference import Reference, make_reference
from qa_hooks.features import FeatureExtractor, create_extractor
from qa_hooks.functional.intervals import bootstrap_interval
from qa_hooks.images import Range, save_image, to_uint8
from qa_hooks.integrations.diffusers.quality.adapter import QualityAdapter
from qa_hooks.integrations.diffusers.quality.pictures import draw_strip
from qa_hooks.ratings.statistics import spearman
from qa_hooks.scorers.scorer import Scorer, check_is_scorer, common_range
from qa_hooks.sources.batches import Source
from qa_hooks.sources.samples import Sample, SampleSet, in_range, sample_blocks
from qa_hooks.writers import make_tag

FOLLOWS, AGREES = 0.9, 0.7  # Spearman of the score that is conditioned on, and of one that is held out
GROUPS = 10  # of the jackknife behind the intervals of distances


class DialMonitor(SamplingMonitor):
    """What both monitors share: the same noise at each setting of the dial.

    Args:
        adapter: whose dial is turned.
        sample: `sample(n, generator)`, through the adapter's denoiser.
        levels: settings; None for 9 within the training images.
        options: of `SamplingMonitor`.
    """

    def __init__(
        self, adapter: QualityAdapter, sample: Sample, name: str, levels: Sequence[float] | None, **options: Any
    ) -> None:
        if not isinstance(adapter, QualityAdapter):
            raise TypeError(f"adapter must be a QualityAdapter, got {type(adapter).__name__}")
        if adapter.scores.reference:
            raise ValueError("an adapter of reference images has no scale to turn: watch adapter.at(features, sample)")
        super().__init__(sample, name, **options)
        self.adapter = adapter
        self.levels = adapter.levels(9) if levels is None else [float(level) for level in levels]
        if len(self.levels) < 2 or self.levels != sorted(set(self.levels)):
            raise ValueError(f"levels must be at least two ascending numbers, got {levels!r}")
        self.samples = [adapter.at(level, sample) for level in self.levels]

    def networks(self) -> list[nn.Module]:
        return [self.adapter, self.adapter.denoiser, *(m for f in self.functions() for m in modules_of(f))]

    def asks(self, ctx: Context) -> list[SampleSet]:
        return [asked._replace(sample=sample) for asked in super().asks(ctx) for sample in self.samples]

    def images_at(self, ctx: Context, place: int) -> Iterator[tuple[int, Tensor]]:
        """The blocks of images at one level."""
        return sample_blocks(self.asks(ctx)[place], guard=self._guard, one_pass=ctx.samples)


class QualityStrip(DialMonitor):
    """A picture of the same seeds over the settings of the dial, worst at the left: `qa_images/{name}/strip`.

    Args:
        adapter: whose dial is turned.
        sample: `sample(n, generator) -> (n, C, H, W)`, through the adapter's denoiser.
        levels: settings; None for 9 within the training images.
        n: seeds, each a row.
        every, seed, value_range, name: as in `SampleGrid`.
        folder: also write `{step:08d}.png` there.

    Raises:
        TypeError, ValueError: no adapter, or levels that do not ascend.
    """

    shared_out = False

    def __init__(
        self,
        adapter: QualityAdapter,
        sample: Sample,
        *,
        levels: Sequence[float] | None = None,
        every: int = 500,
        n: int = 4,
        seed: int = 0,
        value_range: Range = (0.0, 1.0),
        name: str = "quality",
        folder: str | Path | None = None,
    ) -> None:
        options: dict[str, Any] = {"every": every, "n": n, "batch_size": n, "seed": seed, "value_range": value_range}
        super().__init__(adapter, sample, name, levels, **options)
        self.folder = picture_folder(folder)

    def local(self, ctx: Context) -> Tensor | None:
        columns = []
        for place in range(len(self.levels)):
            for _, images in self.images_at(ctx, place):
                columns.append(to_uint8(images, self.value_range).cpu())
        return draw_strip(torch.stack(columns, 1), self.levels) if columns else None

    def reduce(self, ctx: Context, part: Tensor | None) -> None:
        if part is None:
            return
        ctx.writer.image(make_tag("images", self.name, "strip"), part, ctx.step)
        if self.folder is not None:
            save_image(part, self.folder / f"{ctx.step:08d}.png")


class QualityCurve(DialMonitor):
    """Whether the dial does what it says: scores against q, and what it costs in distance and recall.

    Writes these tags:

    - `qa_eval/{scorer}_q={level}/mean`, `/low`, `/high`: each score's mean at each setting and its 95 % interval.
    - `qa_eval/{scorer}_against_q/spearman`: of the means and the settings, with goodness for the score: 1 is a dial.
    - `qa_eval/{fd, precision, recall}_{extractor}_q={level}/value`, `/low`, `/high`, with `real=`.
    - `qa_images/{name}/{scorer}`: the curve.

    Once the first score follows the dial (Spearman 0.9) and a held-out one does not (below 0.7), it warns: the adapter
    then attacks its metric.

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
        last: `{"step", "{scorer}_spearman", "{scorer}_q={level}", "fd_q={level}", ...}` of the last measurement.

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
        self.measures = tuple(f"{scorer}_spearman" for scorer in names)
        self.last: dict[str, float] = {}
        self._reference: Reference | None = None
        self._said = False

    def functions(self) -> list[Callable[..., Any]]:
        return [self.adapter.at(None, self.sample)] if self.sample is not None else []

    def on_train_start(self, ctx: Context) -> None:
        """Measure the real images."""
        if self.extractor is None or self.real is None:
            return
        try:
            self._reference = make_reference(self.extractor, self.real, rows=self.n, value_range=self.value_range)
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
            for (key, stat), value in shared(found).items():
                ctx.writer.scalar(make_tag("eval", key, stat), value, ctx.step)
                self.last |= {key: value} if stat == "value" else {}

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
        moves = float(points[:, 1].max() - points[:, 1].min()) > 1e-6
        order = spearman(np.array(self.levels), sign * points[:, 1].numpy()) if moves else 0.0
        self.last[f"{scorer.name}_spearman"] = order
        ctx.writer.scalar(make_tag("eval", f"{scorer.name}_against_q", "spearman"), order, ctx.step)
        if ctx.rank == 0:
            lines = [Line(points[:, [0, end]], GREY) for end in (2, 3)] + [Line(points[:, :2], dots=True)]
            title = f"{scorer.name}, Spearman {order:.2f}, and its 95 % interval"
            if (picture := chart(lines, title=title, x_label="q", y_label=scorer.name)) is not None:
                ctx.writer.image(make_tag("images", self.name, scorer.name), picture, ctx.step)

    def _distances(self, features: list[Tensor]) -> dict[tuple[str, str], float]:
        if self.extractor is None or self._reference is None:
            return {}
        found = {}
        for level, rows in zip(self.levels, features, strict=True):
            own = rows.float().to(self._reference.rows.device)
            values = measure(own, self._reference, ["fd", "pr"], extractor=self.extractor, groups=GROUPS)
            for name in ("fd", "precision", "recall"):
                value = values[name]
                for stat in ("value", "low", "high"):
                    found[f"{value.name}_q={level:g}", stat] = float(getattr(value, stat))
        return found

    def _warn_attack(self) -> None:
        first, *others = (self.last[f"{scorer.name}_spearman"] for scorer in self.scorers)
        worst = min(others, default=1.0)
        if first >= FOLLOWS and worst < AGREES and not self._said:
            self._said = True
            name = self.scorers[1 + others.index(worst)].name
            warn(
                f"turning the dial up raises {self.scorers[0].name} (Spearman {first:.2f}) and not {name} "
                f"({worst:.2f}): the adapter attacks its metric"
            )
