"""What the doctor does to a scorer: each check measures one thing and holds it against a threshold."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qa_hooks._base.text import plural
from qa_hooks.functional.degradations import LEVELS, degrade
from qa_hooks.rewards.check import from_unit, inputs_for
from qa_hooks.rewards.doctor_gradients import cross_talk, finite_differences, gradient, hackability
from qa_hooks.rewards.doctor_subject import REFUSALS, Outcome, Subject, measure_cost

CHANCE = 0.6  # share of the pairs in the right order that a coin may well reach


def minimum_size(subject: Subject) -> Outcome:
    """The smallest side that is scored."""
    verdict = "pass" if subject.minimum <= subject.size else "warn"
    return Outcome(verdict, f"{subject.minimum} px", f"<= {subject.size} px")


def determinism(subject: Subject) -> Outcome:
    """Two calls with the same images give the same scores."""
    with torch.no_grad():
        gap = _gap(subject.goodness(subject.images), subject.goodness(subject.images))
    return _graded(gap, "difference", 1e-6, 1e-2)


def reaction(subject: Subject) -> Outcome:
    """Each image's score changes with that image."""
    with torch.no_grad():
        before = subject.goodness(subject.images)
        still = []
        for i in range(len(before)):
            changed = subject.images.clone()
            changed[i] = degrade(changed[i : i + 1], "blur", 3)[0]
            if subject.goodness(changed)[i] == before[i]:
                still.append(str(i))
    total = len(before)
    return Outcome("fail" if still else "pass", f"{total - len(still)} of {plural(total, 'image')}", "all")


def batch_independence(subject: Subject) -> Outcome:
    """An image scores the same alone, in a batch, and beside other images."""
    worse = degrade(subject.images, "blur", 3)
    with torch.no_grad():
        together = subject.goodness(subject.images)
        apart, beside = [], []
        for i in range(len(together)):
            apart.append(subject.goodness(subject.images[i : i + 1], subject.clean[i : i + 1])[0])
            others = worse.clone()
            others[i] = subject.images[i]
            beside.append(subject.goodness(others)[i])
        gap = max(_gap(together, torch.stack(scores)) for scores in (apart, beside))
    return _graded(gap, "difference", 1e-4, 1e-2)


def direction(subject: Subject) -> Outcome:
    """The worst pictures score below the clean ones, by one kind of damage at least."""
    ends = [kind for kind, levels in subject.ladders.items() if levels[0] > levels[-1]]
    return Outcome("pass" if ends else "fail", f"right for {len(ends)} of {len(subject.ladders)} kinds", "1 or more")


def order(subject: Subject) -> Outcome:
    """Worse pictures score worse, of each kind: blur, noise and JPEG. A coin has half of the pairs right."""
    right = {
        kind: sum(a > b for i, a in enumerate(levels) for b in levels[i + 1 :])
        for kind, levels in subject.ladders.items()
    }
    pairs = LEVELS * (LEVELS - 1) // 2
    worst = min(right.values())
    verdict = "pass" if worst >= pairs - 1 else "warn" if worst > CHANCE * pairs else "fail"
    measured = ", ".join(f"{kind} {count}/{pairs}" for kind, count in right.items())
    return Outcome(verdict, measured, f">= {pairs - 1}/{pairs} each")


def flat_images(subject: Subject) -> Outcome:
    """Finite scores and gradients on images of one colour."""
    bad = []
    for name, level in (("black", 0.0), ("grey", 0.5), ("white", 1.0)):
        flat = torch.full_like(subject.clean, level).requires_grad_(subject.scorer.differentiable)
        scores = subject.goodness(flat)
        finite = bool(scores.isfinite().all())
        if finite and scores.requires_grad:
            (slope,) = torch.autograd.grad(scores.sum(), flat, allow_unused=True)
            finite = slope is None or bool(slope.isfinite().all())
        if not finite:
            bad.append(name)
    return Outcome("fail" if bad else "pass", f"not finite: {', '.join(bad)}" if bad else "finite", "finite")


def bfloat16(subject: Subject) -> Outcome:
    """Under autocast and with bfloat16 images as with float32 ones of the same values."""
    rounded = from_unit(subject.images, subject.scorer.value_range).bfloat16()
    clean = from_unit(subject.clean, subject.scorer.value_range).bfloat16()
    device = rounded.device.type
    gaps = []
    with torch.no_grad():
        inputs = inputs_for(subject.scorer, subject.clean)
        if "reference" in inputs:
            inputs["reference"] = clean
        exact = {k: v.float() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        truth = subject.scorer.goodness(rounded.float(), **exact)
        gaps.append(_gap(truth, subject.scorer.goodness(rounded, **inputs)))
        with torch.autocast(device, dtype=torch.bfloat16):
            gaps.append(_gap(truth, subject.scorer.goodness(rounded.float(), **exact)))
    return _graded(max(gaps), "difference", 1e-3, 2e-2)


def cost(subject: Subject) -> Outcome:
    """Milliseconds and megabytes per image, forward and, where there is one, backward."""
    seconds, held = measure_cost(subject)
    count = len(subject.images)
    what = "forward and backward" if subject.scorer.differentiable else "forward"
    memory = "" if held is None else f", {held / count / 2**20:.1f} MB"
    return Outcome("pass", f"{1000 * seconds / count:.1f} ms{memory} per image, {what}", "-")


def licence(subject: Subject) -> Outcome:
    """The licence of the code; weights can have another."""
    restricted = "noncommercial" in subject.licence.lower().replace("-", "").replace(" ", "")
    verdict = "warn" if restricted or subject.licence in ("unknown", "see the library") else "pass"
    return Outcome(verdict, subject.licence, "known, without restriction")


def _gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the scores."""
    scale = torch.maximum(a.abs(), b.abs()).max().clamp_min(1e-6)
    gap = float((a.double() - b.double()).abs().max() / scale)
    return gap if math.isfinite(gap) else math.inf


def _graded(value: float, what: str, good: float, bearable: float) -> Outcome:
    verdict = "pass" if value <= good else "warn" if value <= bearable else "fail"
    return Outcome(verdict, f"{what} {value:.2g}", f"<= {good:g} (warn {bearable:g})")


class Check(NamedTuple):
    """A check by its name: whether it needs a gradient, and whether failing it spoils the scores themselves."""

    name: str
    run: Callable[[Subject], Outcome]
    needs_gradient: bool = False
    spoils_scores: bool = False


CHECKS: tuple[Check, ...] = (
    Check("minimum size", minimum_size),
    Check("determinism", determinism, spoils_scores=True),
    Check("each image reacts", reaction, spoils_scores=True),
    Check("batch independence", batch_independence, spoils_scores=True),
    Check("direction", direction, spoils_scores=True),
    Check("order of degradations", order),
    Check("gradient", gradient),
    Check("gradient cross-talk", cross_talk, needs_gradient=True),
    Check("finite differences", finite_differences, needs_gradient=True),
    Check("flat images", flat_images),
    Check("bfloat16", bfloat16),
    Check("cost", cost),
    Check("licence", licence),
    Check("hackability", hackability, needs_gradient=True),
)


def run_check(check: Check, subject: Subject) -> Outcome:
    """One check; an error inside is a failure that carries its message."""
    try:
        if check.needs_gradient and not (subject.scorer.differentiable and isinstance(subject.gradients, Tensor)):
            return Outcome("skip", "there is no gradient", "-", check.name)
        outcome = check.run(subject)
    except REFUSALS as error:
        outcome = Outcome("fail", f"{type(error).__name__}: {error}", "runs")
    return outcome._replace(measured=textwrap.shorten(outcome.measured, 100), check=check.name)
