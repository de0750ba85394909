"""The mean score of samples while a model trains."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.checks import warn
from qa_hooks._base.text import plural
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.measuring.instruments import Block, Found, ScoreInstrument
from qa_hooks.callbacks.measuring.monitor import MeasuringMonitor, check_where
from qa_hooks.callbacks.pictures import meaning_of, scorer_spec
from qa_hooks.callbacks.sampling import SamplingMonitor, check_reference
from qa_hooks.scorers.scorer import Scorer, check_is_scorer
from qa_hooks.sources.samples import Sample
from qa_hooks.writers import make_tag


class ScoreMonitor(SamplingMonitor, MeasuringMonitor):
    """The scores of samples, or of images the loop hands over: mean, spread and histogram.

    Writes these tags:

    - `qa_eval/{scorer}/mean`, with `/low` and `/high`, the ends of its 95 % interval.
    - `qa_eval/{scorer}/std` and `/histogram`.
    - `qa_eval/{scorer}/nonfinite`: how many images have no finite score and were left out, such as photographs that are
      too small for the scorer; only if there are any.
    - `qa_eval/{scorer}_change/mean`, `/low`, `/high`, only with `sample=`: the mean change of an image's score since
      the last measurement. If the interval contains 0, the scores may not have changed.

    Images are clamped to the scorer's range first. Several processes share the sampling and give the same numbers as
    one process.

    Args:
        scorer: any `Scorer`.
        every: steps between two measurements.
        sample: `sample(n, generator) -> (n, C, H, W)`, as in `SampleGrid`; a list where sizes differ; or
        images: the name under which the loop hands images over (`hooks.step(fake=fake)`; a list where sizes differ) or
            captures them.
        reference: for scorers that need one, the ground truth: the name under which the loop hands it over, with
            `images`; or with `sample` the images themselves, `(n, C, H, W)` or a list of several sizes, and then
            `sample(n, generator)` is asked for all n at once. So a validation set is watched.
        n: how many samples to score; 256, or as many as `reference`, by default.
        batch_size: how many at a time.
        seed: seed of the samples.
        where: "process", "cpu", "cuda:1", ...: the scores are computed in a process of its own while training goes on,
            as in `GenerativeMonitor`. None computes in the step.
        name: the name in the tags; the scorer's name by default.

    Attributes:
        last: `{"step", "mean", "mean_low", "mean_high", "std", "n"}` of the last measurement, and with `sample=` from
            the second one on `"change"`, `"change_low"`, `"change_high"`.

    Example:
        >>> from qa_hooks.scorers import create_scorer
        >>> monitor = ScoreMonitor(create_scorer("psnr"), every=100, images="pred", reference="target")

        >>> photographs = [torch.rand(3, 48, 64), torch.rand(3, 64, 48)]  # a validation set of two sizes
        >>> small = [torch.nn.functional.avg_pool2d(image, 2) for image in photographs]
        >>> upscale = torch.nn.Upsample(scale_factor=2)
        >>> restore = lambda n, generator: [upscale(image[None])[0] for image in small]
        >>> monitor = ScoreMonitor(create_scorer("psnr"), sample=restore, reference=photographs, every=1000)
    """

    measures = ("mean", "std")

    def __init__(
        self,
        scorer: Scorer,
        *,
        every: int = 500,
        sample: Sample | None = None,
        images: str | None = None,
        reference: Any = None,
        n: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        where: str | None = None,
        name: str | None = None,
    ) -> None:
        check_is_scorer(scorer)
        if (sample is None) == (images is None):
            raise ValueError("give either sample= (a function) or images= (the name the loop hands images over under)")
        truths = reference if images is None else None
        check_reference(
            scorer, reference, "the name of the ground truth" if images else "the ground truths of the samples"
        )
        if reference is not None and isinstance(reference, str) != (images is not None):
            raise ValueError(
                "reference= is a name beside images=, as the loop hands both over, and the ground truths themselves "
                f"beside sample=, got {type(reference).__name__}"
            )
        n = 256 if n is None and truths is None else n
        options: dict[str, Any] = {"n": n, "batch_size": batch_size, "seed": seed, "value_range": scorer.value_range}
        super().__init__(sample, name or scorer.name, every=every, optional=True, truths=truths, **options)
        self.scorer, self.images, self.reference = scorer, images, reference if images is not None else None
        self.where = check_where(where)
        self._instrument = ScoreInstrument(scorer)
        if where is not None:
            self._instrument.check_portable()
        self.last: dict[str, float] = {}
        self._scores: Tensor | None = None  # of the last samples, which always have the same noise

    def higher_is_better(self, key: str) -> bool | None:
        return self.scorer.higher_is_better if key in ("mean", "change") else None

    @cached_property
    def spec(self) -> str:
        """Which measure `.last` is of."""
        return scorer_spec(self.scorer, self.known_truths)

    def draw(self, ctx: Context) -> Iterator[Block]:
        """This process's samples, or the images that the loop has handed over."""
        for start, images, beside in self.pairs(ctx):
            yield {"images": images, "position": torch.arange(start, start + len(images), device="cpu"), **beside}

    def instrument(self) -> ScoreInstrument:
        """The scorer."""
        return self._instrument

    def land(self, ctx: Context, found: Found) -> None:
        scores = found["scores"]  # in one order for any number of processes
        finite = self.finite(scores, found.get("refusal", ""), "score")
        if finite.numel() < scores.numel():
            lost = scores.numel() - finite.numel()
            ctx.writer.scalar(make_tag("eval", self.name, "nonfinite"), lost, ctx.step)
        std = float(finite.std(unbiased=False))
        self.last = {"step": ctx.step, "std": std, "n": finite.numel()}
        meaning = meaning_of(self.scorer, self.spec, "mean score")
        self.last |= self.write_mean(ctx, self.name, "mean", finite, meaning)
        ctx.writer.scalar(make_tag("eval", self.name, "std"), std, ctx.step)
        ctx.writer.histogram(make_tag("eval", self.name, "histogram"), finite.float(), ctx.step)
        if self.sample is None:
            return
        if self._scores is not None and len(self._scores) != len(scores):
            warn(
                f"{self.state_key} has {plural(len(scores), 'image')} now and had {len(self._scores)} before: the "
                "change since the last measurement is left out this once"
            )
        elif self._scores is not None:
            change = scores - self._scores
            change = change[torch.isfinite(change)]
            if change.numel():
                what = "mean change of an image's score since the last measurement"
                meaning = meaning_of(self.scorer, self.spec, what, change=True)
                self.last |= self.write_mean(ctx, f"{self.name}_change", "change", change, meaning)
        self._scores = scores

    def state_dict(self) -> dict[str, Any]:
        late = self.late()
        return {"last": dict(self.last), "scores": self._scores, **late}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last, self._scores = dict(state["last"]), state.get("scores")
        self.load_late(state)
