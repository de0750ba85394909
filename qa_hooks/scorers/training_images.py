"""The images that a scorer's network is trained on, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.progress import Progress
from qa_hooks.images import Range, RangeGuard
from qa_hooks.sources.batches import Source, count_images, image_batches, is_shared


def training_batches(
    name: str,
    source: Source,
    value_range: Range,
    *,
    limit: int,
    batch_size: int,
    failures: dict[int, str],
    generated: bool = False,
    progress: bool = True,
) -> Iterator[tuple[list[int], Tensor]]:
    """Positions and images of a source, at most about `limit` of them, taken evenly where that can be.

    Args:
        name: for messages and for the bar.
        source: anything that `image_batches` takes.
        value_range: what the numbers of floating images mean.
        limit: it ends with the batch that reaches it.
        batch_size: images at a time.
        failures: collects `{position: message}` of files that cannot be read.
        generated: a model made the images, so they may overshoot the range.
        progress: show a bar when stderr is a terminal.

    Raises:
        ValueError: values that are not finite, or real images outside the range.
    """
    count, guard, read = count_images(source) if is_shared(source) else None, RangeGuard(value_range), 0
    indices = None
    if count and count > limit:
        indices = torch.linspace(0, count - 1, limit, device="cpu", dtype=torch.float32).long().tolist()
    total = count if indices is None else limit
    with isolated(), Progress(f"reading {name}", total, shown=progress) as bar:
        for at, images in image_batches(source, batch_size=batch_size, indices=indices, failures=failures):
            if images.is_floating_point() and not bool(torch.isfinite(images).all()):
                raise ValueError(f"{name}: some values are not finite (images {at[0]} to {at[-1]})")
            guard(**{"predictions" if generated else "data": {name: images}})
            yield at, images
            bar.update(len(at))
            read += len(at)
            if read >= limit:
                break
