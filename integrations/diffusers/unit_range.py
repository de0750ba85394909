"""Find out, once for each pipeline, whether the tensors that it returns are in [0, 1].

Most pipelines convert to [0, 1] for `output_type="pt"`; some hand out the raw end of their sampler, in [-1, 1] and
beyond. Their NumPy images are in [0, 1] always. So the call is made twice more, as tensors and as arrays, with the
networks' outputs replayed instead of computed, and the two are compared.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qa_hooks._base.isolation import isolated
from qa_hooks.integrations.diffusers.gradient_checks import parts, tensors

CALLBACKS = ("callback_on_step_end", "callback")
SLACK = 0.02  # bfloat16
UNIT, RAW = "[0, 1]", "[-1, 1]"
UNKNOWN = "unknown"  # no arrays to compare with

_KNOWN: dict[Any, str] = {}


class RangeOfPipeline:
    """The range of one pipeline's tensors.

    Args:
        pipe: the pipeline.
        call: its class's own `__call__`.
    """

    def __init__(self, pipe: Any, call: Callable[..., Any]) -> None:
        self.pipe, self.call = pipe, call
        processor = getattr(getattr(pipe, "image_processor", None), "config", {})
        self.key = call, processor.get("do_normalize") if hasattr(processor, "get") else None
        self.outputs: list[tuple[nn.Module, Any]] = []  # of the networks, in the order of their calls

    def watch(self, network: nn.Module, output: Any) -> None:
        """Remember what a network gave in the user's call."""
        if self.key not in _KNOWN:
            self.outputs.append((network, _detached(output)))

    def forget(self) -> None:
        self.outputs.clear()

    def to_unit(self, images: Tensor, bound: inspect.BoundArguments) -> Tensor:
        """The images in [0, 1], with their gradient.

        Args:
            images: as the pipeline gave them for "pt".
            bound: the arguments of its call.

        Raises:
            ValueError: they are in neither range.
        """
        if self.key not in _KNOWN:
            _KNOWN[self.key] = self._ask(bound)
            self.forget()
        found = _KNOWN[self.key]
        if found == UNKNOWN:
            low, high = (float(value) for value in torch.aminmax(images.detach().float()))
            if low < -SLACK or high > 1 + SLACK:
                raise ValueError(
                    f"{type(self.pipe).__name__} gives images in [{low:.3g}, {high:.3g}] and no NumPy images to "
                    "compare them with, so their range is not known: convert them to [0, 1] in the pipeline"
                )
        return (images / 2 + 0.5).clamp(0, 1) if found == RAW else images

    def _ask(self, bound: inspect.BoundArguments) -> str:
        try:
            pt, array = (self._replayed(kind, bound) for kind in ("pt", "np"))
        except Exception:  # whatever a pipeline raises that has no such output, or counts its calls
            return UNKNOWN
        if not (isinstance(pt, Tensor) and isinstance(array, np.ndarray) and array.ndim == 4):
            return UNKNOWN
        truth = torch.from_numpy(array).movedim(-1, 1).float()
        if truth.shape != pt.shape or not torch.isfinite(truth).all():
            return UNKNOWN
        ranges = {UNIT: pt.cpu().float(), RAW: (pt.cpu().float() / 2 + 0.5).clamp(0, 1)}
        fitting = [name for name, images in ranges.items() if torch.allclose(images, truth, atol=SLACK, rtol=0)]
        if not fitting:
            seen = f"[{float(pt.min()):.3g}, {float(pt.max()):.3g}]"
            raise ValueError(
                f"{type(self.pipe).__name__} gives tensors in {seen} that are its NumPy images neither as they "
                'are nor from [-1, 1] to [0, 1]: take output_type="latent" and decode yourself'
            )
        return fitting[0]

    def _replayed(self, kind: str, bound: inspect.BoundArguments) -> Any:
        """The images of the call with the remembered outputs, from the same noise each time, without callbacks."""
        options = copy.copy(bound)
        options.arguments = {name: value for name, value in bound.arguments.items() if name not in CALLBACKS}
        options.arguments["output_type"] = kind
        generators = [g for g in parts(bound.arguments) if isinstance(g, torch.Generator)]
        states = [g.get_state() for g in generators]
        scheduler = getattr(self.pipe, "scheduler", None)
        before = copy.copy(vars(scheduler)) if scheduler is not None else {}
        with contextlib.ExitStack() as stack:
            stack.enter_context(isolated())
            for network in {id(part): part for part, _ in self.outputs}.values():
                stack.enter_context(_replaying(network, [out for part, out in self.outputs if part is network]))
            try:
                output = self.call(*options.args, **options.kwargs)
            finally:
                for generator, state in zip(generators, states, strict=True):
                    generator.set_state(state)
                if scheduler is not None:
                    vars(scheduler).clear()
                    vars(scheduler).update(before)
        return output[0] if isinstance(output, tuple) else output.images


@contextlib.contextmanager
def _replaying(network: nn.Module, outputs: list[Any]) -> Iterator[None]:
    own, remaining = vars(network), itertools.cycle(outputs)
    before = own.get("forward")
    own["forward"] = lambda *args, **kwargs: _detached(next(remaining))
    try:
        yield
    finally:
        del own["forward"]
        if before is not None:
            own["forward"] = before


def _detached(output: Any) -> Any:
    """The same output without a graph: a tensor, a tuple, or an object of Diffusers that holds tensors."""
    if isinstance(output, Tensor):
        return output.detach().clone()  # pipelines change it in place
    if isinstance(output, (list, tuple)):
        return type(output)(map(_detached, output))
    if isinstance(output, dict) and any(True for _ in tensors(output)):
        held = copy.copy(output)
        for name, value in output.items():
            held[name] = _detached(value)
        return held
    return output
