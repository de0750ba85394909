"""Adapter gradients over several processes, for networks that are not called through DDP.

    accelerator.backward(loss)                                             # or loss.backward()
    reduce_gradients(parameters, accelerator=accelerator)                  # before clipping
    accelerator.clip_grad_norm_(parameters, 1.0)
    optimizer.step()

A pipeline holds the raw denoiser, so nobody averages its gradients, and ranks drift apart without a word. Here they are
replaced by their mean over ranks, g = sum_r g_r / W, which is the gradient of one process with the joint batch when the
loss is a mean and the batches are of one size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from qa_hooks._base.checks import warn
from qa_hooks._base.hashing import fingerprint
from qa_hooks._base.processes import all_reduce_sum, gather_rows, is_distributed, world_size
from qa_hooks.integrations.training_checks import check_plain_training

_TOLD: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameters of which it was said
AVERAGED = "gradients are averaged in the backward pass: leave reduce_gradients and sync_adapter out"
BUCKET = 2**24  # elements of a collective


def reduce_gradients(parameters: Iterable[Tensor], *, accelerator: Any = None) -> None:
    """Replace gradients by their mean over ranks; to be called by all ranks, after backward and before clipping.

    A gradient that is None on some ranks counts as zero there; one that is None on all stays None, and is told once:
    such a parameter does not learn. Sums are made in float32. Under a GradScaler too it comes first, before unscaling:
    an overflow on one rank then is one on all.

    Args:
        parameters: the same on all ranks, in the same order; those that need no gradient are skipped.
        accelerator: an `accelerate.Accelerator`; the micro-steps of `accumulate` are then skipped.

    Raises:
        ValueError: no parameter has a gradient on any rank, or FSDP or DeepSpeed is in use.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> weight.square().sum().backward()
        >>> reduce_gradients([weight])
        >>> weight.grad
        tensor([2., 2.])
    """
    check_plain_training(accelerator)
    trained = _trained(parameters)
    if accelerator is not None and not accelerator.sync_gradients:
        return
    present = torch.tensor([float(p.grad is not None) for p in trained], device="cpu", dtype=torch.float32)
    counts = all_reduce_sum(present).tolist()
    used = [p for p, ranks in zip(trained, counts, strict=True) if ranks]
    if not used:
        raise ValueError(
            f"none of {len(trained)} trainable parameters has a gradient on any rank: call this after backward, with "
            "the parameters of the network that made the images"
        )
    _tell_unused(trained, used)
    if not is_distributed():
        return
    for bucket in _buckets(used):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).float().flatten() for p in bucket])
        mean = all_reduce_sum(flat) / world_size()
        for p, part in zip(bucket, mean.split([p.numel() for p in bucket]), strict=True):
            reduced = part.view_as(p).to(p.dtype)
            if p.grad is None:
                p.grad = reduced
            else:
                p.grad.copy_(reduced)


def _tell_unused(trained: list[Tensor], used: list[Tensor]) -> None:
    """Say once of a set of parameters that some of them have no gradient on any rank."""
    present = {id(p) for p in used}
    unused = [p for p in trained if id(p) not in present]
    if unused and unused[0] not in _TOLD:
        _TOLD.update(dict.fromkeys(unused, True))
        warn(
            f"{len(unused)} of {len(trained)} trainable parameters have no gradient on any rank, the first is number "
            f"{next(i for i, p in enumerate(trained) if p is unused[0])} of shape {tuple(unused[0].shape)}: they stay "
            "what they are. What the loss depends on does not use them, or not with a gradient: the text encoder and a "
            "second network have none through grad_last_steps' prefix, and layers have none whose weights are read "
            "past their modules"
        )


@torch.no_grad()
def check_same_weights(parameters: Iterable[Tensor]) -> None:
    """Raise on all ranks when their weights differ, by as little as a bit.

    Adapters begin with random numbers: seed all ranks alike before injecting one, or load it from a file.

    Raises:
        ValueError: on every rank, with the first parameter that differs.
    """
    if not is_distributed():
        return
    listed = list(parameters)
    for p in listed:
        _refuse_shards(p, "weights are parts of one network: there is nothing to compare")
    counts = gather_rows(torch.tensor([len(listed)], device="cpu", dtype=torch.int64)).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"the ranks have {counts} adapter parameters: build the same adapter on all of them")
    digests = torch.tensor([int(fingerprint(p), 16) >> 1 for p in listed], dtype=torch.int64, device="cpu")
    table = gather_rows(digests[None])
    differ = (table != table[0]).any(dim=0).nonzero().flatten().tolist()
    if differ:
        shape = tuple(listed[differ[0]].shape)
        raise ValueError(
            f"{len(differ)} of {len(listed)} adapter parameters differ between ranks, the first is number {differ[0]} "
            f"of shape {shape}: seed all ranks alike before injecting the adapter, or load one checkpoint on all; and "
            "reduce_gradients(parameters) before each optimizer step"
        )


def sync_adapter(optimizer: Any, *, accelerator: Any = None, max_norm: float | None = None) -> Any:
    """Let an optimizer reduce the gradients itself, just before each of its steps; weights are compared at the first.

    It comes after any clipping of yours, which would have clipped each rank's own gradient: leave that out and give
    `max_norm`, or call `reduce_gradients` before clipping instead. With a GradScaler (float16) only the explicit call
    works, since a rank whose gradients overflow skips the step and would leave the others waiting.

    Args:
        optimizer: any `torch.optim.Optimizer`, or Accelerate's wrapper; the same on all ranks.
        accelerator: checked for FSDP, DeepSpeed and a GradScaler.
        max_norm: clip the reduced gradient of all parameters to this norm.

    Returns:
        A handle; `.remove()` ends it.

    Raises:
        TypeError: not an optimizer.
        ValueError: a GradScaler, FSDP or DeepSpeed. At the first step, on all ranks: different weights.
    """
    check_plain_training(accelerator)
    if getattr(accelerator, "scaler", None) is not None or getattr(optimizer, "scaler", None) is not None:
        raise ValueError("with a GradScaler call reduce_gradients(parameters, accelerator=...) after backward instead")
    plain = getattr(optimizer, "optimizer", optimizer)  # AcceleratedOptimizer has no hooks of its own
    if not isinstance(plain, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch optimizer, got {type(optimizer).__name__}")
    for p in (p for group in plain.param_groups for p in group["params"]):
        _refuse_shards(p, AVERAGED)
    compared = False

    def before_step(stepping: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        nonlocal compared
        parameters = [p for group in stepping.param_groups for p in group["params"]]
        if not compared:
            check_same_weights(_trained(parameters))
            compared = True
        reduce_gradients(parameters)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)

    return plain.register_step_pre_hook(before_step)


def _trained(parameters: Iterable[Tensor]) -> list[Tensor]:
    if isinstance(parameters, nn.Module):
        raise TypeError("give the parameters, not the module: module.parameters()")
    trained = [p for p in parameters if p.requires_grad]
    for p in trained:
        _refuse_shards(p, AVERAGED)
    if not trained:
        raise ValueError("no parameter requires a gradient: give the adapter's parameters")
    return trained


def _refuse_shards(parameter: Tensor, instead: str) -> None:
    if any(kind.__name__ == "DTensor" for kind in type(parameter).__mro__):
        raise ValueError(f"the parameters are shards of fully_shard (DTensor), whose {instead}")


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one device, in their order, of about `BUCKET` elements together."""
    bucket: list[Tensor] = []
    for p in parameters:
        if bucket and (p.device != bucket[0].device or sum(q.numel() for q in bucket) + p.numel() > BUCKET):
            yield bucket
            bucket = []
        bucket.append(p)
    if bucket:
        yield bucket
