"""The scores of generated images beside the scores of real ones, as the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import check_count
from qa_hooks._base.processes import gather_rows
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import (
    axis_label,
    check_scorer,
    meaning_of,
    picture_folder,
    scorer_spec,
    write_picture,
)
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.drawing.chart import GREY, ORANGE, Line, chart
from qa_hooks.functional.distributions import histogram_overlap, ks_distance, score_histograms
from qa_hooks.scorers.score_source import first_refusal, score_each, score_source
from qa_hooks.scorers.scorer import Scorer
from qa_hooks.sources.batches import Source, check_source, first_images
from qa_hooks.sources.samples import Sample, in_range
from qa_hooks.writers import make_tag


class ScoreHistogram(SamplingMonitor):
    """The scores of generated and of real images: two histograms, and how far they are apart.

    Writes the histograms `qa_eval/{name}/generated` and, once, `/real`, the scalars `/overlap` (`histogram_overlap`)
    and `/ks` (`ks_distance`), and the picture `qa_images/{name}/distribution`. A mean can be right while the spread
    is not. Scores that are not finite are left out and counted in `/nonfinite`.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)` in the scorer's `value_range`, as in `SampleGrid`. On several
            processes the sampling is shared out.
        real: anything that `image_batches` takes: a tensor, a folder, a dataset, a loader; scored once, all of it.
        scorer: any `Scorer` that needs no reference.
        every: steps between two measurements.
        n: how many samples.
        batch_size, seed: as in `ScoreMonitor`, which scores the same samples.
        bins: of the picture and the overlap.
        name: in the tags; the scorer's name by default.
        folder: also write `distribution_{step:08d}.png` there.

    Attributes:
        last: `{"step", "overlap", "ks", "mean", "real_mean", "n"}` of the last measurement.

    Example:
        >>> from qa_hooks.scorers import FunctionScorer
        >>> contrast = FunctionScorer(lambda x: x.std((1, 2, 3)), name="contrast", higher_is_better=True)
        >>> noise = lambda n, generator: torch.rand(n, 1, 8, 8, generator=generator)
        >>> monitor = ScoreHistogram(noise, torch.rand(100, 1, 8, 8), contrast, every=500)
    """

    measures = ("overlap", "ks", "mean", "real_mean")

    def __init__(
        self,
        sample: Sample,
        real: Source,
        scorer: Scorer,
        *,
        every: int = 1000,
        n: int = 256,
        batch_size: int = 64,
        seed: int = 0,
        bins: int = 32,
        name: str | None = None,
        folder: str | Path | None = None,
    ) -> None:
        check_scorer(scorer)
        if scorer.inputs:
            raise ValueError(f"{scorer.name} needs a reference, which generated images do not have")
        options: dict[str, Any] = {"n": n, "batch_size": batch_size, "seed": seed, "value_range": scorer.value_range}
        super().__init__(sample, name or scorer.name, every=every, least=2, **options)
        check_source(real)
        self.real, self.scorer, self.bins = real, scorer, check_count("bins", bins, least=2)
        self.folder = picture_folder(folder)
        self.last: dict[str, float] = {}
        self._real_scores: Tensor | None = None
        self._shown = False

    def higher_is_better(self, key: str) -> bool | None:
        return {"overlap": True, "ks": False, "mean": self.scorer.higher_is_better}.get(key)

    @cached_property
    def spec(self) -> str:
        """Which measure `.last` is of."""
        return scorer_spec(self.scorer)

    def rehearse(self, images: Tensor | None) -> Iterator[str]:
        """The scores of two real images."""
        refusals: list[str] = []
        tried = [
            score_source(self.scorer, real, progress=False, refusals=refusals) for real in first_images(self.real, 2)
        ]
        scores = torch.cat([found.scores for found in tried])
        known = scores[torch.isfinite(scores)]
        if not len(known):
            raise ValueError(next(iter(refusals), "no finite score among the first real images"))
        ends = f"{float(known.min()):.4g} to {float(known.max()):.4g}"
        yield "; ".join([f"real: {self.scorer.name} {ends}", *(f"left out: {why}" for why in refusals[:1])])

    def local(self, ctx: Context) -> tuple[Tensor, str]:
        scores, refusal = [torch.zeros(0, dtype=torch.float32, device="cpu")], ""
        for _, images in self.blocks(ctx):
            own, refused = score_each(self.scorer, in_range(images, self.value_range))
            scores.append(own.float())
            refusal = refusal or first_refusal(refused)
        return torch.cat(scores), refusal

    def reduce(self, ctx: Context, part: tuple[Tensor, str]) -> None:
        generated = gather_rows(part[0])
        if self._real_scores is None:  # shared out over the processes, and it tells all of them when one fails
            refusals: list[str] = []
            found = score_source(self.scorer, self.real, batch_size=self.batch_size, progress=False, refusals=refusals)
            self._real_scores = self.finite(found.scores, next(iter(refusals), ""), "score", of="real image")
        real, finite = self._real_scores, self.finite(generated, part[1], "score")
        edges, own, theirs = score_histograms(finite, real, bins=self.bins)
        self.last = {
            "step": ctx.step,
            "overlap": histogram_overlap(finite, real, bins=self.bins),
            "ks": ks_distance(finite, real),
            "mean": float(finite.double().mean()),
            "real_mean": float(real.double().mean()),
            "n": len(finite),
        }
        if len(finite) < len(generated):
            ctx.writer.scalar(make_tag("eval", self.name, "nonfinite"), len(generated) - len(finite), ctx.step)
        for stat, what in (("overlap", "overlap of"), ("ks", "Kolmogorov-Smirnov distance between")):
            tag = make_tag("eval", self.name, stat)
            what = f"{what} the scores of {len(finite)} samples and of {plural(len(real), 'real image')}"
            self.describe(ctx, tag, meaning_of(self.scorer, self.spec, what), stat)
            ctx.writer.scalar(tag, self.last[stat], ctx.step)
        ctx.writer.histogram(make_tag("eval", self.name, "generated"), finite, ctx.step)
        if not self._shown:  # it stays as it is
            ctx.writer.histogram(make_tag("eval", self.name, "real"), real, ctx.step)
            self._shown = True
        if ctx.rank == 0:
            lines = [Line(_outline(edges, theirs), GREY, "real"), Line(_outline(edges, own), ORANGE, "generated")]
            title = f"step {ctx.step}: overlap {self.last['overlap']:.2f}, KS {self.last['ks']:.2f}"
            picture = chart(
                lines, title=title, x_label=axis_label(self.scorer), y_label="share of images", from_zero=True
            )
            if picture is not None:
                write_picture(ctx, self.folder, self.name, "distribution", picture)

    def state_dict(self) -> dict[str, Any]:
        return {"last": dict(self.last), "shown": self._shown}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self._shown = dict(state["last"]), bool(state.get("shown", False))


def _outline(edges: Tensor, shares: Tensor) -> Tensor:
    """The outline of a histogram as points."""
    heights = torch.nn.functional.pad(shares.repeat_interleave(2), (1, 1))
    return torch.stack([edges.repeat_interleave(2), heights], 1)
