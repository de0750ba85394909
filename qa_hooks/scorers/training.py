"""How a small network of a scorer is trained: apart from the user's run, with a bar, and not past a broken loss."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks._base.processes import rank

LOOK = 50  # steps between two looks at the loss, each of which synchronises a GPU


@contextlib.contextmanager
def training_room(device: torch.device, seed: int) -> Iterator[None]:
    """Gradients on, autocast off and random numbers of our own, whatever the caller's state; which is put back."""
    cuda = device.type == "cuda"
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        torch.random.fork_rng([device] if cuda else []),
        torch.device("cpu") if elsewhere else contextlib.nullcontext(),
    ):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the devices that are not put back
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A network this small gains nothing from more threads, loses much where cores are busy, and has the same bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def minimise(
    batch_loss: Callable[[int], Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    *,
    steps: int,
    what: str,
    progress: bool,
) -> None:
    """Make so many optimizer steps on `batch_loss(step)`, with the network in train mode, and in eval mode afterwards.

    Raises:
        ValueError: the loss is not finite any more.
    """
    from tqdm import trange

    lr = optimizer.defaults["lr"]
    network.train()
    bar = trange(steps, desc=what, unit="step", disable=None if progress and rank() == 0 else True)
    for step in bar:
        loss = batch_loss(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % LOOK == LOOK - 1 or step == steps - 1:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise ValueError(f"the loss is {value} after {step + 1} steps; a smaller lr than {lr:g}?")
            bar.set_postfix(loss=f"{value:.3f}")
    network.eval()
