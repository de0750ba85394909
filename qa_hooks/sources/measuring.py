"""One number or vector for every image of a source: streamed, and shared out over the processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.isolation import isolated
from qa_hooks._base.processes import gather_rows, rank, together, world_size
from qa_hooks._base.progress import Progress
from qa_hooks.sources.batches import Source, count_images, first_of_each, has_positions, image_batches, is_shared


class SourceRows(NamedTuple):
    """One row for each image of a source that could be read, the same on every process.

    `rows` are `(n, ...)` and `parts` and `positions` `(n,)`: the part is 0 for a source that all processes share, and
    the rank where each brought its own; the position is the one in the source. They are in the order of the positions
    where these mean the same on every process, and otherwise part by part.
    """

    rows: Tensor
    parts: Tensor
    positions: Tensor


def measure_source(
    source: Source,
    measure: Callable[[Tensor], Tensor],
    *,
    what: str,
    nothing: Callable[[], Tensor],
    batch_size: int,
    progress: bool,
    failures: dict[int, str] | None,
) -> SourceRows:
    """What `measure` gives for the images of a source.

    The work on a tensor, a folder or a dataset is divided among the processes; of a loader each process works through
    its own. With torch's `DistributedSampler` images that pad the last batch count once. The caller's random state,
    gradient mode and networks are left as they are.

    Args:
        source: anything that `image_batches` takes.
        measure: images `(n, C, H, W)`, as `image_batches` gives them -> rows `(n, ...)`.
        what: for the bar (rank 0, terminals only).
        nothing: gives `(0, ...)`, the rows of a process without images.
        batch_size: images at a time.
        progress: show the bar.
        failures: collects `{position: message}` of files that cannot be read (of this process's share); without it
            the first one raises.

    Raises:
        ValueError: nothing in the source, broken files.
        RuntimeError: another process failed; the message is its own.
    """
    shared, own, at = is_shared(source), list[Tensor](), list[int]()
    with together(), isolated():
        total, indices = count_images(source), None
        if shared and world_size() > 1 and total is not None:
            indices = range(rank(), total, world_size())
            total = len(indices)
        with Progress(what, total, shown=progress) as bar:
            for chosen, images in image_batches(source, batch_size=batch_size, indices=indices, failures=failures):
                own.append(measure(images).cpu())
                at += chosen
                bar.update(len(chosen))
        rows = torch.cat(own) if own else nothing().cpu()
    positions = torch.tensor(at, dtype=torch.int64, device="cpu")
    parts = torch.full_like(positions, 0 if has_positions(source) else rank())
    found = SourceRows(*(gather_rows(part) for part in (rows, parts, positions)))
    if not len(found.positions):
        raise ValueError("there is no readable image in the source")
    if has_positions(source):
        order = first_of_each(found.positions)
        found = SourceRows(*(part[order] for part in found))
    return found
