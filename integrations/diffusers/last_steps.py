"""The gradient of a reward through a Diffusers pipeline that stays as it is: truncated back-propagation.

    with grad_last_steps(pipe, k=1):
        images = pipe(prompts, output_type="pt").images
    loss = -scorer(images).mean()
    loss.backward()

A sampler is x_{i+1} = s_i(x_i, f(x_i; theta)), i = 0..n-1, and the image is V(x_n). Of dR/dtheta only the part through
the last k calls of the denoiser f is kept, x_{n-k} counting as a constant: DRaFT-K (Clark et al., 2024), AlignProp
(Prabhudesai et al., 2023). Each of these calls is checkpointed as a whole (Chen et al., 2016), so that between forward
and backward only the k latents are held; a guidance batch is part of its call.

The pipeline's `__call__` runs under `no_grad`; the denoiser switches the grad mode on inside it. For that the
denoiser's and the decoder's functions and the pipeline's class are exchanged on these objects, and put back on any
exit.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed

from qa_hooks._base.checks import check_count
from qa_hooks.integrations.diffusers.decode_gradient import DecodeGradient
from qa_hooks.integrations.diffusers.gradient_checks import (
    NO_NUMPY,
    carries_gradient,
    check_latents,
    check_pipeline,
    missing_gradient,
    same_weights,
)
from qa_hooks.integrations.training_checks import check_model, check_plain_training, inside_ddp

DENOISERS = ("unet", "transformer", "transformer_2")


@contextlib.contextmanager
def grad_last_steps(
    pipe_or_denoiser: Any,
    k: int = 1,
    *,
    num_calls: int | None = None,
    checkpoint: bool = True,
    decode: str = "full",
    tiny: nn.Module | None = None,
    seed: int = 0,
    accelerator: Any = None,
) -> Iterator[None]:
    """Within it, images of the pipeline keep the gradient of the last k denoiser calls and of the decoder.

    Call the pipeline as often as you like, with `output_type="pt"` (images in [0, 1]) or "latent"; call `backward`
    inside or outside, but before the weights change. Other calls of the denoiser, between pipeline calls, are left
    alone. On several processes reduce the gradients with `qa_hooks.integrations.peft.sync`: DDP does not see them.

    k = 1 with few steps and `timestep_spacing="trailing"` is where to begin: with leading spacing the last step hardly
    changes the image, and with large k gradients grow. The pipeline clamps its images, which stops the gradient of the
    pixels that are clamped.

    Args:
        pipe_or_denoiser: a Diffusers pipeline; or the denoiser alone, for a loop of your own, with `num_calls`.
        k: calls, not steps: Heun makes 2T - 1 in T steps. 0 leaves everything as it is.
        num_calls: how many one sampling makes; by default the pipeline's number of timesteps. Needed where guidance is
            a call of its own (2T, and then k = 2 is the last step).
        checkpoint: run these calls again in the backward pass instead of holding their activations; the gradient is
            the same to the bit. The decoder is checkpointed block by block.
        decode: "full"; "crop:512": the image is the same, the gradient that of a random crop of so many pixels, decoded
            alone; "tiny": images and gradient are those of `tiny`.
        tiny: a small decoder for the same latents, such as Diffusers' `AutoencoderTiny`.
        seed: of the crops, which come from a generator of their own.
        accelerator: an `accelerate.Accelerator`, checked for what cannot work.

    Raises:
        TypeError: no pipeline or denoiser; a pipeline that always turns its images into NumPy arrays.
        ValueError: options that do not fit; k or `num_calls` other than what the pipeline does; weights, wrappers,
            latents or a safety checker with which no gradient arrives.
        RuntimeError: within another `grad_last_steps`, within `torch.inference_mode`, or where the graph is cut.

    Example:
        >>> denoiser, x = nn.Linear(2, 2), torch.ones(1, 2)
        >>> with grad_last_steps(denoiser, k=2, num_calls=4):
        ...     for _ in range(4):
        ...         x = x - 0.1 * denoiser(x)
        >>> x.sum().backward()
        >>> denoiser.weight.grad is not None
        True
    """
    if check_count("k", k, least=0) == 0:
        yield
        return
    if torch.is_inference_mode_enabled():
        raise RuntimeError("torch.inference_mode makes tensors that never take part in a graph: leave it out here")
    num_calls = None if num_calls is None else check_count("num_calls", num_calls)
    if isinstance(pipe_or_denoiser, nn.Module):
        pipe, parts = None, {"": inside_ddp(pipe_or_denoiser)}
        if num_calls is None or decode != "full":
            raise ValueError("a denoiser alone needs num_calls=, its number of calls in one sampling, and no decode=")
    else:
        pipe, parts = pipe_or_denoiser, _denoisers(pipe_or_denoiser)
    check_plain_training(accelerator)
    for part in parts.values():
        check_model(part)
        if getattr(part.forward, "_of_grad_last_steps", False):
            raise RuntimeError("grad_last_steps is already at work on this denoiser: leave that context first")

    sampling = _Sampling(pipe, k, num_calls, checkpoint)
    before = torch.is_grad_enabled()
    with contextlib.ExitStack() as exchanged:
        exchanged.callback(torch.set_grad_enabled, before)
        for name, part in parts.items():
            if pipe is not None and vars(pipe)[name] is not part:  # wrapped in DDP, which lacks the model's attributes
                exchanged.enter_context(_exchange(pipe, name, part))
            exchanged.enter_context(_exchange(part, "forward", sampling.counted(part)))
        if pipe is not None:
            check_pipeline(pipe, decode)
            decoder = getattr(pipe, "vae", None)
            if decoder is not None:
                own = DecodeGradient(decoder, decode, tiny=tiny, seed=seed, checkpoint=checkpoint)
                exchanged.enter_context(_exchange(decoder, "decode", sampling.decoded(own)))
            elif decode != "full":
                raise ValueError(f"{type(pipe).__name__} has no vae, so decode={decode!r} means nothing")
            exchanged.callback(setattr, pipe, "__class__", type(pipe))
            pipe.__class__ = sampling.watched(type(pipe))
        yield
        sampling.finish()


def _denoisers(pipe: Any) -> dict[str, nn.Module]:
    found = {name: vars(pipe).get(name) for name in DENOISERS} if hasattr(pipe, "__dict__") else {}
    parts = {name: inside_ddp(part) for name, part in found.items() if isinstance(part, nn.Module)}
    if not callable(pipe) or not parts:
        raise TypeError(
            f"{type(pipe).__name__} has no denoiser under {', '.join(DENOISERS)}: give a Diffusers pipeline, or the "
            "denoiser itself and num_calls="
        )
    return parts


@contextlib.contextmanager
def _exchange(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of this one object, past any `__setattr__`, and put back what was there."""
    own = vars(owner)
    missing = name not in own
    before = own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if missing:
            del own[name]
        else:
            own[name] = before


class _Sampling:
    """Counts the denoiser's calls and says which of them have a gradient."""

    def __init__(self, pipe: Any, k: int, num_calls: int | None, checkpoint: bool) -> None:
        self.pipe, self.k, self.num_calls, self.checkpoint = pipe, k, num_calls, checkpoint
        self.running = pipe is None  # between the calls of a pipeline its denoiser is the user's
        self.planned = self.calls = self.samplings = 0

    def counted(self, denoiser: nn.Module) -> Callable[..., Any]:
        forward, begin_call = denoiser.forward, torch.compiler.disable(self._begin_call)

        @functools.wraps(forward)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not self.running:
                return forward(*args, **kwargs)
            first = begin_call()
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            if first:
                torch.clear_autocast_cache()  # weights cast under no_grad are cached without their graph
            elif self.num_calls is None and not carries_gradient((args, kwargs)):
                raise RuntimeError(self._cut_by_scheduler())
            if self.checkpoint:
                output = recomputed(same_weights(denoiser, forward), *args, use_reentrant=False, **kwargs)
            else:
                output = forward(*args, **kwargs)
            if first and (cause := missing_gradient(denoiser, output)):
                raise RuntimeError(cause)
            return output

        marked: Any = torch.compiler.disable(call, recursive=False)  # unet.compile() would take it into its graph
        marked._of_grad_last_steps = True
        return marked  # type: ignore[no-any-return]

    def _begin_call(self) -> bool:
        """Set the grad mode of the next call; True for the first one with a gradient."""
        if self.pipe is None:
            self.calls %= int(self.num_calls or 1)
        if self.calls == 0:
            self.samplings += 1
            self.planned = self.num_calls or _timesteps(self.pipe)
            if self.k > self.planned:
                raise ValueError(f"k={self.k}, but one sampling makes {self.planned} denoiser calls")
        elif self.calls == self.planned:
            raise ValueError(
                f"{type(self.pipe).__name__} makes more than the {self.planned} denoiser calls planned, perhaps "
                f"because guidance is a call of its own: then num_calls={2 * self.planned}, and k counts these calls"
            )
        with_gradient = self.calls >= self.planned - self.k
        first = self.calls == self.planned - self.k
        self.calls += 1
        torch.set_grad_enabled(with_gradient)
        return first

    def decoded(self, own: DecodeGradient) -> Callable[..., Any]:
        plain: Callable[..., Any] = own.decode

        @functools.wraps(plain)
        def call(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not (self.running and torch.is_grad_enabled()):
                return plain(latents, *args, **kwargs)
            if not latents.requires_grad:
                raise RuntimeError(self._cut_by_scheduler())
            return own(latents, *args, **kwargs)

        return call

    def watched(self, plain: type) -> type:
        """The pipeline's class with a `__call__` that knows where a sampling begins and ends."""
        original = plain.__call__

        @functools.wraps(original)
        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if pipe is not self.pipe:  # a copy, made inside the context
                return original(pipe, *args, **kwargs)
            bound = inspect.signature(original).bind(pipe, *args, **kwargs)
            bound.apply_defaults()
            if bound.arguments.get("output_type", "pt") not in ("pt", "latent"):
                raise ValueError(f'{NO_NUMPY}: call the pipeline with output_type="pt"')
            check_latents(bound.arguments.get("latents"))
            self.calls, self.running = 0, True
            try:
                output = original(pipe, *args, **kwargs)
            finally:
                self.running = False
                _detach_history(getattr(pipe, "scheduler", None))
            self._check_calls()
            if not carries_gradient(output):
                raise RuntimeError(
                    f"the output of {plain.__name__} has no gradient: the scheduler {type(pipe.scheduler).__name__} or "
                    "the pipeline's post-processing cuts the graph"
                )
            return output

        return type(plain.__name__, (plain,), {"__call__": call, "__module__": plain.__module__})

    def finish(self) -> None:
        if self.samplings == 0:
            raise ValueError(
                "the denoiser was never called inside grad_last_steps: call the pipeline inside, and give the denoiser "
                "that it uses"
            )
        if self.pipe is None:
            self._check_calls()

    def _check_calls(self) -> None:
        if self.calls == 0:
            raise ValueError(f"{type(self.pipe).__name__} never called its denoiser, so there is nothing to learn from")
        if self.calls != self.planned:
            raise ValueError(
                f"{self.planned} denoiser calls were planned and {self.calls} made, so the gradient is not that of the "
                f"last {self.k}: give num_calls={self.calls}"
            )

    def _cut_by_scheduler(self) -> str:
        name = type(getattr(self.pipe, "scheduler", None)).__name__
        return f"the latents have no gradient: the step of {name} (or a callback) cuts the graph; use another scheduler"


def _detach_history(scheduler: Any) -> None:
    """Multistep schedulers keep past outputs, and with them the graph, so that they could no longer be copied."""
    own = vars(scheduler) if scheduler is not None else {}
    for name, value in own.items():
        if isinstance(value, torch.Tensor) and value.requires_grad:
            own[name] = value.detach()
        elif isinstance(value, list) and carries_gradient(value):
            own[name] = [part.detach() if isinstance(part, torch.Tensor) else part for part in value]


def _timesteps(pipe: Any) -> int:
    """How many calls the sampling that has begun will make: one for each of its timesteps."""
    count = getattr(pipe, "num_timesteps", None)  # set by the pipeline, after any cut by strength or denoising_end
    if count is None:
        scheduler = getattr(pipe, "scheduler", None)
        timesteps = getattr(scheduler, "timesteps", None)
        if timesteps is None:
            raise ValueError(f"{type(pipe).__name__} does not tell its number of timesteps: give num_calls=")
        count = len(timesteps) - (getattr(scheduler, "begin_index", None) or 0)
    return int(count)
