"""The real and fake images of a critic's step, for trainers that keep neither: seen where the networks are called.

handle = attach_penalty(trainer.opt_D, trainer.D, penalty, batch=SeenBatch(trainer.opt_D, trainer.D, trainer.G))
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

from qa_hooks._base.optimizers import outside_graphs, unwrapped_optimizer
from qa_hooks._base.protection import version_of

KEPT = 16  # batches: micro-batches, interpolated images, and what monitors make in between


class SeenBatch:
    """What a critic was shown since its last step: `batch()` gives (real, fake), as `attach_penalty` wants them.

    The fake images are the critic's input that the generator has made (the same memory, so `detach()` may stand
    between), the real ones are its first input that the generator has not made. The networks keep nothing but what the
    step itself made, and calls are not changed.

    Args:
        optimizer: the critic's; each of its steps begins a new batch.
        critic: the module that the trainer calls; its first argument are images `(N, C, H, W)`.
        generator: the module whose output, or the first part of it that is images, is shown to the critic.

    Raises:
        TypeError: not an optimizer, or not modules.
        RuntimeError: when called: the critic has not been shown real and fake images since its last step, or what it is
            shown is not the generator's own output (augmented, resized, from a buffer). Then hand them over yourself:
            `batch=lambda: (real, fake)`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
        >>> generator = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 2, 2)))
        >>> batch = SeenBatch(torch.optim.SGD(critic.parameters(), lr=0.1), critic, generator)
        >>> real, fake = torch.ones(8, 1, 2, 2), generator(torch.zeros(8, 3))
        >>> _ = critic(real), critic(fake.detach())
        >>> torch.equal(batch()[0], real), torch.equal(batch()[1], fake)
        (True, True)
    """

    def __init__(self, optimizer: Any, critic: nn.Module, generator: nn.Module) -> None:
        for name, module in (("critic", critic), ("generator", generator)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} must be the module that the trainer calls, got {type(module).__name__}")
        optimizer = unwrapped_optimizer(optimizer, "SeenBatch")
        self._made: list[Tensor] = []  # the last ones
        self._shown: list[Tensor] = []  # the first ones
        self._versions: dict[int, int] = {}
        forget = weakref.WeakMethod(self.forget)
        self._handles = [
            critic.register_forward_pre_hook(_Note(self, made=False)),
            generator.register_forward_hook(_Note(self, made=True)),
            optimizer.register_step_post_hook(outside_graphs(lambda *_: (forget() or _nothing)())),
        ]

    def __call__(self) -> tuple[Tensor, Tensor]:
        made = {images.untyped_storage().data_ptr() for images in self._made}
        fakes = [images for images in self._shown if images.untyped_storage().data_ptr() in made]
        reals = [images for images in self._shown if images.untyped_storage().data_ptr() not in made]
        if not (fakes and reals):
            raise RuntimeError(
                f"the critic was shown {len(self._shown)} batches since its last step, of which the generator made "
                f"{len(fakes)}: real and fake images cannot be told apart (are they augmented or resized on the way?); "
                "hand them over yourself: batch=lambda: (real, fake)"
            )
        for name, images in (("real", reals[0]), ("fake", fakes[-1])):
            if version_of(images) != self._versions[id(images)]:
                raise RuntimeError(
                    f"the {name} images were changed in place after the critic had seen them (by an in-place first "
                    "layer, or by the loop): hand them over yourself, batch=lambda: (real, fake)"
                )
        return reals[0], fakes[-1]

    def note(self, images: Tensor, *, made: bool) -> None:
        """Remember images that the generator has made, or that the critic is shown; without their graph."""
        if made:
            self._made = [*self._made[1 - KEPT :], images.detach()]
        elif len(self._shown) < KEPT:
            self._shown.append(images.detach())
            self._versions[id(self._shown[-1])] = version_of(images)

    def forget(self) -> None:
        """The step is over."""
        self._made, self._shown, self._versions = [], [], {}

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self.forget()


class _Note:
    """A forward (pre-)hook that notes images; copies and pickles of the module lose it."""

    def __init__(self, batch: SeenBatch, *, made: bool) -> None:
        self._batch, self._made = weakref.ref(batch), made

    def __call__(self, _module: nn.Module, given: Any, output: Any = None) -> None:
        batch, value = self._batch(), given if output is None else output
        parts = value if isinstance(value, (tuple, list)) else (value,)
        images = next((part for part in parts if isinstance(part, Tensor) and part.ndim == 4), None)
        if batch is not None and images is not None:
            batch.note(images, made=self._made)

    def __reduce__(self) -> Any:
        return _silent, ()


def _silent() -> Any:
    return _nothing


def _nothing(*_: Any) -> None:
    return None
