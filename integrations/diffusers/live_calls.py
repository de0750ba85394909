"""The denoiser's calls while images are sampled: calls with a gradient are checkpointed, each as a whole."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.integrations.diffusers.gradient_checks import carries_gradient, cut_in_denoiser, no_gradient_at_all
from qa_hooks.integrations.diffusers.recompute import recomputed


class LiveCalls:
    """Stands in for the `forward` of denoisers; a subclass says before each call whether it has a gradient.

    Args:
        checkpoint: run the calls with a gradient again in the backward pass.
    """

    def __init__(self, checkpoint: bool) -> None:
        self.checkpoint = checkpoint
        self.running = True

    def counted(self, name: str, denoiser: nn.Module) -> Callable[..., Any]:
        """What replaces `denoiser.forward`."""
        forward = denoiser.forward
        begin, end = torch.compiler.disable(self.begin_call), torch.compiler.disable(self.end_call)
        again: Any = torch.compiler.disable(recomputed, recursive=False)

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return forward(*args, **kwargs)
            begin(denoiser, args, kwargs)
            live = torch.is_grad_enabled()
            if live and self.checkpoint:
                output = again(denoiser, forward, *args, **kwargs)
            else:
                output = forward(*args, **kwargs)
            end(name, denoiser, output, live)
            return output

        marked: Any = torch.compiler.disable(call, recursive=False)  # unet.compile() would take it into its graph
        marked._of_grad_last_steps = True
        return marked  # type: ignore[no-any-return]

    def begin_call(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the grad mode."""
        raise NotImplementedError

    def end_call(self, name: str, denoiser: nn.Module, output: Any, live: bool) -> None:
        """Look at what the call has given."""
        raise NotImplementedError


class OwnLoop(LiveCalls):
    """A denoiser called from a loop of the user's own: the calls are counted.

    Args:
        k: how many of the last calls have a gradient.
        num_calls: how many calls make one sampling.
        checkpoint: as above.
    """

    def __init__(self, k: int, num_calls: int, checkpoint: bool) -> None:
        super().__init__(checkpoint)
        if k > num_calls:
            raise ValueError(f"k={k}, but one sampling makes {num_calls} denoiser calls")
        self.k, self.num_calls = k, num_calls
        self.calls = 0
        self.before: Any = None

    def begin_call(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        index, first = self.calls % self.num_calls, self.num_calls - self.k
        latents = args[0] if args else kwargs.get(next(iter(inspect.signature(denoiser.forward).parameters), ""))
        if index == first - 1:
            self.before = latents
        elif index == first > 0 and _same(self.before, latents):
            raise ValueError(
                f"k={self.k} cuts a step in two: the last {self.k} of {self.num_calls} calls begin with the input of "
                "the call before them, so guidance is a call of its own here; k must be a multiple of the calls of a "
                "step"
            )
        self.calls += 1
        if index == first:
            torch.clear_autocast_cache()  # weights cast under no_grad are cached without their graph
        torch.set_grad_enabled(index >= first)

    def end_call(self, name: str, denoiser: nn.Module, output: Any, live: bool) -> None:
        if live and (self.calls - 1) % self.num_calls == self.num_calls - self.k:
            if cause := cut_in_denoiser(denoiser, output):
                raise RuntimeError(cause)
            if not carries_gradient(output):
                raise RuntimeError(no_gradient_at_all({"the denoiser": denoiser}, [], self.k))

    def finish(self) -> None:
        """Raise when the context ends within a sampling."""
        if self.calls == 0:
            raise ValueError(
                "the denoiser was never called inside grad_last_steps: give the denoiser that your loop calls"
            )
        if made := self.calls % self.num_calls:
            raise ValueError(
                f"{self.num_calls} denoiser calls were planned and {made} made, so the gradient is not the gradient of "
                f"the last {self.k}: give num_calls={made}"
            )


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
