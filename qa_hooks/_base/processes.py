"""What several processes need: who we are, and collectives that give every world size the same numbers.

All of it works without a process group, where it costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def is_distributed() -> bool:
    """True when a process group of more than one process is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of processes; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def _collective_device() -> torch.device:
    backends = str(dist.get_backend())
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in backends else torch.device("cpu")


def all_reduce_sum(values: Tensor) -> Tensor:
    """The sum over all processes, on the device that `values` came from; `values` itself is not changed."""
    if not is_distributed():
        return values
    total = values.detach().to(_collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def global_sum(values: Tensor) -> Tensor:
    """The sum over all processes with a gradient that is right under DDP's averaging of gradients.

    `all_reduce(s) + W (s - s.detach())`: DDP divides by the world size W, so each rank's part is counted W times.
    """
    if not is_distributed():
        return values
    return all_reduce_sum(values) + world_size() * (values - values.detach())


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate `(n_rank, ...)` of all ranks in rank order, on every rank; the numbers of rows may differ.

    A rank without rows need not know the shape of the others' rows: `(0, 0)` goes with `(n, k)`.

    Raises:
        ValueError: rows of several shapes, on every rank.
    """
    if not is_distributed():
        return rows
    device = _collective_device()
    shapes = torch.zeros(world_size(), rows.ndim, dtype=torch.int64, device=device)
    shapes[rank()] = torch.tensor(rows.shape, dtype=torch.int64, device=device)
    dist.all_reduce(shapes)
    counts, known = shapes[:, 0].tolist(), {tuple(shape[1:]) for shape in shapes.tolist() if shape[0]}
    if len(known) > 1:
        raise ValueError(f"rows of all processes must have one shape, got {sorted(known)}")
    shape = known.pop() if known else rows.shape[1:]
    padded = torch.zeros((max(counts), *shape), dtype=rows.dtype, device=device)
    if len(rows):
        padded[: len(rows)] = rows.detach().to(device)
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]).to(rows.device)


def gather_equal(values: Tensor) -> list[Tensor]:
    """`values` of all ranks in rank order, on every rank, with one collective; the shapes must be equal."""
    if not is_distributed():
        return [values]
    own = values.detach().to(_collective_device()).contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(parts, own)
    return [part.to(values.device) for part in parts]


def shared(value: Value, source: int = 0) -> Value:
    """Broadcast a small value (numbers, texts, lists and dictionaries of them) from one process to all.

    Example:
        >>> shared({"best": 3})
        {'best': 3}
    """
    if not is_distributed():
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, source, device=_collective_device())
    received: Value = box[0]
    return received


def first_error(error: BaseException | None) -> str | None:
    """What the first failing rank has to say, on all ranks; None when every rank is well.

    One all-reduce when all is well, so that it can stand before every collective part of a monitor.
    """
    message = f"{type(error).__name__}: {error}" if error is not None else None
    if not is_distributed():
        return message
    failed = torch.zeros(world_size(), dtype=torch.int64, device=_collective_device())
    failed[rank()] = error is not None
    dist.all_reduce(failed)
    if not failed.any():
        return None
    source = int(failed.nonzero()[0])
    return f"{shared(message, source)} (on rank {source})"


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block that may fail on some ranks: every rank then raises at its end, so that no rank waits for another.

    Raises:
        Exception: what the part raised on this rank.
        RuntimeError: it failed on another; the message is that rank's.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    message = first_error(error)
    if error is not None:
        raise error
    if message is not None:
        raise RuntimeError(message)


def any_rank(flag: bool) -> bool:
    """True on all ranks when it is true on one; one small all-reduce."""
    own = torch.full((), float(flag), dtype=torch.float32, device="cpu")
    return bool(all_reduce_sum(own) > 0)


def broadcast_tensors(tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Rank 0's tensors on every rank, on the CPU; the other ranks may pass None.

    Example:
        >>> broadcast_tensors({"mean": torch.zeros(1)})
        {'mean': tensor([0.])}
    """
    if not is_distributed():
        return dict(tensors or {})
    device = _collective_device()
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    result = {}
    for name, (kind, shape) in shared({name: (tensor.dtype, tensor.shape) for name, tensor in own.items()}).items():
        empty = torch.empty(shape, dtype=kind, device=device)
        tensor = own[name].to(device) if rank() == 0 else empty
        dist.broadcast(tensor, 0)
        result[name] = tensor.cpu()
    return result
