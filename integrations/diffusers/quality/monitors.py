"""What monitors of the dial share, and its strip: one seed over the settings.

sample = PipelineSampler(pipe, prompts, num_inference_steps=25)
hooks = Hooks([
    QualityStrip(adapter, sample, every=500),
    QualityCurve(adapter, sample, [conditioned, held_out], real="photos", extractor="inception", every=2000),
    ScoreMonitor(held_out, sample=adapter.at(+1.5, sample), name="held-out, turned up"),
], log_dir="runs/dial")
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.reach import modules_of
from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import picture_folder
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.images import Range, save_image, to_uint8
from qa_hooks.integrations.diffusers.quality.adapter import QualityAdapter
from qa_hooks.integrations.diffusers.quality.pictures import draw_strip
from qa_hooks.sources.samples import Sample, SampleSet, sample_blocks
from qa_hooks.writers import make_tag


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
