"""A grid of samples in TensorBoard, from the same noise each time."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from qa_hooks._base.checks import check_count
from qa_hooks._base.files import check_writable
from qa_hooks._base.isolation import modules_of
from qa_hooks.callbacks.callback import Context, Monitor
from qa_hooks.images import Range, RangeGuard, check_range, make_grid, save_image, to_uint8
from qa_hooks.sources.samples import Sample, check_sample, sample_block
from qa_hooks.writers import make_tag


class SampleGrid(Monitor):
    """A grid of samples from fixed noise, so that one sees the same images grow.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`; draw the noise from the (CPU) generator, the same each time. The
            networks that it calls are in eval mode meanwhile, and put back.
        every: steps between two grids.
        seed: of the generator.
        n: images on the grid.
        value_range: what the numbers of the samples mean; samples are clamped to it.
        name: in the tag `qa_images/{name}/grid`.
        folder: also write `{step:08d}.png` there.
        scale: enlarge small images that many times; by default up to about 64 pixels a side.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Unflatten(1, (1, 8, 8)), torch.nn.Sigmoid())
        >>> grid = SampleGrid(lambda n, generator: net(torch.randn(n, 8, generator=generator)), every=100)
    """

    def __init__(
        self,
        sample: Sample,
        *,
        every: int = 500,
        seed: int = 0,
        n: int = 64,
        value_range: Range = (0.0, 1.0),
        name: str = "samples",
        folder: str | Path | None = None,
        scale: int | None = None,
    ) -> None:
        check_sample(sample)
        super().__init__(every=every)
        self.sample, self.seed, self.n, self.name, self.scale = sample, seed, check_count("n", n), name, scale
        self.value_range = check_range(value_range)
        self._guard = RangeGuard(self.value_range)
        self.folder = Path(folder) if folder is not None else None
        if self.folder is not None:
            check_writable(self.folder)

    @property
    def state_key(self) -> str:
        return f"SampleGrid({self.name})"

    def networks(self) -> list[nn.Module]:
        return modules_of(self.sample)

    def local(self, ctx: Context) -> Tensor | None:
        if ctx.rank != 0:
            return None
        samples = sample_block(self.sample, self.n, self.seed, 0)
        self._guard(predictions={"samples": samples})
        images = to_uint8(samples, self.value_range).cpu()
        return make_grid(images, scale=self.scale or max(1, 64 // images.shape[-1]))

    def reduce(self, ctx: Context, part: Tensor | None) -> None:
        if part is None:
            return
        ctx.writer.image(make_tag("images", self.name, "grid"), part, ctx.step)
        if self.folder is not None:
            save_image(part, self.folder / f"{ctx.step:08d}.png")
