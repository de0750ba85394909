"""A critic penalty for a trainer whose loop cannot be edited: added to the gradients just before the critic's step.

handle = attach_penalty(trainer.opt_D, trainer.D, SSIMPenalty(value_range=(-1, 1)),
                        batch=lambda: (trainer.real, trainer.fake))
trainer.train()
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from qa_hooks._base.checks import check_call, warn
from qa_hooks._base.optimizers import check_no_closure, outside_graphs, skips_step, unwrapped_optimizer
from qa_hooks._base.processes import all_reduce_sum, any_rank, together, world_size
from qa_hooks._base.reach import modules_of
from qa_hooks.functional.input_gradients import Critic
from qa_hooks.penalties.penalty import CriticPenalty
from qa_hooks.penalties.seen_batch import SeenBatch

Batch = Callable[[], tuple[Tensor, Tensor]]


class AttachedPenalty:
    """What `attach_penalty` returns: `detach()` ends it, and so does leaving a `with` block.

    Attributes:
        penalty: the penalty; give it to `Hooks(track=...)` for its terms and its state.
        left_out: how many penalties were not finite and were left out.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, critic: Critic, penalty: CriticPenalty, batch: Batch) -> None:
        self.critic, self.penalty, self.batch = critic, penalty, batch
        self.left_out = 0
        self._handle: Any = optimizer.register_step_pre_hook(outside_graphs(self._before_step))

    def detach(self) -> None:
        """Take the hook off the optimizer; again is harmless."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if isinstance(self.batch, SeenBatch):
            self.batch.detach()

    def __enter__(self) -> AttachedPenalty:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self.penalty.is_off():
            return
        check_no_closure(args, kwargs, "a penalty cannot be attached to")
        if skips_step(optimizer):
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        if not parameters:
            raise RuntimeError(
                "no parameter of this optimizer requires a gradient when it steps: the trainer switches requires_grad "
                "off before the step, as StyleGAN does (there, use qa_hooks.integrations.stylegan.QALoss)"
            )
        with together():
            own = self._own_gradients(parameters)
        gradients = self._agreed(own, parameters)
        if gradients is None:
            return
        # A fused optimizer divides the gradients itself, in its step; all others find them unscaled by now.
        scale = getattr(optimizer, "grad_scale", None)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is None:
                    continue
                if scale is not None:
                    gradient = gradient * scale.to(gradient.device)
                # A copy: parameters that enter as a sum have one gradient tensor between them.
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)

    def _own_gradients(self, parameters: list[Tensor]) -> list[Tensor | None] | None:
        """This rank's gradients of the penalty; None when it has none. No collectives."""
        real, fake = self._images()
        with torch.enable_grad(), contextlib.ExitStack() as stack:
            # DDP's own reduction is left out: it waits for parameters that a penalty alone does not reach.
            for part in {part for module in modules_of(self.critic) for part in module.modules()}:
                if isinstance(part, DistributedDataParallel):
                    stack.enter_context(part.no_sync())
            value = self.penalty(self.critic, real, fake)
            if not value.requires_grad:  # a call that `interval` or a warm-up leaves out
                return None
            gradients: list[Tensor | None] = list(torch.autograd.grad(value, parameters, allow_unused=True))
        if all(gradient is None for gradient in gradients):
            raise RuntimeError("the penalty reaches no parameter of this optimizer: is it the critic's?")
        return gradients

    def _agreed(self, gradients: list[Tensor | None] | None, parameters: list[Tensor]) -> list[Tensor | None] | None:
        """Averaged over the ranks as DDP would; None when one of them has none, or they are not finite.

        Ranks may reach different parameters: what one of them does not reach has gradient 0 there.
        """
        if any_rank(gradients is None) or gradients is None:
            return None
        if world_size() > 1:
            own = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
            total = all_reduce_sum(torch.cat([gradient.flatten() for gradient in own])) / world_size()
            own_part = [float(gradient is not None) for gradient in gradients]
            reaching = all_reduce_sum(torch.tensor(own_part, dtype=torch.float32, device="cpu")).tolist()
            pieces = total.split([parameter.numel() for parameter in parameters])
            gradients = [
                piece.view_as(parameter) if count else None
                for piece, parameter, count in zip(pieces, parameters, reaching, strict=True)
            ]
        reached = [gradient for gradient in gradients if gradient is not None]
        finite = torch.stack([torch.isfinite(gradient).all().to(reached[0].device) for gradient in reached]).all()
        if bool(finite):
            return gradients
        self.left_out += 1
        if self.left_out == 1:
            warn(
                f"the gradient of {type(self.penalty).__name__} is not finite; it is left out of this step (said once; "
                ".left_out counts)"
            )
        return None

    def _images(self) -> tuple[Tensor, Tensor]:
        images = self.batch()
        if not isinstance(images, (tuple, list)) or len(images) != 2:
            raise TypeError(f"batch() must give (real, fake), got {type(images).__name__}")
        return images[0], images[1]


def attach_penalty(optimizer: Any, critic: Critic, penalty: CriticPenalty, *, batch: Batch) -> AttachedPenalty:
    """Add a penalty to the critic's gradients before each of its optimizer's steps; no edit of the loop.

    Just before a step the penalty makes critic passes of its own and adds its gradient to `.grad`. So:

    - it costs a forward and a backward pass more than the same penalty inside the loss;
    - it comes after gradient clipping, and is not clipped itself;
    - a GradScaler has unscaled the gradients by then (a fused optimizer does so in its step: the penalty is scaled with
      them), and no longer looks at them: a penalty that is not finite is left out, on all ranks, with one warning;
    - under DDP its gradient is averaged over the ranks, whichever parameters it reaches;
    - where a trainer switches `requires_grad` off before it steps (StyleGAN) it cannot work, and says so.

    With weight 0 nothing happens at all, and the run is bit for bit the run without it.

    Args:
        optimizer: the critic's; wrappers such as `AcceleratedOptimizer` are unwrapped.
        critic: as for `CriticPenalty`.
        penalty: any critic penalty.
        batch: gives the (real, fake) images of the current step, `(N, C, H, W)` each; for a trainer that keeps neither,
            `SeenBatch(optimizer, critic, generator)`.

    Raises:
        TypeError: no optimizer, no penalty, no callable.

    Example:
        >>> from qa_hooks.penalties import DriftPenalty
        >>> critic = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 1, bias=False))
        >>> optimizer = torch.optim.SGD(critic.parameters(), lr=0.1)
        >>> images = torch.ones(2, 1, 2, 2)
        >>> with attach_penalty(optimizer, critic, DriftPenalty(value_range=(0, 1), weight=1.0),
        ...                     batch=lambda: (images, images)):
        ...     optimizer.step()
        >>> critic[1].weight.grad is not None
        True
    """
    optimizer = unwrapped_optimizer(optimizer, "attach_penalty")
    if not isinstance(penalty, CriticPenalty):
        raise TypeError(f"penalty must be a CriticPenalty, got {type(penalty).__name__}")
    check_call("batch", batch, "batch() -> (real, fake)")
    return AttachedPenalty(optimizer, critic, penalty, batch)
