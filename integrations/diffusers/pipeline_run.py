"""One call of a Diffusers pipeline, followed step by step: where the gradient begins, and whether it arrives."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qa_hooks.integrations.diffusers.decode_gradient import CHECKED, DecodeGradient
from qa_hooks.integrations.diffusers.gradient_checks import (
    NO_NUMPY,
    carries_gradient,
    check_latents,
    cut_in_denoiser,
    no_gradient_at_all,
    tensors,
    warn_without_gradient,
)
from qa_hooks.integrations.diffusers.live_calls import LiveCalls
from qa_hooks.integrations.diffusers.pipeline_parts import as_loaded, subclass, trained, without_no_grad
from qa_hooks.integrations.diffusers.steps import detach_history, evaluations_of_last, evaluations_planned
from qa_hooks.integrations.diffusers.unit_range import RangeOfPipeline

_TOLD: weakref.WeakKeyDictionary[nn.Module, set[tuple[int, int]]] = weakref.WeakKeyDictionary()


class PipelineRun(LiveCalls):
    """The calls of one pipeline inside `grad_last_steps`.

    Args:
        pipe: the pipeline.
        parts: its denoisers, by the pipeline's names.
        k: how many of the last steps have a gradient.
        num_calls: how many denoiser calls one sampling must make; None: any number.
        checkpoint: run the denoiser's calls with a gradient again in the backward pass.
    """

    def __init__(self, pipe: Any, parts: dict[str, nn.Module], k: int, num_calls: int | None, checkpoint: bool) -> None:
        super().__init__(checkpoint)
        self.pipe, self.parts, self.k, self.num_calls = pipe, parts, k, num_calls
        self.name, self.plain_call = type(pipe).__name__, type(pipe).__call__
        self.scheduler: Any = getattr(pipe, "scheduler", None)
        self.running = False  # between the calls of a pipeline its denoiser is the user's
        self.samplings = 0
        self.range = RangeOfPipeline(pipe, self.plain_call)
        self.arguments: dict[str, Any] = {}
        self.left_out: list[tuple[str, nn.Parameter]] = []  # networks as they were loaded, which nobody trains
        self.planned: int | None = None  # calls of scheduler.step
        self.cut: int | None = None  # of them, those that `strength` leaves
        self.called: dict[str, nn.Module] = {}  # denoisers called with a gradient
        self.outputs: list[Tensor] = []  # what the scheduler was given in steps with a gradient
        self._begin()

    def watched(self) -> type:
        """The pipeline's class meanwhile."""
        cutting = {"get_timesteps": self._get_timesteps} if hasattr(type(self.pipe), "get_timesteps") else {}
        return subclass(self.pipe, __call__=self._call, **cutting)

    def followed(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        """The scheduler's methods meanwhile; not its class, since pipelines ask for it: `type(scheduler) == ...`.

        They are bound, so that a deep copy of the scheduler has them bound to itself.
        """
        if self.scheduler is None or not hasattr(self.scheduler, "step"):
            raise ValueError(
                f"{self.name} has no scheduler whose steps could be counted: give the denoiser alone, and num_calls="
            )
        for name, end in (("set_timesteps", self._begin), ("step", self._end_step)):
            yield name, self._followed(getattr(self.scheduler, name), end)

    def _followed(self, plain: Callable[..., Any], end: Callable[..., None]) -> Callable[..., Any]:
        name, signature = plain.__name__, inspect.signature(plain)

        @functools.wraps(getattr(plain, "__func__", plain))
        def method(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            if scheduler is not self.scheduler:
                return getattr(type(scheduler), name)(scheduler, *args, **kwargs)
            output = plain(*args, **kwargs)
            if self.running:
                end(signature.bind(*args, **kwargs).arguments, output)
            return output

        return types.MethodType(method, self.scheduler)

    # -- the pipeline's call -----------------------------------------------------------------------------------------

    @property
    def _call(self) -> Callable[..., Any]:
        plain, inner = self.plain_call, without_no_grad(self.plain_call)

        def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            if pipe is not self.pipe:  # a copy, made inside the context
                return plain(pipe, *args, **kwargs)
            if getattr(pipe, "scheduler", None) is not self.scheduler:
                raise ValueError(
                    f"the scheduler of {self.name} was exchanged inside grad_last_steps, which follows the one that it "
                    "had: exchange it before"
                )
            bound = inspect.signature(plain).bind(pipe, *args, **kwargs)
            bound.apply_defaults()
            if bound.arguments.get("output_type", "pt") not in ("pt", "latent"):
                raise ValueError(f'{NO_NUMPY}: call the pipeline with output_type="pt"')
            check_latents(bound.arguments.get("latents"))
            self.arguments = dict(bound.arguments)
            self._begin()
            self.running = True
            idle = as_loaded(pipe, self.parts)
            self.left_out = [(f"{name}.{key}", p) for name, part in idle.items() for key, p in part.named_parameters()]
            for _, p in self.left_out:
                p.requires_grad_(False)
            try:
                with torch.enable_grad():
                    output = inner(pipe, *args, **kwargs)
                self.running = False
                return self._checked(output, bound)
            except RuntimeError as error:
                if "numpy()" in str(error):
                    raise TypeError(self._arrays()) from error
                raise
            finally:
                self.running = False
                for _, p in self.left_out:
                    p.requires_grad_(True)
                self.outputs, self.arguments = [], {}
                self.range.forget()
                detach_history(self.scheduler)

        return call

    def _checked(self, output: Any, bound: inspect.BoundArguments) -> Any:
        self._check_counts()
        images = output[0] if isinstance(output, tuple) else getattr(output, "images", next(tensors(output), None))
        if images is not None and not isinstance(images, (Tensor, list)):
            raise TypeError(self._arrays())
        if not carries_gradient(output):
            raise RuntimeError(self._cause())
        if self.outputs and self.samplings <= CHECKED:
            self._check_influence(next(part for part in tensors(output) if part.requires_grad))
        told = _TOLD.setdefault(next(iter(self.parts.values())), set())
        wanted = [*trained(self.pipe, bound.arguments), *self.left_out]
        if (self.k, len(wanted)) not in told:
            told.add((self.k, len(wanted)))
            warn_without_gradient(wanted, output, self.k)
        if bound.arguments.get("output_type") != "pt" or not isinstance(images, Tensor) or images.ndim != 4:
            return output
        unit = self.range.to_unit(images, bound)
        if unit is images:
            return output
        if isinstance(output, tuple):
            return (unit, *output[1:])
        output.images = unit
        return output

    def _arrays(self) -> str:
        denoiser = next(iter(self.parts))
        return (
            f"{self.name} turns its images into NumPy arrays, whatever output_type is, and these have no gradient: "
            f"sample with qa_hooks.integrations.diffusers.reward_sample(pipe.{denoiser}, pipe.scheduler, ...)"
        )

    @property
    def _get_timesteps(self) -> Callable[..., Any]:
        plain = type(self.pipe).get_timesteps

        def get_timesteps(pipe: Any, *args: Any, **kwargs: Any) -> Any:
            """Those that `strength` leaves: not all pipelines tell them in any other way."""
            result = plain(pipe, *args, **kwargs)
            if pipe is self.pipe and isinstance(result, tuple) and hasattr(result[0], "__len__"):
                self.cut = len(result[0])
            return result

        return get_timesteps

    # -- its steps ---------------------------------------------------------------------------------------------------

    def _begin(self, *_: Any) -> None:
        """A schedule begins: until its first step autograd is on."""
        self.planned = self.cut = None
        self.made = self.calls = self.first = 0
        self.called, self.outputs = {}, []
        self.carried = False  # some denoiser's output has had a gradient
        self.latents_carry = False

    def _plan(self) -> None:
        self.samplings += 1
        self.planned = evaluations_planned(self.pipe, self.cut)
        self.first = self.planned - evaluations_of_last(self.scheduler, self.planned, self.k)

    def _set_mode(self) -> None:
        live = self.made >= self.first
        if live and (self.made == self.first or not torch.is_grad_enabled()):
            torch.clear_autocast_cache()  # weights cast under no_grad are cached without their graph
        torch.set_grad_enabled(live)

    def begin_call(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.planned is None:
            self._plan()
        self.calls += 1
        self._set_mode()

    def end_call(self, name: str, denoiser: nn.Module, output: Any, live: bool) -> None:
        self.range.watch(denoiser, output)
        if not live:
            return
        if name not in self.called and (cause := cut_in_denoiser(denoiser, output)):
            raise RuntimeError(cause)
        self.called[name] = denoiser
        self.carried |= carries_gradient(output)

    def _end_step(self, given: dict[str, Any], output: Any) -> None:
        model_output, sample = given.get("model_output"), given.get("sample")
        if self.planned is None:
            self._plan()
        if self.made == self.planned:
            raise ValueError(
                f"{self.name} makes more than the {self.planned} scheduler steps planned, so its steps cannot be told "
                "apart: give the denoiser alone, and num_calls="
            )
        if self.made >= self.first:
            arrived = carries_gradient(output)
            if carries_gradient(model_output) and not arrived:
                raise RuntimeError(self._cut("the step"))
            if self.latents_carry and isinstance(sample, Tensor) and not sample.requires_grad:
                raise RuntimeError(self._cut("something between two steps (a callback?)"))
            self.latents_carry = arrived
            self.outputs += [part for part in tensors(model_output) if part.requires_grad]
        self.made += 1
        self._set_mode()

    # -- whether the gradient arrives --------------------------------------------------------------------------------

    def decoded(self, own: DecodeGradient) -> Callable[..., Any]:
        """What replaces `vae.decode`."""
        plain: Callable[..., Any] = own.decode

        def call(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
            finished = self.planned is not None and self.made >= self.planned
            if not (self.running and finished):
                return plain(latents, *args, **kwargs)
            torch.set_grad_enabled(True)
            if not latents.requires_grad:
                raise RuntimeError(self._cause())
            if own.calls < CHECKED:
                self._check_influence(latents)
            self.outputs = []
            return own(latents, *args, **kwargs)

        return call

    def _check_influence(self, latents: Tensor) -> None:
        """Refuse a last step that ignores the network: PNDM's with leading spacing goes from t = 0 to t = 0."""
        if self.k > 1 or not self.outputs:
            return
        found = torch.autograd.grad(latents.sum(), self.outputs, retain_graph=True, allow_unused=True)
        if not any(bool(part.any()) for part in found if part is not None):
            raise ValueError(
                f"the last step of {self.name} does not depend on the denoiser ({type(self.scheduler).__name__}, or a "
                "mask, ignores it), so k=1 has no gradient: set the scheduler's timestep_spacing to 'trailing', or "
                "take a larger k"
            )

    def _cause(self) -> str:
        if not self.carried:
            return no_gradient_at_all(self.called, [name for name, _ in trained(self.pipe, self.arguments)], self.k)
        return self._cut("the step, a callback or the pipeline's post-processing")

    def _cut(self, where: str) -> str:
        return (
            f"the latents have no gradient: {where} of {type(self.scheduler).__name__} cuts the graph; use another one"
        )

    def _check_counts(self) -> None:
        if self.planned is None or not self.calls:
            raise ValueError(f"{self.name} never called its denoiser, so there is nothing to learn from")
        if self.made != self.planned:
            raise ValueError(
                f"{self.planned} scheduler steps were planned and {self.made} made, so the gradient is not the "
                f"gradient of the last {self.k}; for a pipeline that does not call scheduler.step give the denoiser "
                "alone, and num_calls="
            )
        if self.num_calls not in (None, self.calls):
            raise ValueError(
                f"{self.num_calls} denoiser calls were planned and {self.calls} made: leave num_calls= out"
            )

    def finish(self) -> None:
        """Raise when no image was made."""
        if self.samplings == 0:
            raise ValueError(
                "the denoiser was never called inside grad_last_steps: call the pipeline inside, and give the pipeline "
                "that you call"
            )
