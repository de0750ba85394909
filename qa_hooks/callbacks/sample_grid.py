"""A grid of samples in TensorBoard, from the same noise each time."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from qa_hooks.callbacks.callback import Context
from qa_hooks.callbacks.pictures import picture_folder
from qa_hooks.callbacks.sampling import SamplingMonitor
from qa_hooks.drawing.thumbnails import on_one_ground
from qa_hooks.images import Range, make_grid, save_image, to_uint8
from qa_hooks.sources.samples import Sample
from qa_hooks.writers import make_tag


class SampleGrid(SamplingMonitor):
    """A grid of samples from fixed noise, so that one sees the same images grow.

    Args:
        sample: `sample(n, generator) -> (n, C, H, W)`, or a list of n images of several sizes; draw the noise from the
            (CPU) generator, the same each time. The networks that it calls are in eval mode meanwhile, and put back.
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

    shared_out = False

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
        super().__init__(sample, name, every=every, n=n, batch_size=n, seed=seed, value_range=value_range)
        self.scale, self.folder = scale, picture_folder(folder)

    def local(self, ctx: Context) -> Tensor | None:
        blocks = [to_uint8(samples, self.value_range).cpu() for _, samples in self.blocks(ctx)]
        if not blocks:
            return None
        images = on_one_ground([image for block in blocks for image in block])
        return make_grid(images, scale=self.scale or max(1, 64 // images.shape[-1]))

    def reduce(self, ctx: Context, part: Tensor | None) -> None:
        if part is None:
            return
        ctx.writer.image(make_tag("images", self.name, "grid"), part, ctx.step)
        if self.folder is not None:
            save_image(part, self.folder / f"{ctx.step:08d}.png")
