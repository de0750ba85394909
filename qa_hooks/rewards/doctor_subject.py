"""What the doctor examines: a scorer with pictures to try it on, and what several checks measure of it."""

from __future__ import annotations

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks.functional.degradations import LEVELS, degrade
from qa_hooks.rewards.check import NoGradientError, from_unit, inputs_for, score_gradients
from qa_hooks.scorers.scorer import Scorer

SIDES = (8, 16, 32, 48, 64, 96, 128, 161, 192, 224, 256, 384, 512)
LADDER_KINDS = ("blur", "noise", "jpeg")
REFUSALS = (ValueError, TypeError, RuntimeError, IndexError, AssertionError, ArithmeticError)


class Outcome(NamedTuple):
    """What one check says.

    Attributes:
        verdict: "pass", "warn", "fail" or "skip".
        measured: what was measured, in words.
        threshold: what would have been good.
        check: the name of the check.
    """

    verdict: str
    measured: str
    threshold: str
    check: str = ""


@dataclasses.dataclass
class Subject:
    """A scorer and the pictures it is tried on, with what several checks need.

    Attributes:
        scorer: on its device.
        clean: `(N, C, H, W)` in [0, 1].
        images: slightly blurred and noisy `clean`, in [0, 1].
        minimum: the smallest side that was scored; 0 when none was.
        size: the side that was asked for.
        licence: as known.
    """

    scorer: Scorer
    clean: Tensor
    images: Tensor
    minimum: int
    size: int
    licence: str

    def goodness(self, images: Tensor, clean: Tensor | None = None) -> Tensor:
        """`(N,)` for images in [0, 1]; `clean` are their references."""
        inputs = inputs_for(self.scorer, self.clean if clean is None else clean)
        return self.scorer.goodness(from_unit(images, self.scorer.value_range), **inputs)

    def gradient(self, images: Tensor) -> Tensor:
        """The gradient of each image's goodness at its own pixels, `(N, C, H, W)`, images in [0, 1]."""
        images = images.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.goodness(images).sum(), images)
        return gradient

    @functools.cached_property
    def gradients(self) -> Tensor | NoGradientError:
        """`score_gradients` of `images`, or why there are none."""
        try:
            images = from_unit(self.images, self.scorer.value_range)
            return score_gradients(self.scorer, images, **inputs_for(self.scorer, self.clean))
        except NoGradientError as error:
            return error

    @functools.cached_property
    def ladders(self) -> dict[str, list[float]]:
        """Mean goodness at each level of each ladder of degradations."""
        generator = torch.Generator()
        with torch.no_grad():
            return {
                kind: [
                    float(
                        self.goodness(degrade(self.clean, kind, level, generator=generator.manual_seed(level))).mean()
                    )
                    for level in range(LEVELS)
                ]
                for kind in LADDER_KINDS
            }

    @property
    def span(self) -> float:
        """How far the degradations move the score: the mean fall from the first level to the worst."""
        return sum(abs(levels[0] - levels[-1]) for levels in self.ladders.values()) / len(self.ladders)


def smallest_side(scorer: Scorer, clean: Callable[[int], Tensor]) -> tuple[int, str]:
    """The smallest of `SIDES` that is scored with finite values, found by trying; and why the largest was refused."""
    reason = ""
    for side in SIDES:
        reason = refusal(scorer, clean(side))
        if not reason:
            return side, ""
    return 0, reason


def refusal(scorer: Scorer, clean: Tensor) -> str:
    """Why a scorer gives no finite scores for pictures in [0, 1]; "" where it does. Its warnings are dropped."""
    said = scorer._said_size  # that it was fitted on another size, which is about the size that is examined
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scores = scorer(from_unit(clean, scorer.value_range), **inputs_for(scorer, clean))
    except REFUSALS as error:
        return str(error) or type(error).__name__
    finally:
        scorer._said_size = said
    return "" if bool(scores.isfinite().all()) else "the scores are not finite"


def measure_cost(subject: Subject) -> tuple[float, int | None]:
    """Seconds for the whole batch, the faster of two runs, and bytes: a GPU's peak, or what a CPU's graph holds."""
    backward = subject.scorer.differentiable and not isinstance(subject.gradients, NoGradientError)
    storages: dict[int, int] = {}
    cuda = subject.images.is_cuda

    def remember(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    if cuda:
        torch.cuda.reset_peak_memory_stats(subject.images.device)
    before = torch.cuda.memory_allocated(subject.images.device) if cuda else 0
    if backward:
        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            subject.gradient(subject.images)
    times = []
    for _ in range(2):
        started = time.perf_counter()
        if backward:
            subject.gradient(subject.images)
        else:
            with torch.no_grad():
                subject.goodness(subject.images)
        if cuda:
            torch.cuda.synchronize(subject.images.device)
        times.append(time.perf_counter() - started)
    if cuda:
        return min(times), torch.cuda.max_memory_allocated(subject.images.device) - before
    frozen = [p for module in subject.scorer._frozen for p in (*module.parameters(), *module.buffers())]
    weights = {tensor.untyped_storage().data_ptr() for tensor in frozen}
    held = sum(size for pointer, size in storages.items() if pointer not in weights)
    return min(times), held if backward else None
