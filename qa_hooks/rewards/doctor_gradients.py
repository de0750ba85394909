"""The doctor's checks of a gradient: is there one, is it the score's, and how far can it be climbed for nothing?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qa_hooks._base.text import plural
from qa_hooks.rewards.check import CROSS_TALK, NoGradientError
from qa_hooks.rewards.doctor_subject import Outcome, Subject, measure_cost

STEPS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # root mean square, of [0, 1]
HACK_STEPS, HACK_STEP, HACK_SECONDS = 30, 1 / 255, 6.0


def gradient(subject: Subject) -> Outcome:
    """A finite gradient at each image, not zero."""
    threshold = "finite, not 0, each"
    if not subject.scorer.differentiable:
        return Outcome("fail", "declared not differentiable", threshold)
    if isinstance(subject.gradients, NoGradientError):
        return Outcome("fail", str(subject.gradients), threshold)
    if not bool(subject.gradients.isfinite().all()):
        return Outcome("fail", "NaN or infinite", threshold)
    own = _norms(subject).diagonal()
    zero = int((own == 0).sum())
    if zero:
        return Outcome("fail", f"0 at {zero} of {plural(len(own), 'image')}", threshold)
    like_l1 = float(1 / (own.mean() * subject.gradients[0, 0].numel() ** 0.5))  # whose gradient is 1 / sqrt(pixels)
    norm = f"norm {float(own.min()):.3g} to {float(own.max()):.3g}, an L1 loss's at weight {like_l1:.1g}"
    return Outcome("pass", norm, threshold)


def cross_talk(subject: Subject) -> Outcome:
    """No gradient at the other images of the batch."""
    norms = _norms(subject)
    own = norms.diagonal()
    share = float((norms - own.diag()).max() / own.max().clamp_min(1e-30))
    return Outcome("fail" if share > CROSS_TALK else "pass", f"{share:.2g} of the own", f"<= {CROSS_TALK:g}")


def finite_differences(subject: Subject) -> Outcome:
    """The gradient's promise against what the score does, at the best of several step lengths, along two directions.

    Along the gradient itself, which shows a wrong one; and towards the clean pictures, which shows a missing part.
    Slopes under 2 % of the steepest one do not count, nor steps whose difference drowns in float32's rounding.
    """
    start = 0.05 + 0.9 * subject.images  # away from the ends, where clamps are
    slope = subject.gradient(start).double()
    steepest = slope.flatten(1).norm(dim=1) * slope[0].numel() ** 0.5
    errors = []
    for direction in (slope, (subject.clean - subject.images).double()):
        size = direction.square().flatten(1).mean(1).sqrt().clamp_min(1e-30)
        direction = direction / size.view(-1, 1, 1, 1)
        promised = (slope * direction).flatten(1).sum(1)
        best = torch.full_like(promised, math.inf)
        for step in STEPS:
            with torch.no_grad():
                above = subject.goodness((start + step * direction).float()).double()
                below = subject.goodness((start - step * direction).float()).double()
            done = (above - below) / (2 * step)
            scale = torch.stack([promised.abs(), done.abs(), 0.02 * steepest]).amax(0).clamp_min(1e-30)
            rounding = 2 * torch.finfo(torch.float32).eps * above.abs() / (2 * step)
            error = (promised - done).abs() / scale
            best = torch.minimum(best, torch.where(rounding < 0.02 * scale, error, math.inf))
        errors.append(best)
    threshold = "<= 0.05 (warn 0.3)"
    measured = torch.stack(errors)
    if bool(measured[0].isinf().any()):
        return Outcome("warn", "the slope drowns in rounding at every step length", threshold)
    worst = float(measured[measured.isfinite()].max())
    verdict = "pass" if worst <= 0.05 else "warn" if worst <= 0.3 else "fail"
    return Outcome(verdict, f"relative error {worst:.2g}", threshold)


def hackability(subject: Subject) -> Outcome:
    """What 30 steps of 1/255 along the gradient's sign do to degraded pictures, in score and in PSNR.

    A score that rises by more than heavy blur, noise and JPEG cost it, while PSNR falls, is paid for no better images.
    """
    seconds, _ = measure_cost(subject)
    steps = max(3, min(HACK_STEPS, int(HACK_SECONDS / max(seconds, 1e-9))))
    images = subject.images
    start = subject.goodness(images).mean()
    for _ in range(steps):
        images = (images + HACK_STEP * subject.gradient(images).sign()).clamp(0, 1)
    gained = float((subject.goodness(images).mean() - start).detach())
    lost = _psnr(subject.images, subject.clean) - _psnr(images, subject.clean)
    spans = gained / subject.span if subject.span > 0 else math.inf
    verdict = "fail" if lost > 0 and spans > 1 else "pass"
    measured = f"{steps} steps: better by {gained:.3g}, {spans:.2g} x what degrading costs; PSNR {-lost:+.1f} dB"
    return Outcome(verdict, measured, "<= 1 x, or PSNR kept")


def _psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()), 1e-10))


def _norms(subject: Subject) -> Tensor:
    if isinstance(subject.gradients, NoGradientError):
        raise subject.gradients
    norms: Tensor = subject.gradients.flatten(2).double().norm(dim=2)
    return norms.cpu()
