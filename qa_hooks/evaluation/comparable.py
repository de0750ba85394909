"""May two sets of images be compared? Their sizes are taken from all of their images, not from the first one."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qa_hooks._base.processes import gather_rows
from qa_hooks.features import FeatureExtractor

Shape = Sequence[int]  # (C, H, W)


@contextlib.contextmanager
def shapes_seen(extractor: FeatureExtractor) -> Iterator[list[Tensor]]:
    """A block whose list holds one tensor at the end: the shapes of the images that the extractor was given.

    Rows are channels, height, width and how many images, `(k, 4)` int64, of all processes together.

    Example:
        >>> from qa_hooks.features import create_extractor
        >>> extractor = create_extractor("random", width=4)
        >>> with shapes_seen(extractor) as shapes:
        ...     _ = extractor(torch.rand(5, 3, 8, 8)), extractor(torch.rand(2, 1, 8, 8))
        >>> shapes[0].tolist()
        [[1, 8, 8, 2], [3, 8, 8, 5]]
    """
    found: list[Tensor] = []
    seen: Counter[tuple[int, ...]] = Counter()
    _ = extractor.dim  # which may run the network once

    def look(_: Any, images: tuple[Tensor, ...]) -> None:
        seen[tuple(images[0].shape[1:])] += len(images[0])

    handle = extractor.register_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()
    rows = [[*shape, count] for shape, count in seen.items()]
    own = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, 4)
    everything = gather_rows(own)
    shapes, places = everything[:, :3].unique(dim=0, return_inverse=True)
    counts = torch.zeros(len(shapes), dtype=torch.int64, device="cpu").index_add(0, places, everything[:, 3])
    found.append(torch.cat([shapes, counts[:, None]], 1))


def check_comparable(extractor: FeatureExtractor, real: Shape | Collection[Shape], generated: Shape) -> None:
    """Refuse images of other sizes, whose features would differ for that reason alone.

    Channels are no reason: an extractor gets grey images repeated, or colours converted, whichever it takes.

    Args:
        extractor: one that resizes takes all sizes.
        real: the shape of the real images, (C, H, W), or all the shapes that they have.
        generated: the shape of the generated images.

    Raises:
        ValueError: some real image has another size.
    """
    shapes = [real] if isinstance(next(iter(real), 0), int) else real
    sizes = {f"{height}x{width}" for _, height, width in shapes}  # type: ignore[misc]
    own = f"{generated[1]}x{generated[2]}"
    if extractor.resizes or sizes <= {own}:
        return
    listed = ", ".join(sorted(sizes)[:3]) + (f" and {len(sizes) - 3} other sizes" if len(sizes) > 3 else "")
    raise ValueError(
        f"real images are {listed} and generated ones {own} (height x width), and that is what the features of "
        f"{extractor.name} would measure: bring them to one size, or have them resized by "
        'extractor={"type": ..., "size": ...}'
    )
